// The training page: all runs, and the curves of the selected ones.

import { RunRecords, colorOf, curves, draw } from "./curves.js";
import { byId, digits, initTheme, make, request, setText } from "./shell.js";

/** Time between two polls of the server. */
const POLL_INTERVAL_MS = 2000;

/** Per run id: its summary, its row of the table, and its records once it has been selected. */
const runs = new Map();
let timer = null;
let isPolling = false;

/** Polls the server, and again after a pause while the page is visible. */
async function poll() {
  if (isPolling) return;
  isPolling = true;
  clearTimeout(timer);
  try {
    const isNew = await updateRuns();
    const selected = [...runs.values()].filter(({ row }) => row.box.checked);
    const grown = await Promise.all(selected.map(updateRecords));
    if (isNew || grown.includes(true)) show();
    fail("");
  } catch (error) {
    fail(error.message);
  }
  isPolling = false;
  if (!document.hidden) timer = setTimeout(poll, POLL_INTERVAL_MS);
}

/** Updates the list of runs. Returns whether the selection has changed. */
async function updateRuns() {
  const { runs: listed } = await (await request("/api/runs")).json();
  const isFirst = runs.size === 0;
  const gone = [...runs.keys()].filter((id) => !listed.some((summary) => summary.id === id));
  for (const id of gone) {
    runs.get(id).row.element.remove();
    runs.delete(id);
  }
  listed.forEach((summary, index) => {
    const known = runs.get(summary.id);
    if (known) update(known, summary);
    else insert(summary, index);
  });
  byId("no-runs").hidden = runs.size > 0;
  return (isFirst && selectFirst()) || gone.length > 0;
}

/** Selects the runs in progress or, if there are none, the first run. */
function selectFirst() {
  const all = [...runs.values()];
  const running = all.filter(({ summary }) => summary.state === "running");
  for (const { row } of running.length > 0 ? running : all.slice(0, 1)) row.box.checked = true;
  return all.length > 0;
}

function insert(summary, index) {
  const run = { summary, color: colorOf(runs.size), records: new RunRecords() };
  run.row = makeRow(run);
  byId("run-rows").insertBefore(run.row.element, byId("run-rows").children[index] ?? null);
  runs.set(summary.id, run);
  fill(run);
}

function update(run, summary) {
  const was = run.summary.state;
  run.summary = summary;
  if (was !== summary.state) setText(byId("announcer"), `${summary.id} is ${summary.state}.`);
  fill(run);
}

function makeRow({ summary, color }) {
  const box = make("input", { type: "checkbox" });
  const swatch = make("span", { className: "swatch" });
  swatch.style.setProperty("--run-color", color);
  // Only the records of selected runs are read. The new selection is polled at once.
  box.addEventListener("change", () => {
    show();
    poll();
  });
  const name = make("th", { scope: "row" }, make("label", {}, box, swatch, summary.id));
  const state = make("span", { className: "state" });
  const progress = make("progress", { "aria-label": `Progress of ${summary.id}` });
  const numbers = Array.from({ length: 8 }, () => make("td", { className: "number" }));
  const element = make("tr", {}, name, make("td", {}, state), make("td", {}, progress), ...numbers);
  return { element, box, state, progress, numbers };
}

/** Updates the row of a run. */
function fill({ summary, records, row }) {
  const { state, epoch, num_epochs: epochs, step, steps, best_eval_loss: best, parameters } = summary;
  setText(row.state, state);
  row.state.className = `state ${state}`;
  row.progress.max = steps || 1;
  row.progress.value = step ?? 0;
  const last = records.steps.at(-1);
  const evaluated = records.evaluations.at(-1);
  const of = (value, all) => (all ? `${value ?? 0} of ${all}` : `${value ?? "–"}`);
  const texts = [
    of(epoch, epochs),
    of(step, steps),
    digits(last?.loss ?? records.epochs.at(-1)?.train_loss),
    digits(evaluated?.eval_loss),
    digits(best),
    digits(last?.lr ?? records.epochs.at(-1)?.learning_rate, 3),
    digits(last?.tokens_per_s, 3),
    digits(parameters, 3),
  ];
  texts.forEach((text, index) => setText(row.numbers[index], text));
}

/** Reads the new records of a run. Returns whether there were any. */
async function updateRecords(run) {
  const { records, summary } = run;
  const path = `/api/runs/${encodeURIComponent(summary.id)}/records`;
  const fetchNew = async () => (await request(`${path}?after=${records.next}`)).json();
  let response = await fetchNew();
  const isRewritten = records.generation !== null && response.generation !== records.generation;
  if (isRewritten) {
    records.clear();
    records.next = 0;
    response = await fetchNew();
  }
  records.generation = response.generation;
  const hasGrown = records.add(response);
  fill(run);
  return hasGrown || isRewritten;
}

/** Draws the selected runs. */
function show() {
  const selected = [...runs.values()].filter(({ row }) => row.box.checked);
  const drawn = selected.map(({ summary, color, records }) => curves(summary.id, color, records));
  const all = (figure) => drawn.flatMap((run) => run[figure]);
  draw("plot-loss", all("loss"), { title: "loss", type: byId("log-loss").checked ? "log" : "linear", legend: true });
  draw("plot-rate", all("rate"), { title: "learning rate", legend: false });
  draw("plot-speed", all("speed"), { title: "tokens/s", legend: false });
  showSamples(selected);
}

/** Shows the latest sample of each run. */
function showSamples(selected) {
  const samples = selected.flatMap(({ summary, records }) => {
    const record = records.epochs.findLast(({ sample }) => sample);
    return record ? [{ title: `${summary.id}, epoch ${record.epoch}`, sample: record.sample }] : [];
  });
  const key = JSON.stringify(samples);
  const place = byId("run-samples");
  // Unchanged samples are not replaced, so that a selection in them is kept.
  if (place.dataset.key === key) return;
  place.dataset.key = key;
  const articles = samples.map(({ title, sample }) =>
    make("article", {}, make("h3", { textContent: title }), make("pre", { textContent: sample })),
  );
  place.replaceChildren(...(samples.length > 0 ? articles : [make("p", { className: "quiet", textContent: "None yet." })]));
}

/** Shows an error message, or hides it if it is empty. */
function fail(message) {
  const place = byId("error");
  place.hidden = message === "";
  setText(place, message);
}

initTheme(() => runs.size > 0 && show());
byId("log-loss").addEventListener("change", show);
document.addEventListener("visibilitychange", () => {
  if (document.hidden) clearTimeout(timer);
  else poll();
});
poll();
