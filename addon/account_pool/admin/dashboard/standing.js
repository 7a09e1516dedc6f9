// What an account does now, in words, and what a person should look at first. Values in, values out.

// In the order of the filters; a lower rank needs somebody sooner.
const STATES = {
  disabled: { rank: 0, name: "disabled" },
  no_credential: { rank: 1, name: "no credential" },
  cooling: { rank: 2, name: "on cooldown" },
  partly: { rank: 3, name: "partly on cooldown" },
  suspect: { rank: 4, name: "asked last" },
  full: { rank: 5, name: "full" },
  available: { rank: 6, name: "available" },
  off: { rank: 7, name: "off" },
};
// A share that is left: nearly none, and little.
const EMPTY = 0.02, LOW = 0.2, ATTENTION = 0.05;

// Returns {state, text, why, backAt}.
function standingOf(account) {
  const running = account.cooldowns.filter((one) => one.until_at === null || until(one.until_at) > 0);
  const latest = (list) => list.reduce((last, one) => (last === null || (one.until_at ?? "~") > (last.until_at ?? "~") ? one : last), null);
  const whole = latest(running.filter((one) => one.model === null));
  const partly = running.filter((one) => one.model !== null);
  if (account.state === "cooling" && whole) {
    return { state: "cooling", text: STATES.cooling.name, why: causeOf(whole), backAt: whole.until_at };
  }
  if (account.state === "available" || account.state === "cooling") {
    const first = partly.reduce((next, one) => (next === null || (one.until_at ?? "~") < (next.until_at ?? "~") ? one : next), null);
    if (first) {
      return {
        state: "partly", text: `${STATES.partly.name} (${plural(partly.length, "model")})`,
        why: `${partly.map((one) => one.model).slice(0, 3).join(", ")}: ${shortCause(causeOf(first))}`, backAt: first.until_at,
      };
    }
    const open = account.asked_last.find((one) => until(one.until_at) > 0);
    if (open) return { state: "suspect", text: STATES.suspect.name, why: causeOf(open), backAt: open.until_at };
    return { state: "available", text: STATES.available.name, why: account.problem ?? "", backAt: null };
  }
  const state = STATES[account.state] ? account.state : "available";
  const why = account.problem ?? (account.disabled ? causeOf(account.disabled) : account.reason);
  return { state, text: STATES[account.state]?.name ?? account.state, why, backAt: null };
}

// In a table the sentence is enough; the status and the code stand in the drawer.
const shortCause = (why) => why.replace(/^\d{3} (?:code=\S+: (?=.))?/, "");

const causeOf = ({ signal, class: cls }) => signal || cls.replaceAll("_", " ");

const shareClass = (remaining) => (remaining <= EMPTY ? "empty" : remaining <= LOW ? "low" : "");

// The windows of an account, each once with the model that has the least left, tightest first.
function windowsOf({ headroom }) {
  const found = new Map();
  for (const one of headroom) {
    const known = found.get(one.window);
    if (!known) found.set(one.window, { ...one, models: 1 });
    else found.set(one.window, { ...(one.remaining < known.remaining ? one : known), models: known.models + 1 });
  }
  return [...found.values()].sort((a, b) => a.remaining - b.remaining);
}

// What needs somebody, the worst first: [{key, bad, text, more, accounts}].
function attentionOf(accounts, summary, health, fleet) {
  const found = [];
  const add = (bad, key, text, more = "", keys = []) => found.push({ bad, key, text, more, accounts: keys });
  if (health?.stopping) add(true, "stopping", "The proxy is shutting down", "requests in flight finish, new ones are refused");
  if (health?.state_problem) add(true, "state", "What the pool learns is kept in memory only", health.state_problem);
  for (const task of health?.failed_tasks ?? []) {
    if (!task.running) add(true, `task ${task.name}`, `A background task has ended: ${task.name}`, `${task.error}; the log has the place`);
  }
  for (const { bad, key, text, more } of fleetAttention(fleet)) add(bad, key, text, more);
  const standing = new Map(accounts.map((account) => [account.key, standingOf(account)]));
  const byProvider = Map.groupBy ? Map.groupBy(accounts, (one) => one.provider) : grouped(accounts, (one) => one.provider);
  for (const [provider, own] of byProvider) {
    const enabled = own.filter((one) => one.state !== "off");
    if (enabled.length === 0 || !enabled.every((one) => ["disabled", "no_credential", "cooling"].includes(standing.get(one.key).state))) continue;
    const back = enabled.map((one) => standing.get(one.key).backAt).filter(Boolean).sort()[0];
    add(true, `none ${provider}`, `No account of ${provider} can serve`, back ? `the first is back in ${duration(until(back))}` : "none returns by itself", own.map((one) => one.key));
  }
  const sorts = [
    ["disabled", true, (n) => (n === 1 ? "is disabled" : "are disabled")],
    ["no_credential", true, (n) => (n === 1 ? "has no credential" : "have no credential")],
  ];
  for (const [state, bad, verb] of sorts) {
    const own = accounts.filter((one) => standing.get(one.key).state === state);
    if (own.length === 0) continue;
    const causes = new Set(own.map((one) => standing.get(one.key).why));
    const first = shortCause([...causes][0]);
    add(bad, state, `${naming(own)} ${verb(own.length)}`, causes.size > 1 ? `${first}, and ${plural(causes.size - 1, "other cause")}` : first, own.map((one) => one.key));
  }
  const broken = accounts.filter((one) => one.problem && !["no_credential", "disabled"].includes(standing.get(one.key).state));
  for (const [why, own] of grouped(broken, (one) => one.problem)) {
    add(false, `problem ${why}`, `${naming(own)}: a problem with the credential`, why, own.map((one) => one.key));
  }
  const short = accounts.filter((one) => one.tightest && one.tightest.remaining <= ATTENTION && ["available", "full"].includes(standing.get(one.key).state));
  if (short.length > 0) {
    add(false, "short", `${naming(short)} ${short.length === 1 ? "has" : "have"} little left`,
      short.slice(0, 3).map((one) => `${one.tightest.window}${one.tightest.model ? ` ${one.tightest.model}` : ""} ${Math.floor(one.tightest.remaining * 100 + 1e-6)} %`).join(", "), short.map((one) => one.key));
  }
  for (const warning of summary?.warnings ?? []) add(false, `warning ${warning}`, warning);
  return found.sort((a, b) => Number(b.bad) - Number(a.bad));
}

const naming = (accounts) => (accounts.length <= 2 ? accounts.map((one) => one.key).join(" and ") : `${accounts.length} accounts`);

function grouped(items, keyOf) {
  const found = new Map();
  for (const item of items) {
    const key = keyOf(item);
    if (!found.has(key)) found.set(key, []);
    found.get(key).push(item);
  }
  return found;
}
