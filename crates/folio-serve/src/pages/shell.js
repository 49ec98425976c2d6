// Shared by both pages: creating elements, the theme, and requests to the server.

/** Creates an element. Properties with a hyphen ("aria-", "data-") and "role" become attributes. */
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

/** Sets a text only if it differs, so as not to disturb screen readers and selections. */
export function setText(element, text) {
  if (element.textContent !== text) element.textContent = text;
}

const THEMES = ["system", "light", "dark"];
const darkSystem = window.matchMedia("(prefers-color-scheme: dark)");

/** Whether the page is currently dark. */
export function isDark() {
  const { theme } = document.documentElement.dataset;
  return theme ? theme === "dark" : darkSystem.matches;
}

/** Sets up the button that cycles through the themes. `onChange` is called whenever the colors change. */
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
    // Without storage the theme applies to this page only.
  }
}

const KEY = "folio.api-key";
let keyPrompt = null;

/** Prompts for the API key. Concurrent requests share one dialog. Resolves to false if it is dismissed. */
function promptForKey() {
  keyPrompt ??= new Promise((resolve) => {
    const dialog = byId("key-dialog");
    const input = byId("key");
    input.value = "";
    dialog.returnValue = "";
    dialog.addEventListener(
      "close",
      () => {
        keyPrompt = null;
        const given = dialog.returnValue === "use" && input.value.trim() !== "";
        if (given) sessionStorage.setItem(KEY, input.value.trim());
        resolve(given);
      },
      { once: true },
    );
    dialog.showModal();
  });
  return keyPrompt;
}

/** The error message of a response. */
async function errorMessage(response) {
  const body = await response.text();
  let message = "";
  try {
    message = JSON.parse(body).error?.message ?? "";
  } catch {
    // A proxy may respond with something other than JSON.
  }
  return message || `The server responded with ${response.status} ${response.statusText}.`;
}

/** Sends a request with the API key; prompts for the key if it is missing or wrong. Throws an Error with a message. */
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
    const message = await errorMessage(response);
    if (response.status !== 401 || !(await promptForKey())) throw new Error(message);
  }
}

/** A number with at most `count` significant digits, or a dash if there is none. */
export function digits(number, count = 4) {
  return Number.isFinite(number) ? number.toLocaleString("en", { maximumSignificantDigits: count }) : "–";
}
