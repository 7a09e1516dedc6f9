const TOKEN = "account-pool-token";

class Refused extends Error {
  constructor(status, code, message) {
    super(message);
    this.status = status;
    this.code = code;
  }
}

async function refusalOf(answer) {
  const { error = {} } = (await answer.json().catch(() => null)) ?? {};
  return new Refused(answer.status, error.code, error.message ?? `the proxy answered ${answer.status}`);
}

// With the token where there is one: other machines, and all where proxyauth is set, need it to read.
function sent(path, options = {}) {
  const token = sessionStorage.getItem(TOKEN);
  const headers = { ...options.headers, ...(token ? { authorization: `Bearer ${token}` } : {}) };
  return fetch(path, { cache: "no-store", credentials: "omit", ...options, headers });
}

async function asked(path) {
  const answer = await sent(path);
  if (!answer.ok) throw await refusalOf(answer);
  return answer.json();
}

// Asks for the admin token when it is missing or wrong, then does what was asked for.
async function changed(path, values) {
  if (!sessionStorage.getItem(TOKEN) && !(await askToken(""))) return null;
  for (;;) {
    const answer = await sent(path, {
      method: "POST", headers: { "content-type": "application/json" }, body: JSON.stringify(values),
    });
    if (answer.ok) return answer.json();
    const refused = await refusalOf(answer);
    if (refused.status !== 401) throw refused;
    sessionStorage.removeItem(TOKEN);
    if (!(await askToken(refused.message))) return null;
  }
}

let asking = null;

// Returns the token, null if there is none; one dialog however many need it.
function askToken(problem) {
  asking ??= new Promise((resolve) => {
    const dialog = byId("token-dialog");
    byId("token").value = "";
    setText(byId("token-error"), problem);
    dialog.returnValue = "";
    dialog.showModal();
    dialog.addEventListener("close", () => {
      const token = byId("token").value.trim();
      byId("token").value = "";
      asking = null;
      if (dialog.returnValue !== "used" || !token) return resolve(null);
      sessionStorage.setItem(TOKEN, token);
      dispatchEvent(new Event("token-given"));
      resolve(token);
    }, { once: true });
  });
  return asking;
}

// `account-pool dashboard` opens the page with a code in the fragment, which servers are not sent.
async function redeem() {
  const code = new URLSearchParams(location.hash.slice(1)).get("code");
  if (!code) return;
  history.replaceState(null, "", location.pathname);
  try {
    const answer = await fetch("/link/redeem", {
      method: "POST", cache: "no-store", credentials: "omit",
      headers: { "content-type": "application/json" }, body: JSON.stringify({ code }),
    });
    if (!answer.ok) throw await refusalOf(answer);
    sessionStorage.setItem(TOKEN, (await answer.json()).token);
  } catch (error) {
    say(`${error.message} Run account-pool dashboard again for a new link.`);
  }
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
    say(error instanceof Refused ? error.message : "The proxy does not answer.");
  } finally {
    button.disabled = false;
  }
}
