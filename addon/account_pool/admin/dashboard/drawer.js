// One account: why it is as it is, what it has left, what can be done about it.

let opened = null;

function startDrawer() {
  const drawer = byId("drawer");
  drawer.addEventListener("close", () => { opened = null; });
  // A click beside it closes it.
  drawer.addEventListener("click", (event) => { if (event.target === drawer) drawer.close(); });
}

function openDrawer(key) {
  opened = key;
  byId("drawer-body").replaceChildren(makeDrawer(key));
  drawDrawer();
  if (!byId("drawer").open) byId("drawer").showModal();
  drawLatest(key);
}

function makeDrawer(key) {
  const { provider, label } = pool.accounts.get(key);
  const of = { provider, label };
  const button = (name, text, work, kind = "quiet") => {
    const made = element("button", { type: "button", class: kind, "data-part": name, click: () => act(made, work) }, text);
    return made;
  };
  const section = (name, title, node) => element("section", { "data-part": name }, element("h3", {}, title), node);
  return element("div", {},
    element("p", { class: "standing" }, element("span", { class: "state", "data-part": "standing" }), " ", element("span", { class: "soft", "data-part": "back" })),
    element("div", { class: "row" },
      button("enable", "Enable", () => changed("/account-pool/enable", of), ""),
      button("clear", "End cooldowns", () => changed("/account-pool/clear-cooldown", of), ""),
      button("disable", "Disable", () => changed("/account-pool/disable", of))),
    element("div", { "data-part": "reasons", class: "reasons" }),
    section("windows", "Headroom", element("div", {}, element("div", { "data-part": "meters" }),
      element("p", { class: "row", "data-part": "asked" }, button("ask", "Ask the provider now", () => changed("/usage/refresh", of)), element("span", { class: "soft", "data-part": "answer" })))),
    section("now", "Now", element("dl", { class: "facts", "data-part": "facts" })),
    section("decided", "Decisions", element("ol", { class: "decisions", "data-part": "decisions" })),
    section("served", "Latest requests", element("div", { "data-part": "requests" })),
    section("written", "Settings", element("dl", { class: "facts", "data-part": "settings" })),
    element("p", { class: "remove" }, button("remove", "Remove this account …", async () => {
      const sure = await confirmed(`Remove ${key}?`,
        "It is removed from the pool and from its file; a copy of the file is kept. Requests in flight finish. To pause it, use Disable.", "Remove");
      if (sure && (await changed("/account-pool/remove", of))) byId("drawer").close();
    }, "plain")));
}

