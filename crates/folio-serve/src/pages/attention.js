// The attention of each head of a block, as heat maps and as a table.

import { byId, isDark, make, request, setText } from "./shell.js";
import { initRoving, percent, pieces, shown } from "./tokens.js";

/** How many tokens per head the table lists. */
const TOP_TOKENS = 5;
/** Shades of the text, classes a0 to a5. */
const SHADES = 6;

/** Colors of weight 0 and 1, as red, green, blue. */
const LIGHT = { none: [244, 246, 249], full: [16, 52, 110] };
const DARK = { none: [28, 32, 39], full: [255, 205, 120] };

/** The response of the server with its weights as bytes, and the index of the selected token (`query`). */
let view = null;
let pending = null;

/** Sets up the panel. */
export function initAttention() {
  initRoving(byId("attention-text"), (option) => choose(Number(option.dataset.index)));
  byId("attention-head").addEventListener("change", () => view && shade());
}

/** Requests the attention of a text and shows it. A new request aborts the previous one. */
export async function showAttention(model, text) {
  pending?.abort();
  pending = new AbortController();
  const panel = byId("attention");
  panel.setAttribute("aria-busy", "true");
  try {
    const block = Number(byId("attention-block").value);
    const body = { model, text, block };
    const response = await request("/api/attention", { body, signal: pending.signal });
    show(await response.json(), text);
    setText(byId("attention-message"), "");
  } catch (error) {
    if (error.name === "AbortError") return;
    clearAttention();
    setText(byId("attention-message"), error.message);
  }
  panel.setAttribute("aria-busy", "false");
}

/** Hides the maps. */
export function clearAttention() {
  pending?.abort();
  byId("attention").setAttribute("aria-busy", "false");
  view = null;
  byId("attention-content").hidden = true;
}

function show(answer, text) {
  const parts = answer.tokens.map(pieces());
  const weights = Uint8Array.from(atob(answer.weights), (character) => character.charCodeAt(0));
  // Of a long text the server only returns the last tokens, so offsets are computed from its end.
  let start = text.length - parts.join("").length;
  const starts = parts.map((part) => (start += part.length) - part.length);
  view = { ...answer, parts, starts, weights, query: parts.length - 1 };
  buildText();
  buildHeads();
  buildMaps();
  byId("attention-content").hidden = false;
  choose(view.query);
}

function buildText() {
  const options = view.parts.map((part, index) =>
    make("span", {
      className: part === "" ? "token part" : /^\n+$/.test(part) ? "token break" : "token",
      role: "option",
      tabIndex: -1,
      textContent: part,
      "aria-label": shown(view.tokens[index]),
      "aria-selected": "false",
      "data-index": index,
    }),
  );
  byId("attention-text").replaceChildren(...options);
}

function buildHeads() {
  const select = byId("attention-head");
  if (select.options.length === view.heads + 1) return;
  const heads = Array.from({ length: view.heads }, (_, head) => new Option(`${head + 1}`, head));
  select.replaceChildren(new Option("mean of all", ""), ...heads);
}

function buildMaps() {
  const maps = Array.from({ length: view.heads }, (_, head) => {
    const size = view.parts.length;
    const canvas = make("canvas", { width: size, height: size, role: "img", "aria-label": `Head ${head + 1}` });
    canvas.addEventListener("pointermove", (event) => describe(head, cellAt(event)));
    canvas.addEventListener("click", (event) => {
      byId("attention-head").value = String(head);
      choose(cellAt(event).query);
    });
    const marker = make("span", { className: "row-marker" });
    return make("figure", {}, make("div", {}, canvas, marker), make("figcaption", { textContent: `Head ${head + 1}` }));
  });
  byId("attention-maps").replaceChildren(...maps);
  paint();
}

