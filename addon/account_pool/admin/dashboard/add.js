// The form for one more account: every key that accounts.yaml has for it, but for references.

// Where a provider's credential comes from and what it looks like.
const HINTS = {
  "claude-code": ["A Claude subscription. account-pool login claude is the easy way; or paste what claude setup-token prints.", "sk-ant-oat01-..."],
  codex: ["A ChatGPT plan. account-pool login codex is the easy way; tokens.refresh_token of a Codex auth.json works too.", "eyJ..."],
  copilot: ["A GitHub token with Copilot. account-pool login copilot gets one; gh auth token prints one.", "gho_..."],
  "gemini-cli": ["A Google login of the Gemini CLI. account-pool login gemini is the easy way.", "ya29...."],
  openai: ["An API key from platform.openai.com/api-keys.", "sk-proj-..."],
  anthropic: ["An API key from console.anthropic.com, under API keys.", "sk-ant-api03-..."],
  gemini: ["An API key from aistudio.google.com/apikey.", "AIza..."],
  azure: ["The key of an Azure OpenAI resource, whose host stands below.", ""],
  openrouter: ["A key from openrouter.ai/keys.", "sk-or-v1-..."],
  groq: ["A key from console.groq.com/keys.", "gsk_..."],
  mistral: ["A key from console.mistral.ai/api-keys.", ""],
  xai: ["A key from console.x.ai.", "xai-..."],
  deepseek: ["A key from platform.deepseek.com/api_keys.", "sk-..."],
  "github-models": ["A GitHub token with models:read.", "github_pat_..."],
};
const LABELS = {
  account_id: ["Account id", "Read from the token where it says so."], project: ["Project", "Google Cloud project."],
  organization: ["Organization", "org-..."], openai_project: ["Project", "proj_..."], host: ["Host", "name.openai.azure.com"],
  deployments: ["Deployments", "gpt-5: my-gpt-5, gpt-4.1: old"], account_type: ["Plan", "individual, business or enterprise"],
};
const SUBSCRIPTIONS = ["claude-code", "codex", "copilot", "gemini-cli"];
let known = null;

function startAdd() {
  for (const id of ["add-open", "first-add"]) byId(id).addEventListener("click", (event) => act(event.currentTarget, openAdd));
  byId("add-dialog").addEventListener("close", () => byId("add-form").reset());
  byId("add-provider").addEventListener("change", drawHints);
  byId("add-form").addEventListener("change", (event) => { if (event.target.name === "form") drawForm(); });
  byId("add-form").addEventListener("submit", (event) => {
    event.preventDefault();
    add(event.submitter, new FormData(event.target));
  });
}

async function openAdd() {
  known ??= (await asked("/providers")).providers;
  const held = new Set([...pool.accounts.values()].map((one) => one.provider));
  const groups = [["In this pool", known.filter((one) => held.has(one.name))],
    ["Subscriptions", known.filter((one) => !held.has(one.name) && SUBSCRIPTIONS.includes(one.name))],
    ["API keys", known.filter((one) => !held.has(one.name) && !SUBSCRIPTIONS.includes(one.name))]];
  byId("add-provider").replaceChildren(...groups.filter(([, list]) => list.length).map(([label, list]) =>
    element("optgroup", { label }, ...list.map((one) => element("option", { value: one.name }, one.hosts.length ? `${one.name} (${one.hosts[0]})` : one.name)))));
  const chosen = byId("provider").value;
  byId("add-provider").value = known.some((one) => one.name === chosen) ? chosen : held.has("openai") || held.size === 0 ? "openai" : [...held][0];
  setText(byId("add-error"), "");
  drawHints();
  byId("add-dialog").showModal();
}

function drawHints() {
  const { name, login, companions, env } = known.find((one) => one.name === byId("add-provider").value);
  const [hint, form] = HINTS[name] ?? [`The API key of ${name}.`, ""];
  setText(byId("add-hint"), env.length ? `${hint} The usual variable is ${env[0]}.` : hint);
  byId("add-token").placeholder = form;
  byId("add-kind").hidden = !login;
  byId("add-form").elements.form.value = "token";
  byId("add-companions").replaceChildren(...companions.filter((key) => LABELS[key]).map((key) => {
    const [label, example] = LABELS[key];
    return element("p", {}, element("label", { for: `add-${key}` }, label),
      element("input", { id: `add-${key}`, name: key, autocomplete: "off", spellcheck: "false", placeholder: example }));
  }));
  drawForm();
}

function drawForm() {
  const login = byId("add-form").elements.form.value === "login";
  byId("add-as-token").hidden = login;
  byId("add-as-login").hidden = !login;
  byId("add-token").required = !login;
  byId("add-refresh").required = login;
}

// "a: b, c: d"
const pairs = (text) => Object.fromEntries(listed(text).map((one) => one.split(/:(.*)/s).slice(0, 2).map((side) => side.trim())));
const listed = (text) => text.split(",").map((one) => one.trim()).filter(Boolean);

function entryOf(form) {
  const text = (name) => (form.get(name) ?? "").trim();
  const entry = { provider: text("provider"), label: text("label") };
  if (form.get("form") === "login") {
    entry.token = { oauth: { refresh_token: text("refresh_token") } };
    if (text("access_token")) entry.token.oauth.access_token = text("access_token");
  } else {
    entry.token = text("token");
  }
  for (const name of ["priority", "weight", "max_concurrent", "min_interval"]) if (text(name)) entry[name] = Number(text(name));
  if (text("models")) entry.models = listed(text("models"));
  if (text("reserve")) entry.reserve = pairs(text("reserve"));
  if (!form.get("enabled")) entry.enabled = false;
  for (const name of Object.keys(LABELS)) if (text(name)) entry[name] = name === "deployments" ? pairs(text(name)) : text(name);
  return entry;
}

async function add(button, form) {
  button.disabled = true;
  setText(byId("add-error"), "");
  try {
    const done = await changed("/account-pool/add", entryOf(form));
    if (!done) return;
    byId("add-dialog").close("");
    notice(`${done.account.key} was added (${done.written_to}).`);
  } catch (error) {
    setText(byId("add-error"), error instanceof Refused ? error.message : "The proxy does not answer.");
  } finally {
    button.disabled = false;
  }
}
