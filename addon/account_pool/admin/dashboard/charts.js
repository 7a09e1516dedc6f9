// Charts: small SVG of our own. A chart is a list of buckets and of series; bars are stacked.

const HIGH = 120, LEFT = 44, TOP = 8, BOTTOM = 18;

// Text keeps its size on a phone.
const wide = () => (innerWidth < 600 ? 330 : 480);

function chart({ title, unit, buckets, series, kind = "bars", label, tick, format, most: fixed }) {
  const WIDE = wide();
  const values = buckets.map((bucket) => series.map((one) => one.value(bucket)));
  const sums = values.map((row) => (kind === "bars" ? row.reduce((sum, value) => sum + (value ?? 0), 0) : Math.max(0, ...row.map((value) => value ?? 0))));
  const most = fixed ?? niceMost(Math.max(0, ...sums), format === seconds);
  const step = (WIDE - LEFT) / buckets.length;
  const y = (value) => TOP + (HIGH - (value / most) * HIGH);
  const total = sums.reduce((sum, value) => sum + value, 0);
  const peak = sums.indexOf(Math.max(...sums));
  const said = total === 0 ? "nothing" : `${kind === "bars" ? `${format(total)} in all, ` : ""}most ${format(sums[peak])} at ${label(buckets[peak])}`;
  const drawing = svg("svg", { class: "chart", role: "img", viewBox: `0 0 ${WIDE} ${TOP + HIGH + BOTTOM}`, "aria-label": `${title}: ${said}` });
  for (const share of [0, 0.5, 1]) {
    const at = y(most * share);
    drawing.append(svg("line", { class: "grid", x1: LEFT, x2: WIDE, y1: at, y2: at }),
      svg("text", { x: LEFT - 6, y: at + 4, "text-anchor": "end" }, format(most * share)));
  }
  buckets.forEach((bucket, i) => {
    const text = tick(bucket, i);
    const last = i === buckets.length - 1;
    if (text) drawing.append(svg("text", { x: last ? WIDE : LEFT + (i + 0.5) * step, y: TOP + HIGH + 14, "text-anchor": last ? "end" : "middle" }, text));
  });
  if (kind === "bars") drawBars(drawing, values, series, step, most);
  else drawLines(drawing, values, series, step, y);
  buckets.forEach((bucket, i) => {
    const told = series.map((one, n) => `${one.name} ${values[i][n] === null || values[i][n] === undefined ? "none" : format(values[i][n])}`).join(", ");
    drawing.append(svg("rect", { class: "over", x: LEFT + i * step, y: TOP, width: step, height: HIGH }, svg("title", {}, `${label(bucket)}: ${told}`)));
  });
  const table = element("details", { class: "figures-of" }, element("summary", {}, "Figures"));
  table.addEventListener("toggle", () => {
    if (table.open && table.children.length === 1) table.append(figuresOf(buckets, series, values, label, format, title));
  });
  return element("figure", { class: "panel" },
    element("figcaption", {}, element("h3", {}, title), element("span", { class: "soft" }, unit),
      element("span", { class: "legend" }, ...series.map((one) => element("span", {}, element("i", { class: one.color }), one.name)))),
    drawing, table);
}

function drawBars(drawing, values, series, step, most) {
  const width = Math.max(step - Math.min(2, step / 4), 1);
  values.forEach((row, i) => {
    let at = TOP + HIGH;
    row.forEach((value, n) => {
      if (!value) return;
      // What is there is seen.
      const tall = Math.max((value / most) * HIGH, 1);
      at -= tall;
      drawing.append(svg("rect", { class: series[n].color, x: LEFT + i * step, y: at, width, height: tall }));
    });
  });
}

function drawLines(drawing, values, series, step, y) {
  series.forEach((one, n) => {
    let path = "", open = false;
    values.forEach((row, i) => {
      const value = row[n];
      if (value === null || value === undefined) {
        open = false;
        return;
      }
      const x = LEFT + (i + 0.5) * step;
      const alone = !open && (values[i + 1]?.[n] ?? null) === null;
      path += `${open ? "L" : "M"}${x.toFixed(1)} ${y(value).toFixed(1)}${alone ? "h3" : ""}`;
      open = true;
    });
    drawing.append(svg("path", { class: `line ${one.color}`, d: path }));
  });
}

function figuresOf(buckets, series, values, label, format, title) {
  return element("div", { class: "scroll", tabindex: "0", role: "region", "aria-label": `${title}: figures` }, element("table", {},
    element("thead", {}, element("tr", {}, element("th", { scope: "col" }, "From"), ...series.map((one) => element("th", { scope: "col", class: "number" }, one.name)))),
    element("tbody", {}, ...buckets.map((bucket, i) => ({ bucket, i })).filter(({ i }) => values[i].some(Boolean)).map(({ bucket, i }) =>
      element("tr", {}, element("th", { scope: "row" }, label(bucket)), ...values[i].map((value) => element("td", { class: "number" }, value ? format(value) : "")))))));
}

