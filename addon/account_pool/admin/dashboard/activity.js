// What the pool decided, conversations, requests.

const SHOWN = 200, SAME_MS = 2000;
const EFFECTS = new Set(["cooldown", "disable", "suspect"]);
const KINDS = {
  cooldown: "cooldown", release: "back", disable: "disabled", enable: "back", suspect: "asked last", move: "failover",
  retry: "retry", wait: "wait", refusal: "refused", probe: "probe", silence: "silent",
};

// The decisions, newest first, each thing once: a failover says what became of the account
// it left, and the same again and again is one line.
function mergedDecisions() {
  const rows = [...pool.decisions.values()].sort((a, b) => b.number - a.number);
  const told = new Map();
  for (const row of rows) {
    if (row.effect && !EFFECTS.has(row.kind)) {
      const key = `${row.effect} ${row.account} ${row.covers ?? ""}`;
      if (!told.has(key)) told.set(key, []);
      told.get(key).push(Date.parse(row.at));
    }
  }
  const found = [], several = new Set(rows.map((row) => row.proxy)).size > 1;
  for (const row of rows) {
    if (EFFECTS.has(row.kind)) {
      const key = `${row.kind} ${row.account} ${row.covers ?? ""}`;
      if ((told.get(key) ?? []).some((at) => Math.abs(at - Date.parse(row.at)) <= SAME_MS)) continue;
    }
    const same = [row.kind, row.account, row.to, row.signal, row.covers, row.reason].join("\n");
    const last = found.at(-1);
    if (last && last.same === same && row.kind !== "wait") last.times += 1;
    else found.push({ row, same, times: 1, several });
  }
  return found;
}

function drawDecisions() {
  const kinds = byId("kind").value.split(" ").filter(Boolean);
  const text = byId("decision-search").value.trim().toLowerCase();
  const found = mergedDecisions().filter(({ row }) => (kinds.length === 0 || kinds.includes(row.kind)) && row.text.toLowerCase().includes(text));
  keyed(byId("decisions"), found.slice(0, SHOWN), (one) => one.row.id, makeDecision, updateDecision);
  byId("decisions-box").hidden = found.length === 0;
  byId("decisions-none").hidden = found.length > 0;
  setText(byId("decisions-none"), pool.decisions.size ? "No decision matches." : "No decisions so far: no failover, cooldown, wait or refusal.");
}

function makeDecision() {
  return element("li", {}, element("span", { "data-part": "at" }), element("span", { "data-part": "kind" }),
    element("div", { "data-part": "what" }));
}

function updateDecision(node, { row, times, several }) {
  const value = [row.id, row.ended_at, row.times, row.text, times, several];
  drawn(part(node, "at"), row.at, () => [instant(row.at)]);
  setClass(part(node, "kind"), `kind ${row.kind}`);
  setText(part(node, "kind"), KINDS[row.kind] ?? row.kind);
  drawn(part(node, "what"), value, () => {
    // The evidence follows below, once.
    const at = row.signal ? row.text.indexOf(` (${row.signal}`) : -1;
    const text = at > 0 ? row.text.slice(0, at) : row.text;
    const again = Math.max(times, row.times ?? 1);
    const over = row.kind === "cooldown" && row.released_by && row.released_by !== "time" ? `ended early by ${row.released_by}` : "";
    const list = evidenceList(row.evidence);
    const why = row.signal && at > 0 ? element("span", { class: "soft" }, row.signal) : null;
    return [
      several ? element("p", { class: "soft" }, row.proxy) : null,
      element("p", {}, text.replace(" -> ", " → "), again > 1 ? element("b", { class: "times", title: "so many times" }, ` × ${again}`) : null),
      why || over ? element("p", { class: "soft" }, why, why && over ? " · " : "", over) : null,
      list ? element("details", {}, element("summary", {}, plural(Object.keys(row.evidence).length, "header value")), list) : null,
    ].filter(Boolean);
  });
}

// -- conversations, folded by the tool that has them

const rowsOf = { requests: [] };

function drawSessions(sessions) {
  const tools = new Map();
  for (const { session, tool } of rowsOf.requests) if (session && tool && !tools.has(session)) tools.set(session, tool);
  const named = sessions.map((one) => ({ ...one, tool: tools.get(one.session) ?? `${one.account.split("/")[0]} client` }));
  const groups = [...grouped(named, (one) => one.tool)];
  keyed(byId("sessions"), groups, ([tool]) => tool, () => element("details", {},
    element("summary", {}, element("strong", { "data-part": "tool" }), " ", element("span", { class: "soft", "data-part": "sum" })),
    element("ul", { "data-part": "each" })), (node, [tool, own]) => {
    setText(part(node, "tool"), tool);
    const accounts = new Set(own.map((one) => one.account));
    const busy = own.reduce((sum, one) => sum + one.turns, 0);
    setText(part(node, "sum"), [plural(own.length, "conversation"), plural(accounts.size, "account"), busy ? `${busy} in flight` : "", `last used ${own[0].turns ? "now" : ago(own[0].used_at)}`].filter(Boolean).join(" · "));
    keyed(part(node, "each"), own, (one) => one.key, makeSession, (item, one) => {
      setText(part(item, "used"), one.turns ? "in flight" : ago(one.used_at));
      setText(part(item, "account"), one.account + (one.pinned ? " (pinned)" : ""));
    });
  });
  byId("sessions").hidden = sessions.length === 0;
  byId("sessions-none").hidden = sessions.length > 0;
}

function makeSession({ key, session }) {
  const close = element("button", {
    type: "button", class: "quiet", "aria-label": `Forget conversation ${session ?? key}`, title: "Its next request goes where the strategy says",
    click: () => act(close, async () => { if (await changed("/sessions/close", { key })) await drawSlow(); }),
  }, "Forget");
  return element("li", {}, element("code", { title: key }, session ?? key), element("span", { "data-part": "account" }),
    element("span", { class: "soft", "data-part": "used" }), close);
}

// -- requests

const resultOf = ({ status, http_status: http }) => (status === "ok" ? "ok" : status === "aborted" ? "aborted" : `refused${http ? ` ${http}` : ""}`);

function drawRequests(rows) {
  byId("requests").closest(".panel").hidden = rows.length === 0;
  byId("requests-none").hidden = rows.length > 0;
  const shown = drawRequests.all ? 200 : 20;
  byId("requests-all").hidden = Boolean(drawRequests.all) || rows.length <= shown;
  keyed(byId("requests"), rows.slice(0, shown), (row) => String(row.number), (row) => {
    const cell = (text, name = null) => element("td", { class: name }, text);
    const tokens = row.tokens ?? {};
    return element("tr", {}, element("td", {}, instant(row.at)),
      element("td", {}, element("span", { class: `result ${row.status}` }, resultOf(row))),
      cell(row.account ?? "none"), cell(row.model ?? ""), cell(row.tool ?? ""), cell(String(row.attempts), "number"),
      cell(row.first_byte_s === null ? "" : duration(row.first_byte_s), "number"), cell(duration(row.duration_s), "number"),
      cell(tokens.input === null || tokens.input === undefined ? "" : counted.format(tokens.input), "number"),
      cell(tokens.output === null || tokens.output === undefined ? "" : counted.format(tokens.output), "number"),
      element("td", { class: "number", title: row.saved ? "covered by the subscription" : null }, row.saved ? `(${money(row.cost_usd)})` : money(row.cost_usd)));
  }, () => {});
}
