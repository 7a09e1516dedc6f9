// What the pool is like, as GET /events tells it: one stream for all tabs of this browser.
//
// The tab that leads reads the stream and passes it on; a hidden tab does not lead, so that
// nobody who does not look costs anything. Web Locks say who leads; where a page may not use them
// (plain HTTP to another name than localhost) tabs agree over the channel. Where there is no
// stream available, such as behind a middlebox that holds it back, the leader polls.

const CHANNEL = "account-pool";
const POLL_MS = 5000, SILENT_MS = 10000, DEAD_MS = 45000, CLAIM_MS = 2000, GONE_MS = 6000;

const pool = { accounts: new Map(), summary: null, health: null, fleet: null, decisions: new Map() };
const live = { state: "connecting", leading: false, id: Math.random().toString(36).slice(2), aliveAt: 0, stop: null };
let channel = null;
let drawing = 0;

function take(name, said) {
  switch (name) {
    case "health":
      // A proxy that was started again may have another log of decisions.
      if (pool.health && pool.health.instance !== said.instance) pool.decisions.clear();
      pool.health = said;
      break;
    case "summary": pool.summary = said; break;
    case "proxies": pool.fleet = said; break;
    case "accounts":
      // Everything follows, decisions included: what was withdrawn meanwhile goes.
      if (said.all) { pool.accounts.clear(); pool.decisions.clear(); }
      for (const key of said.removed) pool.accounts.delete(key);
      for (const account of said.accounts) pool.accounts.set(account.key, account);
      break;
    case "decision": pool.decisions.set(said.id, said); break;
    case "withdrawn": for (const id of said.ids) pool.decisions.delete(id); break;
    case "decisions": for (const one of said) pool.decisions.set(one.id, one); break;
    case "lost": if (live.leading) catchUp().catch(() => {}); break;
    case "state": live.state = said; break;
    default: return;
  }
  for (const { id } of [...pool.decisions.values()].sort((a, b) => a.number - b.number).slice(0, -1000)) pool.decisions.delete(id);
  drawSoon();
}

function drawSoon() {
  if (drawing) return;
  drawing = requestAnimationFrame(() => {
    drawing = 0;
    draw();
  });
}

// Takes it, and passes it on to the other tabs.
function tell(name, said) {
  take(name, said);
  channel?.postMessage({ name, said, from: live.id });
}

async function catchUp() {
  const { decisions } = await asked("/decisions?limit=1000");
  tell("decisions", decisions);
}

async function listen(signal) {
  const answer = await sent("/events", { signal });
  if (!answer.ok) throw await refusalOf(answer);
  if (!(answer.headers.get("content-type") ?? "").startsWith("text/event-stream") || !answer.body) {
    throw new Refused(answer.status, "no_stream", "no stream");
  }
  const reader = answer.body.pipeThrough(new TextDecoderStream()).getReader();
  let text = "", told = false;
  try {
    for (;;) {
      const waited = setTimeout(() => reader.cancel("silent"), told ? DEAD_MS : SILENT_MS);
      const { done, value } = await reader.read();
      clearTimeout(waited);
      if (done) {
        // It began, but what it says is held back.
        if (!told && !signal.aborted) throw new Refused(200, "held_back", "no stream");
        return;
      }
      const blocks = (text + value).split("\n\n");
      text = blocks.pop();
      for (const block of blocks) {
        const event = /^event: (.*)\ndata: (.*)$/.exec(block);
        if (!event) continue;
        told = true;
        if (live.state !== "live") tell("state", "live");
        if (event[1] === "bye") return;
        tell(event[1], JSON.parse(event[2]));
      }
    }
  } finally {
    reader.cancel().catch(() => {});
  }
}

async function poll() {
  const [health, all, { decisions }, proxies] = [
    await asked("/health"), await asked("/account-pool"), await asked("/decisions?limit=200"), await asked("/proxies"),
  ];
  const { accounts, ...summary } = all;
  tell("health", health);
  tell("summary", summary);
  tell("proxies", proxies);
  tell("accounts", { all: true, accounts, removed: [] });
  tell("decisions", decisions);
  tell("state", "polling");
}

const pause = (ms, signal) => new Promise((resolve) => {
  const timer = setTimeout(resolve, ms);
  signal.addEventListener("abort", () => { clearTimeout(timer); resolve(); }, { once: true });
});

// Whoever has closed the dialog is not asked again; the button is there.
const tokenGiven = (signal) => new Promise((resolve) => {
  for (const [target, name] of [[window, "token-given"], [signal, "abort"]]) target.addEventListener(name, resolve, { once: true });
});

async function lead(signal) {
  live.leading = true;
  for (let tries = 0; !signal.aborted; tries++) {
    try {
      await listen(signal);
      tries = 0;
      if (!signal.aborted) tell("state", "lost");
    } catch (error) {
      if (signal.aborted) break;
      if (error instanceof Refused && error.status === 401) {
        tell("state", "token");
        sessionStorage.removeItem(TOKEN);
        if (!(await askToken(error.message))) await tokenGiven(signal);
        continue;
      }
      if (error instanceof Refused && error.status !== 429) {
        for (let times = 0; times < 24 && !signal.aborted; times++) {
          try { await poll(); } catch { tell("state", "lost"); break; }
          await pause(POLL_MS, signal);
        }
      } else {
        tell("state", "lost");
      }
    }
    await pause(Math.min(500 * 2 ** tries, 10000), signal);
  }
  live.leading = false;
}

// Leads as soon as no other tab does, until this one is hidden.
function join() {
  if (live.stop || document.hidden) return;
  live.stop = new AbortController();
  const { signal } = live.stop;
  channel?.postMessage({ name: "ask", from: live.id });
  if (navigator.locks) {
    navigator.locks.request(CHANNEL, { signal }, () => lead(signal)).catch(() => {});
  } else if (channel) {
    elect(signal);
  } else {
    lead(signal);
  }
}

async function elect(signal) {
  live.aliveAt = Date.now() - GONE_MS + 300 + Math.random() * 300;
  let term = null;
  while (!signal.aborted) {
    if (term && term.signal.aborted) term = null;
    if (!term && Date.now() - live.aliveAt > GONE_MS) {
      live.term = term = new AbortController();
      lead(AbortSignal.any([signal, term.signal]));
    }
    if (term) channel.postMessage({ name: "alive", from: live.id });
    await pause(term ? CLAIM_MS : 300 + Math.random() * 300, signal);
  }
  if (term) channel.postMessage({ name: "gone", from: live.id });
}

function leave() {
  live.stop?.abort();
  live.stop = null;
}

function startLive() {
  if ("BroadcastChannel" in window) {
    channel = new BroadcastChannel(CHANNEL);
    channel.addEventListener("message", ({ data: { name, said, from, state } }) => {
      if (name === "ask") {
        if (live.leading && pool.summary) channel.postMessage({ name: "all", said: pool, state: live.state, from: live.id });
      } else if (name === "alive") {
        live.aliveAt = Date.now();
        // Two lead: the one of the smaller name goes on.
        if (live.leading && from < live.id) live.term?.abort();
      } else if (name === "gone") {
        live.aliveAt = 0;
      } else if (live.leading) {
        // What I read myself counts.
      } else if (name === "all") {
        Object.assign(pool, said);
        take("state", state);
      } else {
        take(name, said);
      }
    });
  }
  document.addEventListener("visibilitychange", () => (document.hidden ? leave() : join()));
  addEventListener("pagehide", leave);
  addEventListener("pageshow", join);
  join();
}
