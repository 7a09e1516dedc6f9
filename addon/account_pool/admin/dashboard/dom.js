"use strict";

const byId = (id) => document.getElementById(id);

// Text is set as text everywhere: names, headers and models come from elsewhere.
function element(name, attributes = {}, ...children) {
  const made = document.createElement(name);
  for (const [key, value] of Object.entries(attributes)) {
    if (typeof value === "function") made.addEventListener(key, value);
    else if (value !== null && value !== undefined) made.setAttribute(key, value);
  }
  made.append(...children.filter((child) => child !== null && child !== undefined));
  return made;
}

function setText(node, text) {
  // A screen reader reads again what is written again.
  if (node.textContent !== text) node.textContent = text;
}

function setClass(node, name) {
  if (node.className !== name) node.className = name;
}

// Keeps one child per key and their order. What stays in its place is not touched: a node that
// is moved loses the focus, so it gets it back.
function keyed(parent, items, keyOf, make, update) {
  const wanted = new Set(items.map(keyOf));
  const known = new Map();
  for (const child of [...parent.children]) {
    if (wanted.has(child.dataset.key)) known.set(child.dataset.key, child);
    else child.remove();
  }
  const focused = document.activeElement;
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
  if (focused && focused !== document.activeElement && parent.contains(focused)) focused.focus({ preventScroll: true });
}

// Draws again only what has changed.
function drawn(node, value, draw) {
  const text = JSON.stringify(value);
  if (node.dataset.drawn === text) return;
  node.dataset.drawn = text;
  node.replaceChildren(...draw());
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

// From the instant, not from what was left when it was asked: it counts down.
const until = (at) => Math.max((Date.parse(at) - Date.now()) / 1000, 0);
const ago = (at) => {
  const seconds = (Date.now() - Date.parse(at)) / 1000;
  return seconds < 2 ? "now" : `${duration(Math.floor(seconds))} ago`;
};
const plural = (count, one, many = `${one}s`) => `${count} ${count === 1 ? one : many}`;
const counted = new Intl.NumberFormat("en", { notation: "compact", maximumFractionDigits: 1 });
const exact = new Intl.NumberFormat("en");
const clock = new Intl.DateTimeFormat(undefined, { timeStyle: "medium" });
const dayAndTime = new Intl.DateTimeFormat(undefined, { dateStyle: "medium", timeStyle: "short" });
const money = (usd) => (usd === null || usd === undefined ? "" : usd === 0 ? "$0" : usd < 0.01 ? "< $0.01" : usd < 1000 ? `$${usd.toFixed(usd < 100 ? 2 : 0)}` : `$${counted.format(usd)}`);

function instant(at) {
  const when = new Date(at);
  return element("time", { datetime: at, title: dayAndTime.format(when) },
    when.toDateString() === new Date().toDateString() ? clock.format(when) : dayAndTime.format(when));
}

// The header values a limit was known by.
function evidenceList(evidence) {
  const pairs = Object.entries(evidence ?? {});
  if (pairs.length === 0) return null;
  return element("dl", { class: "evidence" },
    ...pairs.flatMap(([name, value]) => [element("dt", {}, name), element("dd", {}, value)]));
}
