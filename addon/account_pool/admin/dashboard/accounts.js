// The table of accounts: what needs somebody, filters, rows.

const COLUMNS = [
  { name: "account", title: "Account", value: (row) => row.account.key, first: 1 },
  { name: "state", title: "State", value: (row) => STATES[row.standing.state].rank, first: 1 },
  { name: "left", title: "Headroom", value: (row) => row.account.tightest?.remaining ?? 2, first: 1 },
  { name: "flight", title: "In flight", value: (row) => row.account.in_flight, first: -1, number: true },
  { name: "talks", title: "Sessions", value: (row) => row.account.sessions, first: -1, number: true, about: "conversations that live on it" },
  { name: "today", title: "Today", value: (row) => row.account.usage.requests, first: -1, number: true, about: "requests and tokens today (UTC)" },
];
// In a row; the drawer has all.
const WINDOWS_SHOWN = 2;

const view = { sort: "state", way: 1, state: "", keys: null };

function startTable() {
  for (const { name, title, number, about } of COLUMNS) {
    const button = element("button", { type: "button", class: "sort", title: about ?? null, click: () => sortBy(name) }, title);
    byId("columns").append(element("th", { role: "columnheader", scope: "col", class: number ? "number" : null, "data-column": name }, button));
  }
  for (const [name, { name: title }] of [["", { name: "all" }], ...Object.entries(STATES)]) {
    byId("states").append(element("button", {
      type: "button", class: "chip", "data-state": name, "aria-pressed": "false",
      click: () => { view.state = name; view.keys = null; drawAccounts(); },
    }, element("span", {}, title), " ", element("b", { "data-part": "count" })));
  }
  byId("search").addEventListener("input", drawAccounts);
  byId("provider").addEventListener("change", drawAccounts);
  byId("clear-filters").addEventListener("click", clearFilters);
  byId("next").addEventListener("click", () => {
    act(byId("next"), async () => {
      const done = await changed("/account-pool/next", { provider: byId("provider").value });
      if (done) notice(done.next ? `${done.next} is next.` : "No account can take over.");
    });
  });
  addEventListener("keydown", (event) => {
    const typing = event.target.closest?.("input, select, textarea, dialog");
    if (event.key === "/" && !typing && !event.ctrlKey && !event.metaKey) {
      event.preventDefault();
      location.hash = "accounts";
      byId("search").focus();
    } else if (event.key === "Escape" && event.target === byId("search")) {
      clearFilters();
    }
  });
}

function clearFilters() {
  Object.assign(view, { state: "", keys: null });
  byId("search").value = byId("provider").value = "";
  drawAccounts();
}

function sortBy(name) {
  const column = COLUMNS.find((one) => one.name === name);
  view.way = view.sort === name ? -view.way : column.first;
  view.sort = name;
  drawAccounts();
}

function drawAccounts() {
  const accounts = [...pool.accounts.values()];
  const rows = accounts.map((account) => ({ account, standing: standingOf(account) }));
  const none = accounts.length === 0;
  byId("first-run").hidden = !none;
  // Of a few there is room for what was decided below.
  document.body.classList.toggle("few", !none && accounts.length <= 12);
  byId("accounts-section").hidden = none;
  drawAttention(attentionOf(accounts, pool.summary, pool.health, pool.fleet));

  const providers = [...new Set(accounts.map((account) => account.provider))].sort();
  keyed(byId("provider"), ["", ...providers], (name) => name, (name) => element("option", { value: name }), (node, name) =>
    setText(node, name || "All providers"));
  const provider = byId("provider").value;
  byId("next").hidden = !provider || accounts.filter((one) => one.provider === provider).length < 2;

  const text = byId("search").value.trim().toLowerCase();
  const found = rows.filter(({ account, standing }) => (!provider || account.provider === provider)
    && (!view.keys || view.keys.has(account.key)) && matches(account, standing, text));
  for (const chip of byId("states").children) {
    const { state } = chip.dataset;
    const count = state ? found.filter((row) => row.standing.state === state).length : found.length;
    setText(part(chip, "count"), exact.format(count));
    chip.setAttribute("aria-pressed", String(view.state === state));
    chip.hidden = state !== "" && count === 0 && view.state !== state;
  }
  const shown = found.filter((row) => !view.state || row.standing.state === view.state);
  const column = COLUMNS.find((one) => one.name === view.sort);
  shown.sort((a, b) => {
    const [x, y] = [column.value(a), column.value(b)];
    return (x < y ? -1 : x > y ? 1 : 0) * view.way || (a.account.key < b.account.key ? -1 : 1);
  });
  for (const head of byId("columns").children) {
    const sorted = head.dataset.column === view.sort;
    head.setAttribute("aria-sort", sorted ? (view.way > 0 ? "ascending" : "descending") : "none");
  }
  keyed(byId("rows"), shown, (row) => row.account.key, makeRow, updateRow);
  byId("accounts").hidden = shown.length === 0;
  byId("rows-none").hidden = shown.length > 0;

  const usable = rows.filter(({ standing }) => ["available", "partly", "suspect"].includes(standing.state)).length;
  const flight = accounts.reduce((sum, one) => sum + one.in_flight, 0);
  const parts = [`${usable} of ${accounts.length} can serve`, `${plural(flight, "request")} in flight`];
  if (shown.length < accounts.length) parts.unshift(`${shown.length} shown`);
  setText(byId("summary"), parts.join(" · "));
  document.title = none ? "account pool" : `${usable}/${accounts.length} account pool`;
}