// The next value that people read easily, as half of it is.
function niceMost(value, isTime) {
  if (value <= 0) return 1;
  if (isTime && value > 10) return [20, 30, 60, 120, 240, 600, 1200, 3600, 7200, 14400, 43200, 86400].find((one) => one >= value) ?? value;
  const power = 10 ** Math.floor(Math.log10(value));
  return [1, 2, 3, 4, 5, 6, 8, 10].map((one) => one * power).find((one) => one >= value);
}

const hour = new Intl.DateTimeFormat(undefined, { hour: "2-digit", minute: "2-digit", hourCycle: "h23" });
const dayName = new Intl.DateTimeFormat(undefined, { month: "short", day: "numeric", timeZone: "UTC" });
const whole = (value) => (value < 10 && value % 1 ? value.toFixed(1) : counted.format(value));
const seconds = (value) => (value === 0 ? "0" : duration(value).replace(" min", "m").replace(" ms", "ms").replace(" s", "s").replace(" h", "h"));

function drawDay(series) {
  const { buckets, problem } = series;
  const served = buckets.some((bucket) => bucket.requests);
  byId("day-none").hidden = served && !problem;
  setText(byId("day-none"), problem ?? "No requests in the last 24 hours. Point a tool at the pool: account-pool run -- claude");
  byId("figures").hidden = byId("day-charts").hidden = !served;
  if (!served) return;
  const sum = (value) => buckets.reduce((total, bucket) => total + (value(bucket) ?? 0), 0);
  const requests = sum((b) => b.requests);
  const share = (count) => `${count === 0 ? "0" : count / requests < 0.001 ? "< 0.1" : ((100 * count) / requests).toFixed(1)} % of requests`;
  const tokens = sum((b) => b.tokens.input + b.tokens.output);
  const [cost, saved] = [sum((b) => b.cost_usd), sum((b) => b.saved_usd)];
  const figures = [
    ["Requests", exact.format(requests), `${exact.format(sum((b) => b.ok))} answered`],
    ["Failovers", exact.format(sum((b) => b.failovers)), "unseen by the tools"],
    ["Refused", exact.format(sum((b) => b.refused)), share(sum((b) => b.refused))],
    ["Waited", exact.format(sum((b) => b.waited)), `${seconds(sum((b) => b.wait_s))} in all`],
    ["Tokens", counted.format(tokens), `${counted.format(sum((b) => b.tokens.output))} of them out`],
    ["Cost", money(cost) || "$0", saved ? `${money(saved)} saved by subscriptions` : "where a price is known"],
  ];
  drawn(byId("figures"), figures, () => figures.map(([name, value, more]) => element("div", { class: "panel figure" },
    element("span", { class: "soft" }, name), element("strong", {}, value), element("span", { class: "soft" }, more))));
  const label = (bucket) => hour.format(new Date(bucket.at));
  // Every fourth hour, at the full hour.
  const tick = (bucket) => { const at = new Date(bucket.at); return at.getMinutes() === 0 && at.getHours() % 4 === 0 ? label(bucket) : ""; };
  const one = (title, unit, list, more = {}) => chart({ title, unit, buckets, series: list, label, tick, format: whole, ...more });
  const s = (name, color, value) => ({ name, color, value });
  drawn(byId("day-charts"), [buckets, pool.headroomDay], () => [
    one("Requests", "every half hour", [s("answered", "good", (b) => b.ok), s("refused", "bad", (b) => b.refused), s("aborted", "idle", (b) => b.aborted)]),
    one("Failovers and refusals", "every half hour", [s("failovers", "wait", (b) => b.failovers), s("refusals", "bad", (b) => b.refused)]),
    one("Tokens", "every half hour", [s("cached", "cached", (b) => b.tokens.cached), s("in", "in", (b) => Math.max(b.tokens.input - b.tokens.cached, 0)), s("out", "out", (b) => b.tokens.output)]),
    one("Time to the first byte", "of good answers", [s("p95", "in", (b) => b.first_byte_s?.p95), s("p50", "out", (b) => b.first_byte_s?.p50)], { kind: "lines", format: seconds }),
    one("Time to the end", "of good answers", [s("p95", "in", (b) => b.duration_s?.p95), s("p50", "out", (b) => b.duration_s?.p50)], { kind: "lines", format: seconds }),
    one("Waiting for an account", "seconds, every half hour", [s("waited", "wait", (b) => b.wait_s)], { format: seconds }),
    headroomChart(pool.headroomDay ?? [], buckets, one),
  ].filter(Boolean));
}

// One line a provider: what its account with the most left has, which is what a tool can still use.
// Kept in memory, so the line begins with the proxy.
function headroomChart(samples, buckets, one) {
  const providers = [...new Set(samples.flatMap((sample) => Object.keys(sample.left)))].sort().slice(0, LINES.length);
  if (providers.length === 0) return null;
  const lefts = buckets.map((bucket, i) => {
    const end = buckets[i + 1]?.at ?? "~";
    return samples.findLast((sample) => sample.at >= bucket.at && sample.at < end)?.left ?? {};
  });
  const at = new Map(buckets.map((bucket, i) => [bucket, lefts[i]]));
  return one("Headroom", "of each provider's best account", providers.map((name, i) => ({ name, color: LINES[i], value: (b) => at.get(b)[name] ?? null })),
    { kind: "lines", most: 1, format: (value) => `${Math.round(value * 100)} %` });
}

