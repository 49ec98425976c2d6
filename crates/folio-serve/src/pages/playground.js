// The playground: a prompt, the settings of sampling, and the texts that come of them.

import { chooseAt, clearAttention, initAttention, paint, showAttention } from "./attention.js";
import { Sample, inspector } from "./samples.js";
import { byId, digits, initTheme, make, request, setText } from "./shell.js";
import { complete, tokensOf } from "./stream.js";

/** How many of the likeliest tokens are asked for with each token. */
const ALTERNATIVES = 8;

const form = byId("form");
/** Every checkpoint as /api/models tells it. */
let models = [];
let samples = [];
/** The sample whose attention is shown. */
let active = null;
/** Stops the request under way; null if there is none. */
let controller = null;

async function loadModels() {
  try {
    ({ models } = await (await request("/api/models")).json());
    const runs = [...new Set(models.map(({ run }) => run))];
    form.run.replaceChildren(...runs.map((run) => new Option(run, run)));
    if (models.length === 0) fail("The server has no checkpoint yet. Reload the page when a run has saved one.");
    showCheckpoints();
  } catch (error) {
    fail(error.message);
  }
}

function showCheckpoints() {
  const checkpoints = models.filter(({ run }) => run === form.run.value);
  form.checkpoint.replaceChildren(
    ...checkpoints.map(({ id, checkpoint, eval_loss: loss, is_default: isDefault }) => {
      const told = Number.isFinite(loss) ? `, eval loss ${digits(loss)}` : "";
      return new Option(`${checkpoint}${told}${isDefault ? " (default)" : ""}`, id, isDefault, isDefault);
    }),
  );
  showFacts();
}

function model() {
  return models.find(({ id }) => id === form.checkpoint.value);
}

function showFacts() {
  const { config } = model() ?? {};
  if (!config) return;
  const { n_blocks: blocks, n_heads: heads, n_emb: width, block_size: context, vocab_size: vocabulary } = config;
  setText(
    byId("facts"),
    `${blocks} blocks of ${heads} heads, ${width} wide, ${context} tokens of context, ${vocabulary} in the vocabulary`,
  );
  const select = byId("attention-block");
  if (select.options.length !== blocks) {
    select.replaceChildren(...Array.from({ length: blocks }, (_, block) => new Option(block + 1, block)));
  }
}

/** What the settings say, as /v1/completions takes it; fields that were left empty are left out. */
function settings() {
  const number = (name) => (form[name].value.trim() === "" ? undefined : Number(form[name].value));
  const escapes = { "\\n": "\n", "\\t": "\t", "\\\\": "\\" };
  const stop = form.stop.value.split("\n").filter((line) => line !== "");
  return {
    model: form.checkpoint.value,
    temperature: number("temperature"),
    top_k: number("top_k"),
    top_p: number("top_p"),
    min_p: number("min_p"),
    repetition_penalty: number("repetition_penalty"),
    // A seed of our own makes every text one that can be had again.
    seed: number("seed") ?? Math.floor(Math.random() * 2 ** 31),
    max_tokens: number("max_tokens"),
    stop: stop.length > 0 ? stop.map((line) => line.replace(/\\[nt\\]/g, (escape) => escapes[escape])) : undefined,
    past_context: form.past_context.value,
    logprobs: ALTERNATIVES,
  };
}

function generate() {
  if (controller || !form.reportValidity() || !model()) return;
  const prompt = form.prompt.value;
  const actions = { select, goOn, branch };
  samples = Array.from({ length: Number(form.n.value) }, (_, index) => new Sample(index + 1, prompt, actions));
  byId("samples").replaceChildren(...samples.map(({ element }) => element));
  byId("samples").classList.toggle("several", samples.length > 1);
  inspector.hide();
  run(prompt, samples);
}

/** Goes on from the text of a sample. */
function goOn(sample) {
  if (controller || !form.reportValidity()) return;
  run(sample.whole(), [sample]);
}

/** Goes on from before a token, with another in its place. */
function branch(sample, index, alternative) {
  if (controller || !form.reportValidity()) return;
  sample.branch(index, alternative);
  inspector.show(sample, index);
  run(sample.whole(), [sample]);
}

/** Has texts generated, one for each sample, and shows them as they come. */
async function run(prompt, into) {
  controller = new AbortController();
  setBusy(true);
  fail("");
  setText(byId("announcer"), "Generating.");
  const began = performance.now();
  const body = { ...settings(), prompt, n: into.length };
  const before = count();
  let end = "Finished";
  try {
    for await (const choice of complete(body, controller.signal)) {
      into[choice.index].add(tokensOf(choice), choice.text, choice.finish_reason);
      const seconds = (performance.now() - began) / 1000;
      setText(byId("progress"), `${count() - before} tokens, ${digits((count() - before) / seconds, 3)} a second`);
    }
  } catch (error) {
    end = error.name === "AbortError" ? "Stopped" : "Failed";
    if (end === "Failed") fail(error.message);
    // Of a request that was refused there is nothing to see.
    if (count() === 0) samples.splice(0).forEach(({ element }) => element.remove());
  }
  for (const sample of into) sample.settle();
  controller = null;
  setBusy(false);
  setText(byId("announcer"), `${end}: ${count() - before} tokens, seed ${body.seed}.`);
  setText(byId("seed-used"), `Seed ${body.seed}`);
  active = samples.includes(into[0]) ? into[0] : null;
  showActive();
}

function count() {
  return samples.reduce((sum, { tokens }) => sum + tokens.length, 0);
}

function setBusy(busy) {
  byId("stop-button").disabled = !busy;
  byId("generate").disabled = busy;
  inspector.setBusy(busy);
  for (const sample of samples) sample.setBusy(busy);
}

function stop() {
  controller?.abort();
}

/** Says in words what went wrong; nothing if nothing did. */
function fail(message) {
  const place = byId("error");
  place.hidden = message === "";
  setText(place, message);
}

/** A token was selected: its sample's attention is shown, and its own row. */
async function select(sample, start) {
  if (sample !== active && !controller) {
    active = sample;
    await showActive();
  }
  if (sample === active) chooseAt(start);
}

async function showActive() {
  if (!active || active.whole() === "") return clearAttention();
  setText(byId("attention-of"), samples.length > 1 ? `of sample ${samples.indexOf(active) + 1}` : "");
  await showAttention(form.checkpoint.value, active.whole());
}

function onKey(event) {
  if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) {
    event.preventDefault();
    generate();
  } else if (event.key === "Escape" && !byId("key-dialog").open) {
    stop();
  }
}

initTheme(paint);
initAttention();
byId("legend").append(
  ...["< 1 %", "≥ 1 %", "≥ 5 %", "≥ 20 %", "≥ 50 %", "≥ 80 %"].map((text, level) =>
    make("li", { className: `token p${level}`, textContent: text }),
  ),
);
form.addEventListener("submit", (event) => {
  event.preventDefault();
  generate();
});
form.run.addEventListener("change", showCheckpoints);
form.checkpoint.addEventListener("change", showFacts);
byId("stop-button").addEventListener("click", stop);
byId("colours").addEventListener("change", ({ target }) => byId("samples").classList.toggle("plain", !target.checked));
byId("attention-block").addEventListener("change", showActive);
document.addEventListener("keydown", onKey);
loadModels();
