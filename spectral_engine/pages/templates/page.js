"use strict";
(() => {
  const table = document.querySelector(".scroll > table");
  const body = table.tBodies[0];
  const rows = [...body.rows];
  const heads = [...table.tHead.rows[0].cells].filter((head) => head.querySelector("button"));
  const choice = document.getElementById("sort");
  const find = document.getElementById("find");
  const shown = document.getElementById("shown");
  let column = -1;
  let down = false;

  const key = (row) => {
    const text = row.cells[column].dataset.key;
    return text === "" ? null : Number(text);
  };
  const text = (row) => row.cells[column].textContent.trim();
  // What is not known comes last, whichever way the others go.
  const compare = (one, other) => {
    const [a, b] = [key(one), key(other)];
    if (a === null && b === null) {
      const order = text(one).localeCompare(text(other), undefined, { numeric: true });
      return down ? -order : order;
    }
    if (a === null) return 1;
    if (b === null) return -1;
    return down ? b - a : a - b;
  };
  const sort = () => {
    body.append(...(column < 0 ? rows : [...rows].sort(compare)));
    heads.forEach((head, index) => {
      head.setAttribute("aria-sort", index !== column ? "none" : down ? "descending" : "ascending");
    });
    choice.value = String(column);
  };
  heads.forEach((head, index) => {
    head.querySelector("button").addEventListener("click", () => {
      // Numbers begin with the largest, which is what one looks for; names with the first.
      const first = index > 0 && !head.classList.contains("words");
      down = index === column ? !down : first;
      column = index;
      sort();
    });
  });
  choice.addEventListener("change", () => {
    column = Number(choice.value);
    down = column > 0 && !heads[column].classList.contains("words");
    sort();
  });
  find.addEventListener("input", () => {
    const part = find.value.trim().toLowerCase();
    for (const row of rows) row.hidden = !row.cells[0].textContent.toLowerCase().includes(part);
    const count = rows.filter((row) => !row.hidden).length;
    shown.textContent = part ? `${count} of ${rows.length}` : "";
  });
  document.querySelector(".tools").hidden = false;
})();
