const SHOWN = 200;
let lastNumber = 0;
// Waits that were not over when they were shown.
const waiting = new Set();

function forgetDecisions() {
  lastNumber = 0;
  waiting.clear();
  byId("decisions").replaceChildren();
}

// Returns the number to ask on from.
function knownDecisions() {
  return Math.min(lastNumber, ...[...waiting].map((number) => number - 1));
}

function showDecisions({ decisions }) {
  const list = byId("decisions");
  for (const decision of [...decisions].sort((a, b) => a.number - b.number)) {
    const { number, kind, ended_at: endedAt } = decision;
    if (number > lastNumber) {
      lastNumber = number;
      list.prepend(makeDecision(decision));
      if (kind === "wait" && endedAt === null) waiting.add(number);
    } else if (endedAt !== null && waiting.delete(number)) {
      list.querySelector(`[data-number="${number}"]`)?.replaceWith(makeDecision(decision));
    }
  }
  while (list.children.length > SHOWN) {
    waiting.delete(Number(list.lastElementChild.dataset.number));
    list.lastElementChild.remove();
  }
  byId("decisions-none").hidden = list.children.length > 0;
}

function makeDecision(decision) {
  const { number, at, kind, text, evidence } = decision;
  const item = element("li", { "data-number": number },
    element("time", { datetime: at }, clock.format(new Date(at))),
    element("span", { class: "kind" }, kind), ` ${text}`);
  if (hasMore(evidence)) item.append(makeEvidence(evidence));
  return item;
}
