// Turns the records of a run into Plotly curves.

/** The maximum number of points per curve; neighboring points are averaged until they fit. */
const MAX_POINTS = 600;

/** Distinguishable from each other and from the background of both themes. */
const COLORS = ["#3b7dd8", "#d9730d", "#2f9e63", "#b84fc4", "#c98f00", "#d64550", "#3a9fb5", "#8a6fe8"];

export const colorOf = (index) => COLORS[index % COLORS.length];

/** The records of a run that were read so far. */
export class RunRecords {
  constructor() {
    this.next = 0;
    this.generation = null;
    this.clear();
  }

  clear() {
    this.steps = [];
    this.epochs = [];
    this.evaluations = [];
  }

  /** Adds the records of a response. Returns whether there were any. */
  add({ records, next }) {
    for (const record of records) {
      if (record.event === "start") this.truncateTo(record);
      else if (record.event === "step") this.steps.push(record);
      else if (record.event === "epoch") this.epochs.push(record);
      // An epoch ends with an evaluation.
      if (record.event === "epoch" || record.event === "evaluation") this.evaluations.push(record);
    }
    this.next = next;
    return records.length > 0;
  }

  /** A resumed run drops the records after its checkpoint. */
  truncateTo({ step }) {
    this.steps = this.steps.filter((record) => record.step <= step);
    this.epochs = this.epochs.filter((record) => record.step <= step);
    this.evaluations = this.evaluations.filter((record) => record.step <= step);
  }
}

/**
 * A curve of at most MAX_POINTS points. Each point is the mean of a group of neighbors, whose size is a power of two, so
 * that points rarely move while the curve grows.
 */
function downsampled(steps, field) {
  let size = 1;
  while (steps.length / size > MAX_POINTS) size *= 2;
  const x = [];
  const y = [];
  for (let from = 0; from < steps.length; from += size) {
    const group = steps.slice(from, from + size).filter((record) => Number.isFinite(record[field]));
    if (group.length === 0) continue;
    x.push(group.at(-1).step);
    y.push(group.reduce((sum, record) => sum + record[field], 0) / group.length);
  }
  return { x, y };
}

function ofEpochs(epochs, field) {
  const finite = epochs.filter((record) => Number.isFinite(record[field]));
  return { x: finite.map(({ step }) => step), y: finite.map((record) => record[field]) };
}

/** The curves of a run for the three figures. */
export function curves(name, color, { steps, epochs, evaluations }) {
  const line = (points, more) => ({ ...points, type: "scatter", mode: "lines", line: { color: color, width: 1.5 }, name, ...more });
  const marked = { mode: "lines+markers", line: { color: color, width: 2 } };
  return {
    loss: [
      line(downsampled(steps, "loss"), { name: `${name}: steps`, opacity: 0.45, line: { color: color, width: 1 } }),
      line(ofEpochs(epochs, "train_loss"), {
        ...marked,
        name: `${name}: train`,
        line: { ...marked.line, dash: "dot" },
        marker: { symbol: "circle-open", size: 7 },
      }),
      line(ofEpochs(evaluations, "eval_loss"), { ...marked, name: `${name}: eval`, marker: { symbol: "diamond", size: 7 } }),
    ],
    rate: [line(downsampled(steps, "lr"))],
    speed: [line(downsampled(steps, "tokens_per_s"))],
  };
}

/** Draws or redraws a figure in the colors of the page. */
export function draw(id, data, { title, type = "linear", legend }) {
  const { color } = getComputedStyle(document.body);
  // Plotly does not support light-dark(), so use the computed color of an element.
  const grid = getComputedStyle(document.querySelector(".bar")).borderBottomColor;
  const isNarrow = window.innerWidth < 600;
  const axis = { gridcolor: grid, zerolinecolor: grid, automargin: true };
  Plotly.react(
    id,
    data,
    {
      margin: { l: 50, r: 10, t: 30, b: 40 },
      hovermode: "closest",
      paper_bgcolor: "rgba(0,0,0,0)",
      plot_bgcolor: "rgba(0,0,0,0)",
      font: { color, family: "system-ui, sans-serif" },
      modebar: { bgcolor: "rgba(0,0,0,0)", color, activecolor: color },
      showlegend: legend,
      legend: isNarrow ? { orientation: "h", y: -0.3 } : {},
      // Keeps the zoom while the curves grow.
      uirevision: `${id} ${type}`,
      xaxis: { ...axis, title: { text: "step" } },
      yaxis: { ...axis, title: { text: title }, type },
    },
    {
      responsive: true,
      displaylogo: false,
      displayModeBar: isNarrow ? false : "hover",
      modeBarButtonsToRemove: ["select2d", "lasso2d"],
    },
  );
}
