// From the records of a run to what Plotly draws.

/** More points than this are not drawn for a curve; neighbours are averaged until they fit. */
const POINTS = 600;

/** Told apart from each other and from both themes' paper. */
const COLOURS = ["#3b7dd8", "#d9730d", "#2f9e63", "#b84fc4", "#c98f00", "#d64550", "#3a9fb5", "#8a6fe8"];

export const colourOf = (index) => COLOURS[index % COLOURS.length];

/** What a run has told so far. */
export class Story {
  constructor() {
    this.next = 0;
    this.generation = null;
    this.clear();
  }

  clear() {
    this.steps = [];
    this.epochs = [];
  }

  /** Takes in the answer to a question for new records; true if there were any. */
  take({ records, next }) {
    for (const record of records) {
      if (record.event === "start") this.goBackTo(record);
      else if (record.event === "step") this.steps.push(record);
      else if (record.event === "epoch") this.epochs.push(record);
    }
    this.next = next;
    return records.length > 0;
  }

  /** A run that goes on from a checkpoint has given up what came after it. */
  goBackTo({ step }) {
    this.steps = this.steps.filter((record) => record.step <= step);
    this.epochs = this.epochs.filter((record) => record.step <= step);
  }
}

/**
 * A curve of at most POINTS points, each the mean of as many neighbours. Their number is a power of two, so that
 * points stay where they are while the curve grows, until it is thinned anew.
 */
function thinned(steps, field) {
  let share = 1;
  while (steps.length / share > POINTS) share *= 2;
  const x = [];
  const y = [];
  for (let from = 0; from < steps.length; from += share) {
    const group = steps.slice(from, from + share).filter((record) => Number.isFinite(record[field]));
    if (group.length === 0) continue;
    x.push(group.at(-1).step);
    y.push(group.reduce((sum, record) => sum + record[field], 0) / group.length);
  }
  return { x, y };
}

function ofEpochs(epochs, field) {
  const told = epochs.filter((record) => Number.isFinite(record[field]));
  return { x: told.map(({ step }) => step), y: told.map((record) => record[field]) };
}

/** The curves of a run for the three figures. */
export function curves(name, colour, { steps, epochs }) {
  const line = (points, more) => ({ ...points, type: "scatter", mode: "lines", line: { color: colour, width: 1.5 }, name, ...more });
  const marked = { mode: "lines+markers", line: { color: colour, width: 2 } };
  return {
    loss: [
      line(thinned(steps, "loss"), { name: `${name}: steps`, opacity: 0.45, line: { color: colour, width: 1 } }),
      line(ofEpochs(epochs, "train_loss"), {
        ...marked,
        name: `${name}: train`,
        line: { ...marked.line, dash: "dot" },
        marker: { symbol: "circle-open", size: 7 },
      }),
      line(ofEpochs(epochs, "eval_loss"), { ...marked, name: `${name}: eval`, marker: { symbol: "diamond", size: 7 } }),
    ],
    rate: [line(thinned(steps, "lr"))],
    speed: [line(thinned(steps, "tokens_per_s"))],
  };
}

/** Draws or redraws a figure in the colours of the page. */
export function draw(id, data, { title, type = "linear", legend }) {
  const { color } = getComputedStyle(document.body);
  // Plotly cannot read light-dark(), so that the colour is taken from where it was resolved.
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
      // What the reader has zoomed to stays while the curves grow.
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
