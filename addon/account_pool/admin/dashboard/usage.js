const DAYS = 14;

function showUsage({ days }) {
  const today = new Date();
  const names = Array.from({ length: DAYS }, (_, back) =>
    new Date(today.getTime() - (DAYS - 1 - back) * 86400000).toISOString().slice(0, 10));
  const rows = new Map();
  for (const row of days) {
    const key = `${row.account}\n${row.model ?? ""}`;
    const known = rows.get(key) ?? { key, account: row.account, model: row.model, days: new Map() };
    known.days.set(row.day, row);
    rows.set(key, known);
  }
  const sorted = [...rows.values()].sort((a, b) => (a.key < b.key ? -1 : 1));
  keyed(byId("usage"), sorted, (row) => row.key, makeUsage, (node, row) => updateUsage(node, row, names));
  byId("usage-none").hidden = sorted.length > 0;
}

function makeUsage({ account, model }) {
  const number = (name) => element("td", { class: "number", "data-part": name });
  return element("tr", {},
    element("th", { scope: "row" }, account), element("td", { class: "key" }, model ?? "none"),
    number("requests"), number("input_tokens"), number("cached"), number("output_tokens"),
    element("td", { "data-part": "chart" }));
}

function updateUsage(row, { account, model, days }, names) {
  const sum = (name) => [...days.values()].reduce((total, day) => total + day[name], 0);
  const input = sum("input_tokens");
  setText(part(row, "requests"), counted.format(sum("requests")));
  setText(part(row, "input_tokens"), counted.format(input));
  setText(part(row, "cached"), input ? `${Math.round((100 * sum("cached_tokens")) / input)} %` : "");
  setText(part(row, "output_tokens"), counted.format(sum("output_tokens")));
  const told = names.map((day) => days.get(day));
  const drawn = JSON.stringify(told);
  const cell = part(row, "chart");
  if (cell.dataset.drawn === drawn) return;
  cell.dataset.drawn = drawn;
  cell.replaceChildren(chart(told, names, `${account} ${model ?? ""}`));
}

// One bar a day: cached input below, other input on it, output on top.
function chart(days, names, title) {
  const width = 7, gap = 2, height = 28;
  const most = Math.max(1, ...days.map((day) => (day ? day.input_tokens + day.output_tokens : 0)));
  const drawing = svg("svg", {
    class: "chart", role: "img", width: DAYS * (width + gap), height, viewBox: `0 0 ${DAYS * (width + gap)} ${height}`,
  }, svg("title", {}, `Tokens a day of ${title}: ${days.map((day, i) =>
    (day ? `${names[i]} ${counted.format(day.input_tokens)} in ${counted.format(day.output_tokens)} out` : "")).filter(Boolean).join("; ")}`));
  days.forEach((day, i) => {
    const x = i * (width + gap);
    drawing.append(svg("rect", { class: "day", x, y: height - 1, width, height: 1 }));
    if (!day) return;
    let y = height;
    const parts = [["cached", day.cached_tokens], ["in", day.input_tokens - day.cached_tokens], ["out", day.output_tokens]];
    for (const [name, tokens] of parts) {
      const tall = (tokens / most) * height;
      y -= tall;
      drawing.append(svg("rect", { class: name, x, y, width, height: tall }));
    }
  });
  return drawing;
}
