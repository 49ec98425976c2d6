"use strict";

const dark = window.matchMedia("(prefers-color-scheme: dark)");

/** Draws every figure in the colors of the page. */
function draw() {
  const style = getComputedStyle(document.body);
  const grid = dark.matches ? "#343a44" : "#d8dce3";
  for (const { id, data, layout } of JSON.parse(document.getElementById("figures").textContent)) {
    const axis = { gridcolor: grid, zerolinecolor: grid };
    Plotly.react(
      id,
      data,
      {
        // The toolbar stands above the plot and its legend.
        margin: { l: 60, r: 20, t: 40, b: 45 },
        hovermode: "closest",
        paper_bgcolor: "rgba(0,0,0,0)",
        plot_bgcolor: "rgba(0,0,0,0)",
        font: { color: style.color },
        modebar: { bgcolor: "rgba(0,0,0,0)", color: style.color },
        ...layout,
        xaxis: { ...axis, ...layout.xaxis },
        yaxis: { ...axis, ...layout.yaxis },
      },
      { responsive: true, displaylogo: false },
    );
  }
}

/** Sorts a table by a column; in descending order if it is sorted by this column already. */
function sortBy(table, column, button) {
  const rows = [...table.tBodies[0].rows];
  const descending = button.dataset.order === "ascending";
  for (const other of table.querySelectorAll("th button")) delete other.dataset.order;
  button.dataset.order = descending ? "descending" : "ascending";
  const key = (row) => row.cells[column].textContent;
  const compare = (a, b) => {
    const [x, y] = [Number(key(a)), Number(key(b))];
    const order = Number.isNaN(x) || Number.isNaN(y) ? key(a).localeCompare(key(b), "en", { numeric: true }) : x - y;
    return descending ? -order : order;
  };
  table.tBodies[0].append(...rows.sort(compare));
}

for (const table of document.querySelectorAll("table.sortable")) {
  table.querySelectorAll("th button").forEach((button, column) => {
    button.addEventListener("click", () => sortBy(table, column, button));
  });
}
for (const cell of document.querySelectorAll(".time")) {
  cell.textContent = new Date(1000 * Number(cell.dataset.seconds)).toLocaleString();
}
dark.addEventListener("change", draw);
draw();
