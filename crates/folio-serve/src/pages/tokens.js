// How tokens are shown: as text where they are text, as bytes where they are only a part of a character.

const BYTES = /^bytes:((?:\\x[0-9a-f]{2})+)$/i;

/** The bytes of a token that is no whole character, as the server writes it ("bytes:\xe2\x80"); null for other tokens. */
function bytesOf(token) {
  const match = BYTES.exec(token);
  return match && match[1].match(/[0-9a-f]{2}/gi).map((hex) => parseInt(hex, 16));
}

/**
 * A function that says what each token in turn adds to the text. Of tokens that make a character together the last
 * one adds it, and those before it add nothing.
 */
export function pieces() {
  const decoder = new TextDecoder("utf-8", { ignoreBOM: true });
  return (token) => {
    const bytes = bytesOf(token);
    // A text ends what was begun: the decoder gives up bytes that wait for others as a replacement character.
    return bytes ? decoder.decode(new Uint8Array(bytes), { stream: true }) : decoder.decode() + token;
  };
}

const NAMES = new Map([
  ["", "nothing"],
  [" ", "space"],
  ["\n", "line break"],
  ["\t", "tab"],
]);

/** A token in a line of its own, in quotes, with what cannot be seen made visible. */
export function shown(token) {
  const bytes = bytesOf(token);
  if (bytes) return `bytes ${bytes.map((byte) => byte.toString(16).padStart(2, "0")).join(" ")}`;
  const name = NAMES.get(token);
  if (name) return name;
  return `“${token.replaceAll("\n", "⏎").replaceAll("\t", "⇥")}”`;
}

/** Whether a text can go on with this token: parts of characters and marks of the model's own cannot be written down. */
export function isWritable(token) {
  return !bytesOf(token) && !/^<\|.*\|>$/.test(token);
}

/** A probability as people read it. */
export function percent(probability) {
  if (probability === 1) return "100 %";
  if (probability >= 0.9995) return "> 99.9 %";
  if (probability >= 0.995) return `${(100 * probability).toFixed(1)} %`;
  if (probability >= 0.1) return `${(100 * probability).toFixed(0)} %`;
  if (probability >= 0.0005) return `${(100 * probability).toPrecision(2)} %`;
  return "< 0.05 %";
}

/** Makes one stop for Tab of the options of a list: arrow keys, Home and End move among them. */
export function initRoving(list, onFocus) {
  list.addEventListener("focusin", ({ target }) => {
    for (const other of list.querySelectorAll('[tabindex="0"]')) other.tabIndex = -1;
    for (const other of list.querySelectorAll('[aria-selected="true"]')) other.setAttribute("aria-selected", "false");
    target.tabIndex = 0;
    target.setAttribute("aria-selected", "true");
    onFocus(target);
  });
  list.addEventListener("click", ({ target }) => target.closest('[role="option"]')?.focus());
  list.addEventListener("keydown", (event) => {
    if (event.ctrlKey || event.altKey || event.metaKey) return;
    const next = neighbour(list, event.target, event.key);
    if (next === undefined) return;
    event.preventDefault();
    next?.focus();
  });
}

/** Where a key leads from an option; null at the end of the list, undefined if the key means nothing here. */
function neighbour(list, option, key) {
  switch (key) {
    case "ArrowLeft":
      return option.previousElementSibling;
    case "ArrowRight":
      return option.nextElementSibling;
    case "ArrowUp":
      return inOtherLine(option, "previousElementSibling");
    case "ArrowDown":
      return inOtherLine(option, "nextElementSibling");
    case "Home":
      return list.firstElementChild;
    case "End":
      return list.lastElementChild;
    default:
      return undefined;
  }
}

/** The option of the line above or below that stands nearest. */
function inOtherLine(option, sibling) {
  const from = option.getBoundingClientRect();
  const line = (box) => Math.round(box.top);
  let best = null;
  for (let other = option[sibling]; other; other = other[sibling]) {
    const box = other.getBoundingClientRect();
    if (line(box) === line(from)) continue;
    if (best && line(box) !== best.line) break;
    const distance = Math.abs(box.left - from.left);
    if (!best || distance < best.distance) best = { other, distance, line: line(box) };
  }
  return best?.other ?? null;
}
