"use strict";
const body = document.querySelector("tbody"), rows = [...body.rows], most = document.getElementById("most");
const boxes = [...document.querySelectorAll("#filter input[type=checkbox]")];
const mark = (row) => document.getElementById("m" + row.id.slice(1));
let chosen = null, sorting = "place", descending = false;

function filter() {
  const kinds = new Set(boxes.filter((box) => box.checked).map((box) => box.value));
  let shown = 0;
  for (const row of rows) {
    const visible = kinds.has(row.dataset.kind) && row.dataset.probability <= most.value / 100 + 0.005;
    row.hidden = !visible;
    mark(row).classList.toggle("hidden", !visible);
    shown += visible;
  }
  most.nextElementSibling.value = most.value + "%";
  document.getElementById("shown").value = shown === rows.length ? "all shown" : shown + " shown";
}

function sort(key) {
  descending = key === sorting && !descending;
  sorting = key;
  const place = (row) => Number(row.id.slice(1));
  const value = { place, kind: (row) => row.dataset.kind, probability: (row) => Number(row.dataset.probability) }[key];
  rows.sort((a, b) => (value(a) < value(b) ? -1 : value(a) > value(b) ? 1 : place(a) - place(b)));
  if (descending) rows.reverse();
  body.append(...rows);
}

function choose(row) {
  if (!row) return;
  if (chosen) for (const element of [chosen, mark(chosen)]) element.classList.remove("chosen");
  chosen = row;
  for (const element of [row, mark(row)]) element.classList.add("chosen");
  row.scrollIntoView({ block: "nearest" });
  mark(row).scrollIntoView({ block: "center" });
}

function step(by) {
  const visible = rows.filter((row) => !row.hidden);
  choose(visible[Math.max(0, Math.min(visible.length - 1, visible.indexOf(chosen) + by))]);
}

function theme() {
  const root = document.documentElement.classList;
  const dark = root.contains("dark") || (!root.contains("light") && matchMedia("(prefers-color-scheme: dark)").matches);
  root.toggle("dark", !dark);
  root.toggle("light", dark);
}

document.getElementById("filter").addEventListener("input", filter);
document.getElementById("filter").addEventListener("submit", (event) => event.preventDefault());
document.getElementById("theme").addEventListener("click", theme);
document.querySelector("thead").addEventListener("click", (event) => event.target.dataset.sort && sort(event.target.dataset.sort));
body.addEventListener("click", (event) => choose(event.target.closest("tr")));
document.getElementById("text").addEventListener("click", (event) => {
  const element = event.target.closest("mark");
  if (element) choose(document.getElementById("r" + element.id.slice(1)));
});
document.addEventListener("keydown", (event) => {
  if (event.ctrlKey || event.metaKey || event.altKey) return;
  const key = event.key;
  if (key === "j" || key === "ArrowDown") step(1);
  else if (key === "k" || key === "ArrowUp") step(-1);
  else if (key === "p") sort("probability");
  else if (key === "d") theme();
  else if (boxes[key - 1]) boxes[key - 1].click();
  else return;
  event.preventDefault();
});
filter();
step(1);
