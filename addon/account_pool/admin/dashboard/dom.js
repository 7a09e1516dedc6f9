"use strict";

const byId = (id) => document.getElementById(id);

// Text is set as text everywhere: names, headers and models come from elsewhere.
function element(name, attributes = {}, ...children) {
  const made = document.createElement(name);
  for (const [key, value] of Object.entries(attributes)) {
    if (typeof value === "function") made.addEventListener(key, value);
    else if (value !== null && value !== undefined) made.setAttribute(key, value);
  }
  made.append(...children);
  return made;
}

function setText(node, text) {
  // A screen reader reads again what is written again.
  if (node.textContent !== text) node.textContent = text;
}

// Keeps one child per key and their order. What stays is not touched: a node that is moved
// loses the focus.
function keyed(parent, items, keyOf, make, update) {
  const wanted = new Set(items.map(keyOf));
  const known = new Map();
  for (const child of [...parent.children]) {
    if (wanted.has(child.dataset.key)) known.set(child.dataset.key, child);
    else child.remove();
  }
  let before = parent.firstElementChild;
  for (const item of items) {
    const key = keyOf(item);
    let child = known.get(key);
    if (child === undefined) {
      child = make(item);
      child.dataset.key = key;
    }
    update(child, item);
    if (child === before) before = before.nextElementSibling;
    else parent.insertBefore(child, before);
  }
}

function part(parent, name) {
  return parent.querySelector(`[data-part="${name}"]`);
}

function svg(name, attributes, ...children) {
  const made = document.createElementNS("http://www.w3.org/2000/svg", name);
  for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
  made.append(...children);
  return made;
}

// The header values a limit was known by; of more than a few a line shows the beginning.
const MANY = 3;

function hasMore(evidence) {
  return Object.keys(evidence ?? {}).length > MANY;
}

function told(evidence) {
  return Object.entries(evidence ?? {}).map(([name, value]) => `${name}: ${value}`).join(", ");
}

function makeEvidence(evidence) {
  return element("details", { class: "evidence" },
    element("summary", {}, `${Object.keys(evidence).length} headers`), told(evidence));
}

// "640 ms", "38 s", "12 min", "5 h 3 min", "2 d 4 h"
function duration(seconds) {
  if (seconds < 1) return `${Math.max(Math.ceil(seconds * 1000), 0)} ms`;
  const whole = Math.ceil(seconds);
  if (whole < 120) return `${whole} s`;
  const minutes = Math.round(seconds / 60);
  if (minutes < 120) return `${minutes} min`;
  const hours = Math.floor(minutes / 60);
  if (hours < 48) return minutes % 60 ? `${hours} h ${minutes % 60} min` : `${hours} h`;
  return hours % 24 ? `${Math.floor(hours / 24)} d ${hours % 24} h` : `${hours / 24} d`;
}

const counted = new Intl.NumberFormat("en", { notation: "compact", maximumFractionDigits: 1 });
const clock = new Intl.DateTimeFormat(undefined, { timeStyle: "medium" });
