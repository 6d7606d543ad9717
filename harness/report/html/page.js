"use strict";
// Everything on the page is there without this script. It sorts tables, shows values at once, and opens what a link
// leads to and what is printed.

const NUMBER = /^[-−]?[\d,]*\.?\d+(e[-+]?\d+)?\s*[%x]?$/i;

function key(cell) {
  if (cell.dataset.key !== undefined) return Number(cell.dataset.key);
  const text = cell.textContent.replace(/#$/, "").trim();
  if (!text) return null;
  return NUMBER.test(text) ? parseFloat(text.replace(/,/g, "").replace("−", "-")) : text;
}

function compare(a, b) {
  if (typeof a === "number" && typeof b === "number") return a - b;
  return String(a).localeCompare(String(b), "en", { numeric: true });
}

function sort(table, head, column) {
  const down = head.getAttribute("aria-sort") === "ascending";
  for (const each of head.parentElement.cells) each.removeAttribute("aria-sort");
  head.setAttribute("aria-sort", down ? "descending" : "ascending");
  const rows = [...table.tBodies[0].rows].map((row) => [key(row.cells[column]), row]);
  rows.sort(([a], [b]) => {
    if (a === null || b === null) return (a === null) - (b === null); // cells without a value stay last
    return down ? compare(b, a) : compare(a, b);
  });
  table.tBodies[0].append(...rows.map(([, row]) => row));
}

for (const table of document.querySelectorAll("table.sortable")) {
  for (const [column, head] of [...table.tHead.rows[0].cells].entries()) {
    if (!head.textContent.trim() || table.tBodies[0].rows.length < 2) continue;
    const button = document.createElement("button");
    button.type = "button";
    button.title = "Sort by this column";
    button.append(...head.childNodes);
    button.addEventListener("click", () => sort(table, head, column));
    head.append(button);
  }
}

const tip = document.getElementById("tip");

function showValue(event) {
  const point = event.target.closest ? event.target.closest("g.value") : null;
  tip.hidden = !point;
  if (!point) return;
  const title = point.querySelector("title");
  if (title) { // the browser's own, which comes late, would be a second one
    point.dataset.value = title.textContent;
    title.remove();
  }
  tip.textContent = point.dataset.value;
  const box = point.getBoundingClientRect();
  const left = Math.min(box.left + box.width / 2, document.documentElement.clientWidth - tip.offsetWidth - 8);
  tip.style.left = `${Math.max(8, left)}px`;
  tip.style.top = `${box.top > 60 ? box.top - tip.offsetHeight - 6 : box.bottom + 6}px`;
}

document.addEventListener("pointermove", showValue);
document.addEventListener("pointerdown", showValue);
document.addEventListener("scroll", () => { tip.hidden = true; }, { passive: true, capture: true });

function openTarget() {
  const target = document.getElementById(decodeURIComponent(location.hash.slice(1)));
  if (!target) return;
  for (let each = target; each; each = each.parentElement) if (each.tagName === "DETAILS") each.open = true;
  target.scrollIntoView();
}

addEventListener("hashchange", openTarget);
openTarget();

let opened = [];
addEventListener("beforeprint", () => {
  opened = [...document.querySelectorAll("details:not([open]):not(.long)")];
  for (const each of opened) each.open = true;
});
addEventListener("afterprint", () => {
  for (const each of opened) each.open = false;
});
