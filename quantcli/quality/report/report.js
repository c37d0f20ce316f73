"use strict";
const tip = document.getElementById("tip");
const maps = JSON.parse(document.getElementById("maps-data").textContent);

function show(text, box) {
  tip.textContent = text;
  tip.hidden = false;
  const own = tip.getBoundingClientRect();
  const left = Math.max(8, Math.min(box.left + box.width / 2 - own.width / 2, innerWidth - own.width - 8));
  const above = box.top - own.height - 8;
  tip.style.left = left + "px";
  tip.style.top = (above > 4 ? above : box.bottom + 8) + "px";
}
function hide() { tip.hidden = true; }

// A browser would show the title of a chart as a tooltip over all of it; aria-label says the same.
for (const title of document.querySelectorAll("svg > title")) title.remove();

// Of a chart's marks, one is in the order of the Tab key, and the arrow keys go to the others.
for (const svg of document.querySelectorAll("svg[role=group]")) {
  const marks = [...svg.querySelectorAll(".mark")];
  const say = (mark) => show(mark.getAttribute("aria-label"), mark.querySelector(".knot, .dot, .bar, .part").getBoundingClientRect());
  marks.forEach((mark, index) => {
    mark.tabIndex = index ? -1 : 0;
    mark.addEventListener("pointerenter", () => say(mark));
    mark.addEventListener("pointerleave", hide);
    mark.addEventListener("focus", () => say(mark));
    mark.addEventListener("blur", hide);
    mark.addEventListener("keydown", (event) => {
      const step = { ArrowRight: 1, ArrowDown: 1, ArrowLeft: -1, ArrowUp: -1 }[event.key];
      const next = event.key === "Home" ? marks[0] : event.key === "End" ? marks[marks.length - 1] : marks[index + step];
      if (!next) return;
      event.preventDefault();
      mark.tabIndex = -1;
      next.tabIndex = 0;
      next.focus();
    });
  });
}

// A heat map has one place in the order of the Tab key, and a cursor.
function typeAt(row, layer) {
  let seen = 0;
  for (const [name, count] of row.types) if ((seen += count) > layer) return name;
  return null;
}
for (const svg of document.querySelectorAll("svg[data-map]")) {
  const map = maps[svg.dataset.map], height = Number(svg.dataset.row), cursor = svg.querySelector(".cursor");
  const at = { row: 0, layer: 0 };
  const width = (row) => row.types.reduce((sum, run) => sum + run[1], 0);
  function point() {
    const row = map.rows[at.row], count = width(row), layer = Math.min(at.layer, count - 1);
    const name = typeAt(row, layer), error = row.errors && row.errors[layer];
    cursor.setAttribute("x", (100 * layer) / count + "%");
    cursor.setAttribute("width", 100 / count + "%");
    cursor.setAttribute("y", at.row * height);
    cursor.setAttribute("visibility", "visible");
    let text = (row.outside ? "" : "layer " + layer + ", ") + row.part + ": " + (name || "none");
    if (error !== null && error !== undefined) {
      text += error ? ", relative error " + error + " %, SQNR " + (-20 * Math.log10(error / 100)).toFixed(1) + " dB" : ", equal weights";
    }
    show(text, cursor.getBoundingClientRect());
  }
  function leave() { cursor.setAttribute("visibility", "hidden"); hide(); }
  svg.addEventListener("pointermove", (event) => {
    const box = svg.getBoundingClientRect();
    at.row = Math.max(0, Math.min(map.rows.length - 1, Math.floor((event.clientY - box.top) / height)));
    at.layer = Math.max(0, Math.floor(((event.clientX - box.left) / box.width) * width(map.rows[at.row])));
    point();
  });
  svg.addEventListener("pointerleave", leave);
  svg.addEventListener("focus", () => { if (svg.matches(":focus-visible")) point(); });
  svg.addEventListener("blur", leave);
  svg.addEventListener("keydown", (event) => {
    const step = { ArrowRight: [0, 1], ArrowLeft: [0, -1], ArrowDown: [1, 0], ArrowUp: [-1, 0] }[event.key];
    if (!step) return;
    event.preventDefault();
    at.row = Math.max(0, Math.min(map.rows.length - 1, at.row + step[0]));
    at.layer = Math.max(0, Math.min(map.layers - 1, at.layer + step[1]));
    point();
  });
}
addEventListener("scroll", hide, { passive: true });
addEventListener("keydown", (event) => { if (event.key === "Escape") hide(); });

// What is closed is not printed: the plans are.
const opened = [];
addEventListener("beforeprint", () => {
  for (const part of document.querySelectorAll("details.printed:not([open])")) { part.open = true; opened.push(part); }
});
addEventListener("afterprint", () => { for (const part of opened.splice(0)) part.open = false; });
