const STATES = {
  available: "available", full: "full", cooling: "on cooldown", disabled: "disabled", off: "off",
  no_credential: "no credential",
};

function showAccounts({ accounts, summary }) {
  const { total, available, cooling_down: cooling, disabled, in_flight: inFlight } = summary;
  setText(byId("summary"), total === 0
    ? "no accounts yet"
    : `${available} of ${total} available, ${cooling} on cooldown, ${disabled} disabled, ${inFlight} in flight`);
  const providers = [...new Set(accounts.map((account) => account.provider))];
  keyed(byId("providers"), providers, (name) => name, makeProvider, (node, name) => {
    const mine = accounts.filter((account) => account.provider === name);
    part(node, "next").hidden = mine.length < 2;
    keyed(part(node, "cards"), mine, (account) => account.key, makeCard, updateCard);
  });
  keyed(byId("add-providers"), providers, (name) => name, (name) => element("option", { value: name }), () => {});
}

function makeProvider(name) {
  const next = element("button", {
    type: "button", class: "quiet", "data-part": "next", "aria-label": `Next account of ${name}`,
    click: () => act(next, () => changed("/account-pool/next", { provider: name })),
  }, "Next");
  return element("section", { class: "provider", "aria-label": name },
    element("div", { class: "row" }, element("h3", {}, name), next),
    element("div", { class: "cards", "data-part": "cards" }));
}

function makeCard({ key, provider, label }) {
  const of = { provider, label };
  const button = (text, attributes, work) => {
    const made = element("button", {
      type: "button", class: "quiet", "aria-label": `${text} ${key}`, ...attributes,
      click: () => act(made, work),
    }, text);
    return made;
  };
  return element("article", { class: "card", "aria-label": key },
    element("div", { class: "top" },
      element("h4", {}, label), element("span", { class: "state", "data-part": "state" })),
    element("p", { class: "facts", "data-part": "facts" }),
    element("div", { "data-part": "why" }),
    element("ul", { class: "windows", "data-part": "windows", "aria-label": `Remaining allowances of ${key}` }),
    element("div", { class: "actions" },
      button("Clear", { "data-part": "clear" }, () => changed("/account-pool/clear-cooldown", of)),
      button("Disable", { "data-part": "disable" }, () => changed("/account-pool/disable", of)),
      button("Enable", { "data-part": "enable" }, () => changed("/account-pool/enable", of)),
      button("Remove", { class: "danger", "data-part": "remove" }, () => remove(key, of))));
}

async function remove(key, of) {
  const sure = await confirmed(`Remove ${key}?`,
    "It is removed from the pool and from accounts.yaml; a copy of the file is kept. Running requests finish.", "Remove");
  if (sure) await changed("/account-pool/remove", of);
}

function updateCard(card, account) {
  const state = part(card, "state");
  state.className = `state ${account.state}`;
  setText(state, STATES[account.state] ?? account.state);
  const { usage = {} } = account;
  setText(part(card, "facts"), [
    `${account.in_flight} in flight`,
    `${account.sessions} ${account.sessions === 1 ? "session" : "sessions"}`,
    `${account.served} served`,
    usage.requests ? `today ${counted.format(usage.input_tokens)} in, ${counted.format(usage.output_tokens)} out` : "",
  ].filter(Boolean).join(" · "));
  keyed(part(card, "why"), reasons(account), (reason) => reason.key,
    makeReason, updateReason);
  keyed(part(card, "windows"), account.headroom, (w) => `${w.window} ${w.model ?? ""}`, makeWindow, updateWindow);
  const clear = account.cooldowns.length === 0 && account.asked_last.length === 0;
  part(card, "clear").hidden = clear && account.disabled === null;
  // What is off is switched in accounts.yaml.
  part(card, "disable").hidden = account.state === "off" || account.disabled !== null;
  part(card, "enable").hidden = account.state === "off" || account.disabled === null;
}

function makeReason({ evidence }) {
  const made = element("div", {}, element("p", { "data-part": "text" }));
  if (hasMore(evidence)) made.append(makeEvidence(evidence));
  return made;
}

function updateReason(node, reason) {
  node.className = reason.bad ? "why bad" : "why";
  setText(part(node, "text"), reason.text);
}

function reasons({ cooldowns, asked_last: askedLast, disabled, problem, state, reason }) {
  const found = [];
  if (disabled) found.push({ ...cause(disabled, "disabled"), bad: true });
  if (problem) found.push({ key: "problem", bad: true, text: problem });
  for (const [words, list] of [["on cooldown for", cooldowns], ["asked last for", askedLast]]) {
    for (const one of list) {
      const model = one.model ? ` (${one.model})` : "";
      // From the deadline, not from what was left when it was asked: the seconds count down.
      const left = Math.max((Date.parse(one.until_at) - Date.now()) / 1000, 0);
      found.push(cause(one, `${words} ${duration(left)}${model}`));
    }
  }
  if (found.length === 0 && state !== "available" && reason) found.push({ key: "reason", text: reason });
  return found;
}

// Another cause of the same is another key: its evidence is made once.
function cause({ signal, class: cls, evidence, model, since_at: since }, effect) {
  const said = hasMore(evidence) ? "" : told(evidence);
  return {
    key: `${since} ${model ?? ""}`, evidence,
    text: `${effect}: ${signal || cls}${said ? ` (${said})` : ""}`,
  };
}

function makeWindow() {
  const bar = element("span", { class: "bar", role: "meter", "aria-valuemin": "0", "aria-valuemax": "100", "data-part": "bar" },
    element("i"));
  return element("li", {}, element("span", { "data-part": "name" }), bar, element("span", { class: "number", "data-part": "left" }));
}

function updateWindow(node, { window, model, remaining, resets_at: resetsAt }) {
  const name = model ? `${window} ${model}` : window;
  const percent = Math.round(remaining * 100);
  const reset = resetsAt ? `, resets in ${duration(Math.max((Date.parse(resetsAt) - Date.now()) / 1000, 0))}` : "";
  setText(part(node, "name"), name);
  setText(part(node, "left"), `${percent} % left${reset}`);
  const bar = part(node, "bar");
  bar.className = percent <= 2 ? "bar empty" : percent <= 20 ? "bar low" : "bar";
  bar.setAttribute("aria-label", name);
  bar.setAttribute("aria-valuenow", String(percent));
  // Not a style attribute: the page's policy forbids them.
  bar.firstElementChild.style.width = `${percent}%`;
}
