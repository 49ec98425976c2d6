// What both pages share: making elements, the theme, and talking to the server.

/** Makes an element from its properties and children; what begins with "aria-" or "data-" becomes an attribute. */
export function make(tag, properties = {}, ...children) {
  const element = document.createElement(tag);
  for (const [key, value] of Object.entries(properties)) {
    if (key.includes("-") || key === "role") element.setAttribute(key, value);
    else element[key] = value;
  }
  element.append(...children);
  return element;
}

export const byId = (id) => document.getElementById(id);

/** Sets a text only if it differs, so that screen readers and selections are left in peace. */
export function setText(element, text) {
  if (element.textContent !== text) element.textContent = text;
}

const THEMES = ["system", "light", "dark"];
const darkSystem = window.matchMedia("(prefers-color-scheme: dark)");

/** Whether the page is dark now. */
export function isDark() {
  const { theme } = document.documentElement.dataset;
  return theme ? theme === "dark" : darkSystem.matches;
}

/** Wires the button that goes through the themes; `onChange` is called whenever the colours change. */
export function initTheme(onChange = () => {}) {
  const button = byId("theme");
  const root = document.documentElement;
  const show = () => setText(button, `Theme: ${root.dataset.theme ?? "system"}`);
  button.addEventListener("click", () => {
    const current = THEMES.indexOf(root.dataset.theme ?? "system");
    const next = THEMES[(current + 1) % THEMES.length];
    if (next === "system") delete root.dataset.theme;
    else root.dataset.theme = next;
    remember(next);
    show();
    onChange();
  });
  darkSystem.addEventListener("change", onChange);
  show();
}

function remember(theme) {
  try {
    if (theme === "system") localStorage.removeItem("folio.theme");
    else localStorage.setItem("folio.theme", theme);
  } catch {
    // Without storage the choice holds for this page only.
  }
}

const KEY = "folio.api-key";
let asking = null;

/** Asks for the API key; several requests that are refused at once share one dialog. False if it is dismissed. */
function askForKey() {
  asking ??= new Promise((resolve) => {
    const dialog = byId("key-dialog");
    const input = byId("key");
    input.value = "";
    dialog.returnValue = "";
    dialog.addEventListener(
      "close",
      () => {
        asking = null;
        const given = dialog.returnValue === "use" && input.value.trim() !== "";
        if (given) sessionStorage.setItem(KEY, input.value.trim());
        resolve(given);
      },
      { once: true },
    );
    dialog.showModal();
  });
  return asking;
}

/** What a refused request says in words. */
async function refusal(response) {
  const body = await response.text();
  let message = "";
  try {
    message = JSON.parse(body).error?.message ?? "";
  } catch {
    // Whatever stands between the page and the server may answer in its own way.
  }
  const wait = response.headers.get("retry-after");
  const hint = response.status === 429 && wait ? ` Try again in ${wait} s.` : "";
  return (message || `The server answered ${response.status} ${response.statusText}.`) + hint;
}

/** Fetches from the server with the API key, asking for it if it is missing or wrong. Throws an Error with words. */
export async function request(path, { body, signal } = {}) {
  for (;;) {
    const headers = {};
    const key = sessionStorage.getItem(KEY);
    if (key) headers.authorization = `Bearer ${key}`;
    if (body) headers["content-type"] = "application/json";
    let response;
    try {
      response = await fetch(path, {
        method: body ? "POST" : "GET",
        headers,
        body: body && JSON.stringify(body),
        signal,
        cache: "no-store",
      });
    } catch (error) {
      if (error.name === "AbortError") throw error;
      throw new Error("The server cannot be reached. Is folio serve still running?");
    }
    if (response.ok) return response;
    const message = await refusal(response);
    if (response.status !== 401 || !(await askForKey())) throw new Error(message);
  }
}

/** A number with at most so many significant digits, or a dash if there is none. */
export function digits(number, count = 4) {
  return Number.isFinite(number) ? number.toLocaleString("en", { maximumSignificantDigits: count }) : "–";
}
