"use strict";
(() => {
  // Tables sort by a click on a header. Without this script the page shows the same in the order of the report.
  const key = (row, column) => {
    const text = row.cells[column] ? row.cells[column].textContent.trim() : "";
    if (text === "wrong") return Infinity;
    return /^[-+]?\d/.test(text) ? parseFloat(text.replace("%", "e-2")) : text;
  };
  const compare = (one, other) => {
    if (typeof one === "number" && typeof other === "number") return one === other ? 0 : one - other;
    if (typeof one !== typeof other) return typeof one === "number" ? -1 : 1;
    return one.localeCompare(other, "en", { numeric: true });
  };
  for (const header of document.querySelectorAll("thead th")) {
    if (!header.textContent.trim()) continue;
    const button = document.createElement("button");
    button.type = "button";
    button.append(...header.childNodes);
    header.append(button);
    button.addEventListener("click", () => {
      const sign = header.getAttribute("aria-sort") === "ascending" ? -1 : 1;
      for (const each of header.parentElement.cells) each.removeAttribute("aria-sort");
      header.setAttribute("aria-sort", sign > 0 ? "ascending" : "descending");
      const [body] = header.closest("table").tBodies;
      const rows = [...body.rows].map((row) => [key(row, header.cellIndex), row]);
      rows.sort((one, other) => sign * compare(one[0], other[0]));
      body.append(...rows.map(([, row]) => row));
    });
  }

  // The search field leaves the rows, pictures and terms that hold the text, and opens what they stand in.
  const search = document.querySelector(".search");
  if (!search) return;
  search.hidden = false;
  const [input, output] = search.querySelectorAll("input, output");
  const rows = [...document.querySelectorAll("tbody tr, figure, .terms > div")];
  const folds = [...document.querySelectorAll("section > details")].map((fold) => [fold, fold.open]);
  const sections = [...document.querySelectorAll("section")];
  const has = (element, text) => element.textContent.toLowerCase().includes(text);
  input.addEventListener("input", () => {
    const text = input.value.trim().toLowerCase();
    for (const row of rows) row.hidden = !has(row, text);
    for (const [fold, wasOpen] of folds) {
      fold.hidden = !has(fold, text);
      fold.open = text ? !fold.hidden : wasOpen;
    }
    for (const section of sections) section.hidden = !has(section, text);
    output.textContent = text ? ` ${rows.filter((row) => !row.hidden).length} of ${rows.length}` : "";
  });
})();
