// Displays tokens: as text, or as bytes if a token is only a part of a character.

const BYTES = /^bytes:((?:\\x[0-9a-f]{2})+)$/i;

/** The bytes of a token that the server writes as bytes ("bytes:\xe2\x80"); null for other tokens. */
function bytesOf(token) {
  const match = BYTES.exec(token);
  return match && match[1].match(/[0-9a-f]{2}/gi).map((hex) => parseInt(hex, 16));
}

/**
 * Returns a function that maps each token in turn to the text it adds. If several tokens form one character, the last of
 * them adds it.
 */
export function pieces() {
  const decoder = new TextDecoder("utf-8", { ignoreBOM: true });
  return (token) => {
    const bytes = bytesOf(token);
    // decode() without arguments flushes an incomplete character as a replacement character.
    return bytes ? decoder.decode(new Uint8Array(bytes), { stream: true }) : decoder.decode() + token;
  };
}

const NAMES = new Map([
  ["", "nothing"],
  [" ", "space"],
  ["\n", "line break"],
  ["\t", "tab"],
]);

/** A token in quotes, with invisible characters made visible. */
export function shown(token) {
  const bytes = bytesOf(token);
  if (bytes) return `bytes ${bytes.map((byte) => byte.toString(16).padStart(2, "0")).join(" ")}`;
  const name = NAMES.get(token);
  if (name) return name;
  return `“${token.replaceAll("\n", "⏎").replaceAll("\t", "⇥")}”`;
}

/** Whether this token can be part of a prompt: parts of characters and special tokens cannot. */
export function isWritable(token) {
  return !bytesOf(token) && !/^<\|.*\|>$/.test(token);
}

/** A probability as a percentage. */
export function percent(probability) {
  if (probability === 1) return "100 %";
  if (probability >= 0.9995) return "> 99.9 %";
  if (probability >= 0.995) return `${(100 * probability).toFixed(1)} %`;
  if (probability >= 0.1) return `${(100 * probability).toFixed(0)} %`;
  if (probability >= 0.0005) return `${(100 * probability).toPrecision(2)} %`;
  return "< 0.05 %";
}

/** Makes a list a single tab stop; the arrow keys, Home and End move between its options (roving tabindex). */
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
    const next = neighbor(list, event.target, event.key);
    if (next === undefined) return;
    event.preventDefault();
    next?.focus();
  });
}

/** The option that a key moves to; null at the end of the list, undefined for other keys. */
function neighbor(list, option, key) {
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

/** The nearest option in the line above or below. */
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