function drawDrawer() {
  const account = opened && pool.accounts.get(opened);
  if (!account) {
    if (byId("drawer").open) byId("drawer").close();
    return;
  }
  const body = byId("drawer-body");
  setText(byId("drawer-title"), account.key);
  const standing = standingOf(account);
  setClass(part(body, "standing"), `state ${standing.state}`);
  setText(part(body, "standing"), standing.text);
  setText(part(body, "back"), standing.backAt ? `back in ${duration(until(standing.backAt))}` : "");

  // What is off is switched in accounts.yaml.
  const off = account.state === "off";
  part(body, "enable").hidden = off || account.disabled === null;
  part(body, "disable").hidden = off || account.disabled !== null;
  part(body, "clear").hidden = (account.cooldowns.length === 0 && account.asked_last.length === 0) || account.disabled !== null;
  const reasons = reasonsOf(account);
  keyed(part(body, "reasons"), reasons, (one) => one.key, makeReason, (node, one) => setText(part(node, "text"), one.text));

  const windows = account.headroom;
  part(body, "windows").hidden = windows.length === 0 && !account.look_up;
  part(body, "asked").hidden = !account.look_up;
  const credits = account.look_up?.reset_credits;
  setText(part(body, "answer"), account.look_up?.problem ?? (credits ? `${plural(credits, "reset credit")} left` : ""));
  const groups = [...grouped(windows, (one) => one.model ?? "")].sort(([a], [b]) => (a < b ? -1 : 1));
  keyed(part(body, "meters"), groups, ([model]) => model, ([model]) =>
    element("div", { class: "meters" }, model ? element("h4", {}, model) : element("h4", {}, "all models"), element("div", { "data-part": "each" })),
  (node, [, own]) => keyed(part(node, "each"), own, (one) => one.window, () => {
    const meter = makeMeter();
    meter.append(element("span", { class: "soft", "data-part": "reset" }));
    return meter;
  }, (meter, one) => {
    updateMeter(meter, { ...one, models: 1 });
    setText(part(meter, "reset"), one.resets_at && until(one.resets_at) ? `resets in ${duration(until(one.resets_at))}` : "");
  }));
  if (groups.length === 1) part(body, "meters").querySelector("h4").hidden = !groups[0][0];

  const { usage } = account;
  facts(part(body, "facts"), [
    ["In flight", account.max_concurrent ? `${account.in_flight} of ${account.max_concurrent} at most` : account.in_flight],
    ["Conversations", account.sessions],
    ["Served since the start", exact.format(account.served)],
    ["Requests today", exact.format(usage.requests)],
    ["Tokens today", usage.requests ? `${counted.format(usage.input_tokens)} in (${usage.input_tokens ? Math.round((100 * usage.cached_tokens) / usage.input_tokens) : 0} % cached), ${counted.format(usage.output_tokens)} out` : "none"],
    ["Clients that left early", account.departures || null],
    ["Broken connections", account.broken || null],
  ]);
  facts(part(body, "settings"), [
    ["Priority", account.priority], ["Weight", account.weight],
    ["Models", account.models.length ? account.models.join(", ") : "all"],
    ["Requests at once", account.max_concurrent ?? "no limit"],
    ["Seconds between starts", account.min_interval_s || null],
    ["Reserve", Object.entries(account.reserve).map(([window, share]) => `${window}: ${Math.round(share * 100)} %`).join(", ") || null],
    ["Shown in flows as", account.placeholder],
    ["File", pool.summary?.accounts_file ?? "none: the environment"],
  ]);
  const decided = mergedDecisions().filter((one) => one.row.account === account.key || one.row.to === account.key).slice(0, 8);
  part(body, "decided").hidden = decided.length === 0;
  keyed(part(body, "decisions"), decided, (one) => one.row.id, makeDecision, updateDecision);
}

function facts(list, pairs) {
  drawn(list, pairs, () => pairs.filter(([, value]) => value !== null).flatMap(([name, value]) => [element("dt", {}, name), element("dd", {}, String(value))]));
}

function reasonsOf({ cooldowns, asked_last: askedLast, disabled, problem, state, reason }) {
  const found = [];
  const add = (one, effect) => found.push({ key: `${effect} ${one.model ?? ""} ${one.since_at}`, cause: one, text: `${effect}: ${causeOf(one)}` });
  if (disabled) add(disabled, "disabled");
  if (problem) found.push({ key: `problem ${problem}`, text: problem });
  for (const [words, list] of [["on cooldown", cooldowns], ["asked last", askedLast]]) {
    for (const one of list) {
      const left = one.until_at === null ? 1 : until(one.until_at);
      if (left > 0) {
        add(one, one.model ? `${one.model} ${words}` : words);
        found.at(-1).text = `${one.model ? `${one.model}: ` : ""}${words}${one.until_at ? ` for ${duration(left)}` : ""}: ${causeOf(one)}`;
      }
    }
  }
  if (found.length === 0 && state === "full") found.push({ key: "full", text: reason });
  if (state === "off") found.push({ key: "off", text: "accounts.yaml says `enabled: false`; change it there." });
  return found;
}

function makeReason({ cause }) {
  const node = element("div", { class: "reason" }, element("p", { "data-part": "text" }));
  const list = cause && evidenceList(cause.evidence);
  if (list) node.append(element("details", {}, element("summary", {}, plural(Object.keys(cause.evidence).length, "header value")), list));
  if (cause?.since_at) node.append(element("p", { class: "soft" }, "since ", instant(cause.since_at)));
  return node;
}

async function drawLatest(key) {
  const { requests } = await asked(`/requests?limit=8&account=${encodeURIComponent(key)}`).catch(() => ({ requests: [] }));
  if (opened !== key) return;
  const body = byId("drawer-body");
  part(body, "served").hidden = requests.length === 0;
  part(body, "requests").replaceChildren(element("ul", { class: "latest" }, ...requests.map((row) => element("li", {},
    instant(row.at), element("span", { class: `result ${row.status}` }, resultOf(row)),
    element("span", {}, row.model ?? ""), element("span", { class: "soft" }, [row.tool, duration(row.duration_s), money(row.cost_usd)].filter(Boolean).join(" · "))))));
}