/** Draws the maps in the colors of the theme. */
export function paint() {
  if (!view) return;
  const size = view.parts.length;
  const { none, full } = isDark() ? DARK : LIGHT;
  byId("attention-maps")
    .querySelectorAll("canvas")
    .forEach((canvas, head) => {
      const context = canvas.getContext("2d");
      const image = context.createImageData(size, size);
      for (let query = 0; query < size; query++) {
        // Cells right of the diagonal are masked and stay transparent.
        for (let key = 0; key <= query; key++) {
          // The square root makes small weights visible.
          const intensity = Math.sqrt(weight(head, query, key));
          const at = 4 * (query * size + key);
          for (let c = 0; c < 3; c++) image.data[at + c] = none[c] + intensity * (full[c] - none[c]);
          image.data[at + 3] = 255;
        }
      }
      context.putImageData(image, 0, 0);
    });
}

function weight(head, query, key) {
  const size = view.parts.length;
  return view.weights[(head * size + query) * size + key] / 255;
}

function cellAt({ target, offsetX, offsetY }) {
  const size = view.parts.length;
  const cell = (offset, length) => Math.min(size - 1, Math.max(0, Math.floor((offset / length) * size)));
  return { query: cell(offsetY, target.clientHeight), key: cell(offsetX, target.clientWidth) };
}

/** Describes the cell under the pointer. */
function describe(head, { query, key }) {
  const [from, to] = [shown(view.tokens[query]), shown(view.tokens[key])];
  const value = key > query ? "masked" : percent(weight(head, query, key));
  setText(byId("attention-cell"), `Head ${head + 1}: ${from} → ${to}: ${value}`);
}

/** Selects the token at an offset of the text, if the maps include it. */
export function chooseAt(start) {
  if (!view) return;
  const index = view.starts.findLastIndex((other) => other <= start);
  if (index >= 0) choose(index);
  else setText(byId("attention-cell"), "The selected token is before the ones shown.");
}

/** Shows what a token attends to: in the text, on the maps and in the table. */
function choose(query) {
  view.query = query;
  const options = byId("attention-text").children;
  for (const option of options) {
    const isQuery = Number(option.dataset.index) === query;
    option.setAttribute("aria-selected", String(isQuery));
    option.tabIndex = isQuery ? 0 : -1;
  }
  const list = byId("attention-text");
  list.scrollTop = options[query].offsetTop - list.clientHeight / 2;
  for (const marker of byId("attention-maps").querySelectorAll(".row-marker")) {
    marker.style.setProperty("--row", query / view.parts.length);
    marker.style.setProperty("--rows", view.parts.length);
  }
  setText(byId("attention-cell"), `${shown(view.tokens[query])} attends to the shaded tokens.`);
  shade();
  tabulate();
}

/** The attention weights of the selected token, of one head or the mean of all. */
function rowOf(chosen) {
  const heads = chosen === "" ? [...Array(view.heads).keys()] : [Number(chosen)];
  const keys = [...Array(view.query + 1).keys()];
  return keys.map((key) => heads.reduce((sum, head) => sum + weight(head, view.query, key), 0) / heads.length);
}

function shade() {
  const row = rowOf(byId("attention-head").value);
  const most = Math.max(...row, 1 / 255);
  [...byId("attention-text").children].forEach((option, key) => {
    for (let shade = 0; shade < SHADES; shade++) option.classList.remove(`a${shade}`);
    if (key < row.length) option.classList.add(`a${Math.round((SHADES - 1) * (row[key] / most))}`);
  });
}

/** Fills the table with the tokens that each head attends to most. */
function tabulate() {
  setText(byId("attention-caption"), `What ${shown(view.tokens[view.query])} attends to most`);
  const rows = Array.from({ length: view.heads }, (_, head) => {
    const ranked = rowOf(head).map((value, key) => ({ value, key }));
    ranked.sort((a, b) => b.value - a.value);
    const top = ranked.slice(0, TOP_TOKENS).map(({ value, key }) => `${shown(view.tokens[key])} ${percent(value)}`);
    const cells = [make("th", { scope: "row", textContent: head + 1 }), make("td", { textContent: top.join(", ") })];
    return make("tr", {}, ...cells);
  });
  byId("attention-table").tBodies[0].replaceChildren(...rows);
}
