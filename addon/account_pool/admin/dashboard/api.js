const TOKEN = "account-pool-token";

class Refused extends Error {
  constructor(status, code, message) {
    super(message);
    this.status = status;
    this.code = code;
  }
}

async function asked(path, options = {}) {
  const answer = await fetch(path, { cache: "no-store", credentials: "omit", ...options });
  const body = await answer.json().catch(() => null);
  if (answer.ok) return body;
  const error = body?.error ?? {};
  throw new Refused(answer.status, error.code, error.message ?? `the proxy answered ${answer.status}`);
}

// Asks for the admin token when it is missing or wrong, then does what was asked for.
async function changed(path, values) {
  let token = sessionStorage.getItem(TOKEN) ?? (await askToken(""));
  while (token !== null) {
    try {
      const done = await asked(path, {
        method: "POST",
        headers: { "content-type": "application/json", authorization: `Bearer ${token}` },
        body: JSON.stringify(values),
      });
      refreshSoon();
      return done;
    } catch (error) {
      if (error.status !== 401) throw error;
      sessionStorage.removeItem(TOKEN);
      token = await askToken(error.message);
    }
  }
  return null;
}

function askToken(problem) {
  const dialog = byId("token-dialog");
  byId("token").value = "";
  setText(byId("token-error"), problem);
  dialog.returnValue = "";
  dialog.showModal();
  return new Promise((resolve) => {
    dialog.addEventListener("close", () => {
      const token = byId("token").value.trim();
      byId("token").value = "";
      if (dialog.returnValue !== "used" || !token) return resolve(null);
      sessionStorage.setItem(TOKEN, token);
      resolve(token);
    }, { once: true });
  });
}

function confirmed(title, text, verb) {
  const dialog = byId("ask-dialog");
  setText(byId("ask-title"), title);
  setText(byId("ask-text"), text);
  setText(byId("ask-yes"), verb);
  dialog.returnValue = "no";
  dialog.showModal();
  return new Promise((resolve) => {
    dialog.addEventListener("close", () => resolve(dialog.returnValue === "yes"), { once: true });
  });
}

function say(problem) {
  setText(byId("trouble"), problem);
  byId("trouble").hidden = !problem;
}

// Runs what a button does, and shows what went wrong.
async function act(button, work) {
  button.disabled = true;
  try {
    await work();
    say("");
  } catch (error) {
    say(error.message);
  } finally {
    button.disabled = false;
  }
}
