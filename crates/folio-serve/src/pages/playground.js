// The playground: a prompt, sampling settings, and the generated samples.

import { chooseAt, clearAttention, initAttention, paint, showAttention } from "./attention.js";
import { Sample, inspector } from "./samples.js";
import { byId, digits, initTheme, make, request, setText } from "./shell.js";
import { complete, tokensOf } from "./stream.js";

/** How many alternatives are requested with each token. */
const ALTERNATIVES = 8;

const form = byId("form");
/** The entries of /api/models. */
let models = [];
let samples = [];
/** The sample whose attention is shown. */
let active = null;
/** Aborts the current request; null if there is none. */
let controller = null;

async function loadModels() {
  try {
    const answer = await (await request("/api/models")).json();
    // A run's name alone may refer to a different checkpoint later; this name does not.
    models = answer.models.map((model) => ({ ...model, name: `${model.run}:${model.checkpoint}` }));
    const runs = [...new Set(models.map(({ run }) => run))];
    form.run.replaceChildren(...runs.map((run) => new Option(shortened(run), run)));
    if (models.length === 0) fail("No run has saved a checkpoint yet. Reload this page once one has.");
    showCheckpoints();
  } catch (error) {
    fail(error.message);
  }
}

/** A name that fits into a select: its start and its end, by which runs of a sweep differ. */
function shortened(name) {
  const characters = [...name];
  return characters.length <= 20 ? name : [...characters.slice(0, 8), "…", ...characters.slice(-11)].join("");
}

function showCheckpoints() {
  const checkpoints = models.filter(({ run }) => run === form.run.value);
  form.checkpoint.replaceChildren(
    ...checkpoints.map(({ name, checkpoint, eval_loss: loss, is_default: isDefault }) => {
      const suffix = Number.isFinite(loss) ? ` · ${digits(loss)}` : "";
      return new Option(`${checkpoint}${suffix}`, name, isDefault, isDefault);
    }),
  );
  showFacts();
}

/** The selected model. */
function model() {
  return models.find(({ name }) => name === form.checkpoint.value);
}

function showFacts() {
  const chosen = model();
  if (!chosen) return;
  const { run, checkpoint, eval_loss: loss, config } = chosen;
  const { n_blocks: blocks, n_heads: heads, n_emb: width, block_size: context, vocab_size: vocabulary } = config;
  const known = models.filter((other) => other.run === run && Number.isFinite(other.eval_loss));
  const isBest = Number.isFinite(loss) && known.every((other) => loss <= other.eval_loss);
  const evaluation = Number.isFinite(loss) ? `, eval loss ${digits(loss)}${isBest ? " (best)" : ""}` : "";
  setText(
    byId("facts"),
    `${run}, ${checkpoint}${evaluation}. ${blocks} blocks, ${heads} heads, width ${width}, context ${context} tokens, ` +
      `vocabulary ${vocabulary} tokens.`,
  );
}

/** The settings as fields of /v1/completions, without the model. Empty fields are left out. */
function settings() {
  const number = (name) => (form[name].value.trim() === "" ? undefined : Number(form[name].value));
  const escapes = { "\\n": "\n", "\\t": "\t", "\\\\": "\\" };
  const stop = form.stop.value.split("\n").filter((line) => line !== "");
  return {
    temperature: number("temperature"),
    top_k: number("top_k"),
    top_p: number("top_p"),
    min_p: number("min_p"),
    repetition_penalty: number("repetition_penalty"),
    // Choosing the seed here lets the page show it, so that every sample can be reproduced.
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
  const actions = { select, extend, branch };
  const length = Number(form.n.value);
  const fresh = Array.from({ length }, (_, index) => new Sample(index + 1, model(), prompt, actions));
  run(prompt, fresh, () => {
    samples = fresh;
    byId("samples").replaceChildren(...samples.map(({ element }) => element));
    byId("samples").classList.toggle("several", samples.length > 1);
    active = null;
    setBusy(true);
    inspector.hide();
    clearAttention();
  });
}

/** Continues a sample with the model that generated it. */
function extend(sample) {
  if (controller || !form.reportValidity()) return;
  run(sample.whole(), [sample], () => {});
}

/** Replaces a token by an alternative and continues from there. */
function branch(sample, index, alternative) {
  if (controller || !form.reportValidity()) return;
  run(sample.upTo(index) + alternative[0], [sample], () => {
    sample.branch(index, alternative);
    inspector.show(sample, index);
  });
}

/**
 * Generates one text per sample with the samples' model, and shows the tokens as they arrive. `begin` is called with the
 * first chunk; if the request is rejected before, the page does not change.
 */
async function run(prompt, into, begin) {
  controller = new AbortController();
  setBusy(true);
  fail("");
  setText(byId("announcer"), "Generating.");
  const start = performance.now();
  const body = { ...settings(), model: into[0].model.name, prompt, n: into.length };
  let hasBegun = false;
  let tokens = 0;
  let end = "Finished";
  try {
    for await (const choice of complete(body, controller.signal)) {
      if (!hasBegun) begin();
      hasBegun = true;
      const added = tokensOf(choice);
      tokens += added.length;
      into[choice.index].add(added, choice.text, choice.finish_reason);
      const seconds = (performance.now() - start) / 1000;
      setText(byId("progress"), `${tokens} tokens, ${digits(tokens / seconds, 3)} per second`);
    }
  } catch (error) {
    end = error.name === "AbortError" ? "Stopped" : "Failed";
    if (end === "Failed") fail(error.message);
  }
  controller = null;
  if (hasBegun) {
    for (const sample of into) sample.end(end === "Failed" ? "interrupted" : "stopped");
    setText(byId("seed-used"), `Seed ${body.seed}`);
  }
  setBusy(false);
  setText(byId("announcer"), `${end}: ${tokens} tokens, seed ${body.seed}.`);
  if (!hasBegun) return;
  [active] = into;
  showActive();
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

/** Shows an error message, or hides it if it is empty. */
function fail(message) {
  const place = byId("error");
  place.hidden = message === "";
  setText(place, message);
}

/** Shows the attention of the selected token and its sample. */
async function select(sample, start) {
  if (sample !== active && !controller) {
    active = sample;
    await showActive();
  }
  if (sample === active) chooseAt(start);
}

async function showActive() {
  if (!active || active.whole() === "") return clearAttention();
  const { run, checkpoint, name, config } = active.model;
  const which = samples.length > 1 ? `sample ${samples.indexOf(active) + 1}, ` : "";
  setText(byId("attention-of"), `of ${which}${run}, ${checkpoint}`);
  const blocks = byId("attention-block");
  if (blocks.options.length !== config.n_blocks) {
    blocks.replaceChildren(...Array.from({ length: config.n_blocks }, (_, block) => new Option(block + 1, block)));
  }
  await showAttention(name, active.whole());
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
byId("colors").addEventListener("change", ({ target }) => byId("samples").classList.toggle("plain", !target.checked));
byId("attention-block").addEventListener("change", showActive);
document.addEventListener("keydown", onKey);
loadModels();