const LINES = ["in", "out", "wait", "bad", "idle"];

function drawMonth(usage, group) {
  const served = usage.groups.length > 0;
  byId("usage-none").hidden = served;
  byId("usage").closest(".panel").hidden = byId("month-charts").hidden = !served;
  if (!served) return;
  const label = (bucket) => dayName.format(new Date(bucket.at));
  const tick = (bucket, i) => ((days.length - 1 - i) % 7 === 0 ? label(bucket) : "");
  const days = daysOf(usage.days);
  const cost = days.some((day) => day.cost_usd || day.saved_usd);
  drawn(byId("month-charts"), [days], () => [
    chart({ title: "Tokens", unit: "a day (UTC)", buckets: days, label, tick, format: whole, series: [
      { name: "cached", color: "cached", value: (b) => b.cached_tokens }, { name: "in", color: "in", value: (b) => b.input_tokens - b.cached_tokens }, { name: "out", color: "out", value: (b) => b.output_tokens }] }),
    chart({ title: "Requests", unit: "a day (UTC)", buckets: days, label, tick, format: whole, series: [{ name: "requests", color: "good", value: (b) => b.requests }] }),
    ...(cost ? [chart({ title: "Cost", unit: "a day (UTC)", buckets: days, label, tick, format: (value) => money(value) || "$0", series: [
      { name: "paid", color: "wait", value: (b) => b.cost_usd }, { name: "saved by subscriptions", color: "cached", value: (b) => b.saved_usd }] })] : []),
  ]);
  const priced = usage.groups.some((row) => row.cost_usd || row.saved_usd);
  const titles = [group[0].toUpperCase() + group.slice(1), "Requests", "Tokens in", "Cached", "Tokens out", ...(priced ? ["Cost"] : []), "Share of tokens"];
  drawn(byId("usage-columns"), titles, () => titles.map((title, i) => element("th", { scope: "col", class: i && i < titles.length - 1 ? "number" : null }, title)));
  const tokens = (row) => row.input_tokens + row.output_tokens;
  const total = Math.max(usage.groups.reduce((sum, row) => sum + tokens(row), 0), 1);
  const some = drawMonth.all ? usage.groups : usage.groups.slice(0, GROUPS_SHOWN);
  byId("usage-all").hidden = some.length === usage.groups.length;
  setText(byId("usage-all"), `Show all ${usage.groups.length}`);
  drawn(byId("usage-notes"), [usage.unpriced, usage.subscriptions], () => notesOf(usage));
  drawn(byId("usage"), some, () => some.map((row) => {
    const number = (text) => element("td", { class: "number" }, text);
    const share = tokens(row) / total;
    const bar = element("span", { class: "bar plain", "aria-hidden": "true" }, element("i"));
    bar.firstElementChild.style.width = `${share * 100}%`;
    return element("tr", {}, element("th", { scope: "row" }, row[group] || "unknown"), number(exact.format(row.requests)), number(counted.format(row.input_tokens)),
      number(row.input_tokens ? `${Math.round((100 * row.cached_tokens) / row.input_tokens)} %` : ""), number(counted.format(row.output_tokens)),
      priced ? number([row.cost_usd ? money(row.cost_usd) : "", row.saved_usd ? `${money(row.saved_usd)} saved` : ""].filter(Boolean).join(", ")) : null,
      element("td", { class: "shares" }, bar, ` ${Math.round(share * 100)} %`));
  }));
}

const GROUPS_SHOWN = 15;

// What the sums leave out, and what subscriptions were worth.
function notesOf({ unpriced = [], subscriptions = [] }) {
  const notes = [];
  const worth = subscriptions.filter((one) => one.saved_usd > 0);
  const saved = worth.reduce((sum, one) => sum + one.saved_usd, 0);
  const flat = worth.reduce((sum, one) => sum + (one.flat_usd ?? 0), 0);
  if (saved) notes.push(`${plural(worth.length, "subscription")} served what costs ${money(saved)} at list prices${flat ? `, for ${money(flat)}` : ""}.`);
  if (unpriced.length) notes.push(`No price is known of ${unpriced.slice(0, 5).map((one) => `${one.provider} ${one.model}`).join(", ")}${unpriced.length > 5 ? ` and ${unpriced.length - 5} more` : ""}: their cost is not included.`);
  return notes.map((text) => element("p", {}, text));
}

// Usage of all accounts and models, day by day, those without any included.
function daysOf(rows) {
  const names = ["requests", "input_tokens", "cached_tokens", "output_tokens", "cost_usd", "saved_usd"];
  const found = new Map(Array.from({ length: 30 }, (_, i) => {
    const day = new Date(Date.now() - (29 - i) * 86400000).toISOString().slice(0, 10);
    return [day, { at: day, ...Object.fromEntries(names.map((name) => [name, 0])) }];
  }));
  for (const row of rows) for (const name of names) if (found.has(row.day)) found.get(row.day)[name] += row[name] ?? 0;
  return [...found.values()];
}
