// The proxies that share the state, where there are several: which one this is, and what each does.

// So many are shown at once; of more the panel is closed until it is opened.
const FEW_PROXIES = 4;

const isFleet = (fleet) => (fleet?.proxies.length ?? 0) > 1;

// What of the fleet needs somebody: [{key, bad, text, more}].
function fleetAttention(fleet) {
  if (!isFleet(fleet)) return [];
  const found = [];
  const gone = fleet.proxies.filter((one) => one.state === "gone");
  if (gone.length > 0) {
    const last = gone.map((one) => one.seen_at).filter(Boolean).sort().at(-1);
    const names = gone.length <= 2 ? gone.map((one) => one.name).join(" and ") : plural(gone.length, "proxy", "proxies");
    found.push({
      key: "proxies gone", bad: true, text: `${names} ${gone.length === 1 ? "is" : "are"} gone`,
      more: `no heartbeat${last ? `, the last one ${ago(last)}` : ""}; its requests may be lost`,
    });
  }
  // Its own problems are in what GET /health reports.
  for (const one of fleet.proxies) {
    if (one.problem && !one.this && one.state !== "gone") found.push({ key: `proxy ${one.key}`, bad: true, text: `${one.name} has a problem`, more: one.problem });
  }
  if (fleet.versions.length > 1) {
    found.push({ key: "versions", bad: false, text: "The proxies run different versions", more: fleet.versions.join(", ") });
  }
  return found;
}

function drawFleet() {
  const { fleet } = pool;
  const shown = isFleet(fleet);
  const box = byId("fleet");
  byId("fleet-section").hidden = !shown;
  byId("here").hidden = !shown;
  if (!shown) return;
  const here = fleet.proxies.find((one) => one.this);
  setText(byId("here"), here?.name ?? "");
  // Once: whoever has closed it wants it closed.
  if (!box.dataset.drawn) {
    box.dataset.drawn = "true";
    box.open = fleet.proxies.length <= FEW_PROXIES;
  }
  const { summary } = fleet;
  const counts = ["running", "stopping", "gone", "unknown"].filter((state) => summary[state]).map((state) => `${summary[state]} ${state}`);
  setText(byId("fleet-summary"), [...counts, `${plural(summary.in_flight, "request")} in flight`].join(" · "));
  const usual = commonest(fleet.proxies.map((one) => one.version));
  keyed(byId("proxies"), fleet.proxies, (one) => one.key, makeProxy, (node, one) => updateProxy(node, one, usual));
}

// Where as many have one as the other: the first by name.
function commonest(values) {
  const counts = [...grouped(values, (value) => value)].map(([value, all]) => [all.length, value]);
  counts.sort(([a, x], [b, y]) => b - a || (x < y ? -1 : 1));
  return counts[0]?.[1];
}

function makeProxy() {
  return element("li", {},
    element("p", { class: "who" }, element("strong", { "data-part": "name" }), " ", element("span", { class: "here", "data-part": "this" }, "this one")),
    element("p", {}, element("span", { "data-part": "state" }), " ", element("span", { "data-part": "flight" })),
    element("p", { class: "soft" }, element("span", { "data-part": "version" }), element("span", { "data-part": "more" })),
    element("p", { class: "problem", "data-part": "problem" }));
}

function updateProxy(node, one, usual) {
  setText(part(node, "name"), one.name);
  part(node, "this").hidden = !one.this;
  setClass(node, one.this ? "this" : "");
  const state = part(node, "state");
  setClass(state, `state ${one.state}`);
  setText(state, one.state);
  const silent = one.state === "gone" || one.state === "unknown";
  setText(part(node, "flight"), silent ? (one.seen_at ? `last heard of ${ago(one.seen_at)}` : "") : `${one.in_flight} in flight`);
  const version = part(node, "version");
  setText(version, one.version === "unknown" ? "version unknown" : `version ${one.version}`);
  setClass(version, one.version === usual ? "" : "differs");
  version.title = `mitmproxy ${one.mitmproxy}`;
  const more = [one.workers > 1 ? `${one.workers} workers` : "", one.started_at && !silent ? `up for ${duration(Math.max((Date.now() - Date.parse(one.started_at)) / 1000, 1))}` : ""];
  setText(part(node, "more"), more.filter(Boolean).map((text) => ` · ${text}`).join(""));
  const problem = part(node, "problem");
  problem.hidden = !one.problem;
  setText(problem, one.problem ?? "");
  problem.title = one.problem ?? "";
}
