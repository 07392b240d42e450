"use strict";
for (const table of document.querySelectorAll("table.sort")) {
  const body = table.tBodies[0];
  [...table.tHead.rows[0].cells].forEach((head, at) => {
    const button = document.createElement("button");
    button.type = "button";
    button.title = "Sort by this column";
    button.append(...head.childNodes);
    head.append(button);
    const value = (row) => {
      const text = row.cells[at].textContent.trim();
      return head.classList.contains("n") ? parseFloat(text) : text;
    };
    button.addEventListener("click", () => {
      const sign = head.getAttribute("aria-sort") === "ascending" ? -1 : 1;
      for (const other of head.parentNode.cells) other.removeAttribute("aria-sort");
      head.setAttribute("aria-sort", sign > 0 ? "ascending" : "descending");
      const rows = [...body.rows].map((row) => [value(row), row]);
      rows.sort(([a], [b]) => {
        if (typeof a === "string") return sign * a.localeCompare(b, "en", { numeric: true });
        if (a !== a || b !== b) return (a !== a) - (b !== b);
        return sign * (a - b);
      });
      body.append(...rows.map(([, row]) => row));
    });
  });
}
for (const group of document.querySelectorAll("g[data-n]"))
  for (const title of group.querySelectorAll("title"))
    title.textContent = `${group.dataset.n}, ${title.textContent}`;
addEventListener("beforeprint", () => {
  for (const numbers of document.querySelectorAll("details.numbers")) numbers.open = true;
});
