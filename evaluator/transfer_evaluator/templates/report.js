// Sorts a table by the column whose heading is pressed: up, down, and as it was. Cells carry what they are sorted by.
for (const table of document.querySelectorAll("table.sortable")) {
  const body = table.tBodies[0];
  const original = [...body.rows];
  const headings = [...table.tHead.rows[0].cells];
  headings.forEach((heading, column) => {
    heading.querySelector("button").addEventListener("click", () => {
      const order = { none: "ascending", ascending: "descending", descending: "none" }[heading.ariaSort ?? "none"];
      for (const other of headings) other.ariaSort = "none";
      heading.ariaSort = order;
      const sign = order === "descending" ? -1 : 1;
      body.append(...(order === "none" ? original : [...original].sort((a, b) => sign * compare(a.cells[column], b.cells[column], sign))));
    });
  });
}

function compare(a, b, sign) {
  const [left, right] = [a.dataset.value, b.dataset.value];
  if (left === "" || right === "") return sign * ((left === "") - (right === "")); // what was not measured stays last
  const numbers = Number(left) - Number(right);
  return Number.isNaN(numbers) ? left.localeCompare(right) : numbers;
}
