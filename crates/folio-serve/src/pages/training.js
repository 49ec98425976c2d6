// The training page: every run under the given directories, and the curves of those that are chosen.

import { Story, colourOf, curves, draw } from "./curves.js";
import { byId, digits, initTheme, make, request, setText } from "./shell.js";

/** How long to wait between two looks at the server. */
const PAUSE_MS = 2000;

/** What is known of each run by its id: the summary, its row of the table, its records once it was chosen. */
const runs = new Map();
let timer = null;
let isLooking = false;

/** Looks at the server, then again after a pause, for as long as the page is seen. */
async function look() {
  if (isLooking) return;
  isLooking = true;
  clearTimeout(timer);
  try {
    const isNew = await lookAtRuns();
    const chosen = [...runs.values()].filter(({ row }) => row.box.checked);
    const grown = await Promise.all(chosen.map(lookAtRecords));
    if (isNew || grown.includes(true)) show();
    fail("");
  } catch (error) {
    fail(error.message);
  }
  isLooking = false;
  if (!document.hidden) timer = setTimeout(look, PAUSE_MS);
}

/** Reads the list of runs; true if others are chosen than before. */
async function lookAtRuns() {
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
  return (isFirst && chooseFirst()) || gone.length > 0;
}

/** Chooses the runs in progress, or else the first one. */
function chooseFirst() {
  const all = [...runs.values()];
  const running = all.filter(({ summary }) => summary.state === "running");
  for (const { row } of running.length > 0 ? running : all.slice(0, 1)) row.box.checked = true;
  return all.length > 0;
}

function insert(summary, index) {
  const run = { summary, colour: colourOf(runs.size), story: new Story() };
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

function makeRow({ summary, colour }) {
  const box = make("input", { type: "checkbox" });
  const swatch = make("span", { className: "swatch" });
  swatch.style.setProperty("--run-colour", colour);
  // Records are only read for runs that are shown; those of a run chosen just now come with the next look.
  box.addEventListener("change", () => {
    show();
    look();
  });
  const name = make("th", { scope: "row" }, make("label", {}, box, swatch, summary.id));
  const state = make("span", { className: "state" });
  const progress = make("progress", { "aria-label": `Progress of ${summary.id}` });
  const numbers = Array.from({ length: 8 }, () => make("td", { className: "number" }));
  const element = make("tr", {}, name, make("td", {}, state), make("td", {}, progress), ...numbers);
  return { element, box, state, progress, numbers };
}

/** Writes what is known of a run into its row. */
function fill({ summary, story, row }) {
  const { state, epoch, num_epochs: epochs, step, steps, best_eval_loss: best, parameters } = summary;
  setText(row.state, state);
  row.state.className = `state ${state}`;
  row.progress.max = steps || 1;
  row.progress.value = step ?? 0;
  const last = story.steps.at(-1);
  const evaluated = story.epochs.at(-1);
  const of = (value, all) => (all ? `${value ?? 0} of ${all}` : `${value ?? "–"}`);
  const told = [
    of(epoch, epochs),
    of(step, steps),
    digits(last?.loss ?? evaluated?.train_loss),
    digits(evaluated?.eval_loss),
    digits(best),
    digits(last?.lr ?? evaluated?.learning_rate, 3),
    digits(last?.tokens_per_s, 3),
    digits(parameters, 3),
  ];
  told.forEach((text, index) => setText(row.numbers[index], text));
}

/** Reads what a run has told since the last look; true if it has told anything. */
async function lookAtRecords(run) {
  const { story, summary } = run;
  const path = `/api/runs/${encodeURIComponent(summary.id)}/records`;
  const ask = async () => (await request(`${path}?after=${story.next}`)).json();
  let answer = await ask();
  const isRewritten = story.generation !== null && answer.generation !== story.generation;
  if (isRewritten) {
    story.clear();
    story.next = 0;
    answer = await ask();
  }
  story.generation = answer.generation;
  const hasGrown = story.take(answer);
  fill(run);
  return hasGrown || isRewritten;
}

/** Draws the chosen runs. */
function show() {
  const chosen = [...runs.values()].filter(({ row }) => row.box.checked);
  const drawn = chosen.map(({ summary, colour, story }) => curves(summary.id, colour, story));
  const all = (figure) => drawn.flatMap((run) => run[figure]);
  draw("plot-loss", all("loss"), { title: "loss", type: byId("log-loss").checked ? "log" : "linear", legend: true });
  draw("plot-rate", all("rate"), { title: "learning rate", legend: false });
  draw("plot-speed", all("speed"), { title: "tokens/s", legend: false });
  showSamples(chosen);
}

/** Shows the newest sample of each run. */
function showSamples(chosen) {
  const told = chosen.flatMap(({ summary, story }) => {
    const record = story.epochs.findLast(({ sample }) => sample);
    return record ? [{ title: `${summary.id}, epoch ${record.epoch}`, sample: record.sample }] : [];
  });
  const key = JSON.stringify(told);
  const place = byId("story");
  // A text that someone reads or has selected is left alone until there is a newer one.
  if (place.dataset.key === key) return;
  place.dataset.key = key;
  const articles = told.map(({ title, sample }) =>
    make("article", {}, make("h3", { textContent: title }), make("pre", { textContent: sample })),
  );
  place.replaceChildren(...(told.length > 0 ? articles : [make("p", { className: "quiet", textContent: "None yet." })]));
}

/** Says in words what went wrong; nothing if nothing did. */
function fail(message) {
  const place = byId("error");
  place.hidden = message === "";
  setText(place, message);
}

initTheme(() => runs.size > 0 && show());
byId("log-loss").addEventListener("change", show);
document.addEventListener("visibilitychange", () => {
  if (document.hidden) clearTimeout(timer);
  else look();
});
look();
