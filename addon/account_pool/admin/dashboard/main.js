const THEMES = ["system", "light", "dark"];
const VIEWS = ["accounts", "activity", "usage"];
const STATUS = {
  connecting: "connecting …", live: "live", polling: "every 5 s", lost: "disconnected", token: "needs the admin token",
};
// What no event tells is asked for again after so long, while it is looked at.
const SLOW_MS = 30000, SESSIONS_MS = 5000;
let slowAt = 0, slowTimer = 0, noticeTimer = 0;

const viewNow = () => (VIEWS.includes(location.hash.slice(1)) ? location.hash.slice(1) : "accounts");

function draw() {
  const { state } = live;
  setClass(byId("live"), `live ${state}`);
  setText(byId("live-text"), STATUS[state] ?? state);
  document.body.classList.toggle("stale", state === "lost");
  if (!pool.summary || !pool.health) return;
  drawFleet();
  drawAccounts();
  drawDecisions();
  drawDrawer();
  const { version, pid, workers } = pool.health;
  setText(byId("about"), [`account-pool ${version}`, workers.length ? `${workers.length} workers of process ${pid}` : `process ${pid}`, pool.summary.accounts_file ?? "accounts of the environment"].join(" · "));
  // Not before the decisions: with the last account of the first batch all is there.
  document.body.dataset.ready = "true";
  document.body.dataset.live = state;
  drawSlowSoon();
}

function drawSlowSoon() {
  if (slowTimer || document.hidden) return;
  const every = viewNow() === "activity" ? SESSIONS_MS : SLOW_MS;
  slowTimer = setTimeout(() => { slowTimer = 0; drawSlow(); }, Math.max(slowAt + every - Date.now(), 0));
}

async function drawSlow() {
  slowAt = Date.now();
  if (live.state === "lost" || live.state === "token") return;
  try {
    if (viewNow() === "activity") {
      const [requests, { sessions }] = await Promise.all([asked("/requests?limit=1000"), asked("/sessions?limit=1000")]);
      rowsOf.requests = requests.requests;
      drawSessions(sessions);
      drawRequests(requests.requests);
    } else if (viewNow() === "usage") {
      const group = byId("group").value;
      const [day, usage, left] = await Promise.all([
        asked("/requests/series?step=1800"), asked(`/usage?days=30&group=${group}`), asked("/headroom"),
      ]);
      pool.headroomDay = left.samples;
      drawDay(day);
      drawMonth(usage, group);
    }
    document.body.dataset.slow = viewNow();
  } catch (error) {
    if (error instanceof Refused && error.status !== 401) say(error.message);
  }
}

function show() {
  const name = viewNow();
  document.body.dataset.view = name;
  for (const link of document.querySelectorAll("nav a")) {
    if (link.dataset.view === name) link.setAttribute("aria-current", "page");
    else link.removeAttribute("aria-current");
  }
  clearTimeout(slowTimer);
  slowTimer = slowAt = 0;
  if (pool.summary) drawSlowSoon();
}

// Says what was done, for a while.
function notice(text) {
  setText(byId("notice"), text);
  clearTimeout(noticeTimer);
  noticeTimer = setTimeout(() => setText(byId("notice"), ""), 8000);
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
}

async function start() {
  startTheme();
  startDialogs();
  startTable();
  startDrawer();
  startAdd();
  for (const id of ["kind", "decision-search"]) byId(id).addEventListener("input", drawDecisions);
  byId("group").addEventListener("change", drawSlow);
  byId("usage-all").addEventListener("click", () => { drawMonth.all = true; drawSlow(); });
  byId("requests-all").addEventListener("click", () => { drawRequests.all = true; drawRequests(rowsOf.requests); });
  await redeem();
  addEventListener("hashchange", show);
  show();
  startLive();
  // Countdowns, and what is over by time alone.
  setInterval(() => { if (!document.hidden) drawSoon(); }, 1000);
}

start();
