function showSessions({ sessions }) {
  keyed(byId("sessions"), sessions, (session) => session.key, makeSession, (row, session) => {
    setText(part(row, "account"), session.account);
    setText(part(row, "turns"), String(session.turns));
    setText(part(row, "used"), session.turns || session.idle_s < 1 ? "now" : `${duration(session.idle_s)} ago`);
  });
  byId("sessions-none").hidden = sessions.length > 0;
}

function makeSession({ key }) {
  const close = element("button", {
    type: "button", class: "quiet", "aria-label": `Close ${key}`,
    click: () => act(close, () => changed("/sessions/close", { key })),
  }, "Close");
  return element("tr", {},
    element("td", { class: "key" }, element("code", {}, key)), element("td", { "data-part": "account" }),
    element("td", { class: "number", "data-part": "turns" }), element("td", { class: "number", "data-part": "used" }),
    element("td", {}, close));
}
