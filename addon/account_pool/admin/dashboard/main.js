const EVERY_MS = 2000;
const USAGE_EVERY = 10;
const THEMES = ["system", "light", "dark"];
let round = 0;
let servedThen = -1;
let timer = 0;
let instance = null;

async function refresh() {
  clearTimeout(timer);
  try {
    // A proxy that was started again counts its decisions from one.
    const health = await asked("/health");
    if (instance !== health.instance) {
      [instance, round] = [health.instance, 0];
      forgetDecisions();
      setText(byId("about"), `account-pool ${health.version}, process ${health.pid}`);
    }
    const [pool, decisions, sessions] = await Promise.all([
      asked("/account-pool"), asked(`/decisions?since=${knownDecisions()}`), asked("/sessions"),
    ]);
    showAccounts(pool);
    showDecisions(decisions);
    showSessions(sessions);
    const served = pool.accounts.reduce((sum, account) => sum + account.served, 0);
    if (served !== servedThen || round++ % USAGE_EVERY === 0) showUsage(await asked(`/usage?days=${DAYS}`));
    servedThen = served;
    document.body.dataset.ready = "true";
    if (byId("trouble").dataset.lost) {
      delete byId("trouble").dataset.lost;
      say("");
    }
  } catch (error) {
    byId("trouble").dataset.lost = "true";
    say(error instanceof Refused ? error.message : "The proxy does not answer. The data shown may be out of date.");
  }
  // Nobody looks at a hidden page.
  if (!document.hidden) timer = setTimeout(refresh, EVERY_MS);
}

function refreshSoon() {
  clearTimeout(timer);
  timer = setTimeout(refresh, 0);
}

function useTheme(name) {
  if (name === "system") delete document.documentElement.dataset.theme;
  else document.documentElement.dataset.theme = name;
  setText(byId("theme"), `Theme: ${name}`);
}

function startTheme() {
  let name = localStorage.getItem("account-pool-theme") ?? "system";
  useTheme(name);
  byId("theme").addEventListener("click", () => {
    name = THEMES[(THEMES.indexOf(name) + 1) % THEMES.length];
    localStorage.setItem("account-pool-theme", name);
    useTheme(name);
  });
}

function startDialogs() {
  for (const button of document.querySelectorAll("[data-close]")) {
    button.addEventListener("click", () => button.closest("dialog").close(""));
  }
  byId("token-open").addEventListener("click", () => askToken(""));
  byId("token-form").addEventListener("submit", (event) => {
    event.preventDefault();
    byId("token-dialog").close("used");
  });
  byId("add-open").addEventListener("click", () => {
    setText(byId("add-error"), "");
    byId("add-dialog").showModal();
  });
  byId("add-dialog").addEventListener("close", () => byId("add-form").reset());
  byId("add-form").addEventListener("submit", (event) => {
    event.preventDefault();
    add(event.submitter, Object.fromEntries(new FormData(event.target)));
  });
}

async function add(button, { provider, label, token, priority }) {
  const values = { provider: provider.trim(), label: label.trim(), token: token.trim() };
  if (priority !== "") values.priority = Number(priority);
  button.disabled = true;
  setText(byId("add-error"), "");
  try {
    if (await changed("/account-pool/add", values)) byId("add-dialog").close("");
  } catch (error) {
    setText(byId("add-error"), error.message);
  } finally {
    button.disabled = false;
  }
}

document.addEventListener("visibilitychange", () => {
  if (!document.hidden) refreshSoon();
});
startTheme();
startDialogs();
refresh();