function matches({ key, models, cooldowns, headroom, problem }, standing, text) {
  if (!text) return true;
  const said = [key, standing.text, standing.why, problem ?? "", ...models,
    ...cooldowns.flatMap((one) => [one.model ?? "", one.signal, one.class]), ...headroom.map((one) => one.model ?? "")];
  return text.split(/\s+/).every((word) => said.some((one) => one.toLowerCase().includes(word)));
}

function drawAttention(found) {
  byId("attention-section").hidden = found.length === 0;
  keyed(byId("attention"), found, (item) => item.key, (item) => {
    const show = element("button", { type: "button", class: "quiet", "data-part": "show" }, "Show");
    show.addEventListener("click", () => reveal(pool.shown.get(item.key) ?? []));
    return element("li", {}, element("span", { class: "mark", "aria-hidden": "true" }, "!"),
      element("p", {}, element("strong", { "data-part": "text" }), " ", element("span", { "data-part": "more" })), show);
  }, (node, item) => {
    setClass(node, item.bad ? "bad" : "");
    setText(part(node, "text"), item.text);
    setText(part(node, "more"), item.more);
    part(node, "more").parentElement.title = item.more;
    const show = part(node, "show");
    show.hidden = item.accounts.length === 0;
    show.setAttribute("aria-label", `Show: ${item.text}`);
  });
  pool.shown = new Map(found.map((item) => [item.key, item.accounts]));
}

function reveal(keys) {
  if (keys.length === 1) {
    openDrawer(keys[0]);
    return;
  }
  clearFilters();
  view.keys = new Set(keys);
  drawAccounts();
  byId("accounts").scrollIntoView({ block: "start" });
}

function makeRow({ account }) {
  const cell = (name, ...children) => element("td", { role: "cell", "data-part": name, class: name }, ...children);
  const open = element("button", { type: "button", class: "name", click: () => openDrawer(account.key) },
    element("span", { class: "soft" }, `${account.provider}/`), account.label);
  const row = element("tr", { role: "row" },
    element("th", { role: "rowheader", scope: "row", class: "account" }, open),
    cell("state", element("span", { class: "state", "data-part": "standing" }), " ", element("span", { class: "soft why", "data-part": "why" })),
    cell("left"), cell("flight number"), cell("talks number"), cell("today number"));
  // The whole row is a target for a mouse; the button is what keys and screen readers use.
  row.addEventListener("click", (event) => {
    if (!event.target.closest("button") && !getSelection().toString()) openDrawer(account.key);
  });
  return row;
}

function updateRow(row, { account, standing }) {
  const state = part(row, "standing");
  setClass(state, `state ${standing.state}`);
  setText(state, standing.text);
  const back = standing.backAt ? `back in ${duration(until(standing.backAt))}` : "";
  const why = part(row, "why");
  setText(why, [back, shortCause(standing.why)].filter(Boolean).join(" · "));
  why.title = standing.why;
  row.classList.toggle("off", standing.state === "off");
  updateWindows(part(row, "left"), account);
  const figure = (name, text, label) => {
    const cell = row.querySelector(`.${name}`);
    setText(cell, text);
    if (label) cell.dataset.label = label;
    cell.classList.toggle("zero", text === "0" || text === "");
  };
  const { requests, input_tokens: into, output_tokens: out } = account.usage;
  figure("flight", account.max_concurrent ? `${account.in_flight}/${account.max_concurrent}` : String(account.in_flight), "in flight");
  figure("talks", String(account.sessions), "conversations");
  figure("today", requests ? `${counted.format(requests)} · ${counted.format(into + out)} tokens` : "0", requests ? "" : "today");
}

function updateWindows(cell, account) {
  const windows = windowsOf(account);
  const shown = windows.slice(0, WINDOWS_SHOWN);
  if (windows.length === 0) {
    drawn(cell, null, () => [element("span", { class: "soft" }, "not reported")]);
    return;
  }
  if (cell.dataset.drawn) {
    cell.replaceChildren();
    delete cell.dataset.drawn;
  }
  keyed(cell, shown, (one) => one.window, makeMeter, updateMeter);
  cell.title = windows.length > shown.length ? `and ${windows.length - shown.length} more` : "";
}

function makeMeter() {
  return element("div", { class: "meter" }, element("span", { class: "what", "data-part": "name" }),
    element("span", { class: "bar", role: "meter", "aria-valuemin": "0", "aria-valuemax": "100", "data-part": "bar" }, element("i")),
    element("span", { class: "share", "data-part": "left" }));
}

function updateMeter(node, { window: name, model, models, remaining, resets_at: resetsAt }) {
  const percent = Math.floor(remaining * 100 + 1e-6);
  const level = shareClass(remaining);
  const of = models > 1 ? `${model ?? "all models"}, the least of ${models}` : model;
  setText(part(node, "name"), name);
  setText(part(node, "left"), level === "empty" && percent === 0 ? "used up" : `${percent} %`);
  const bar = part(node, "bar");
  setClass(bar, `bar ${level}`);
  setClass(part(node, "left"), `share ${level}`);
  const reset = resetsAt && until(resetsAt) ? `, resets in ${duration(until(resetsAt))}` : "";
  const text = `${percent} % left${of ? ` (${of})` : ""}${reset}`;
  if (node.title !== `${name}: ${text}`) {
    node.title = `${name}: ${text}`;
    bar.setAttribute("aria-label", of ? `${name}, ${of}` : name);
    bar.setAttribute("aria-valuenow", String(percent));
    bar.setAttribute("aria-valuetext", text);
  }
  // Not a style attribute: the page's policy forbids them.
  bar.firstElementChild.style.width = `${percent}%`;
}
