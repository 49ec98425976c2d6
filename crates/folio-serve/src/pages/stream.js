// Reads a streamed completion from the server.

import { request } from "./shell.js";

/** The bounds of the time that the page spends on a stream before the browser may handle keys and draw, in milliseconds. */
const [MIN_SLICE, MAX_SLICE] = [10, 100];

/**
 * Returns a function to call after each event, which lets the browser handle keys and draw from time to time: after as long as the
 * previous pause took, within these bounds, so that the text keeps coming while drawing is slow.
 */
function pacer() {
  let slice = MIN_SLICE;
  let resumed = performance.now();
  return async () => {
    const paused = performance.now();
    if (paused - resumed < slice) return;
    // Unlike a timer, a message is not delayed in a hidden page.
    const { port1, port2 } = new MessageChannel();
    await new Promise((resolve) => {
      port1.onmessage = resolve;
      port2.postMessage(null);
    });
    port1.close();
    resumed = performance.now();
    slice = Math.min(Math.max(resumed - paused, MIN_SLICE), MAX_SLICE);
  };
}

/**
 * The data of a text/event-stream, one string per event, until `signal` aborts. Chunks may end inside a line or inside a character.
 */
async function* events(body, signal) {
  const reader = body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  let data = [];
  const pace = pacer();
  try {
    for (;;) {
      const { value, done } = await reader.read().catch((error) => {
        if (error.name === "AbortError") throw error;
        throw new Error("The connection was lost before the text was finished. Is folio serve still running?");
      });
      if (done) return;
      const lines = (rest + value).split(/\r?\n/);
      rest = lines.pop();
      for (const line of lines) {
        if (line.startsWith("data:")) {
          data.push(line.slice(line[5] === " " ? 6 : 5));
        } else if (line === "" && data.length > 0) {
          yield data.join("\n");
          data = [];
          // A chunk may have thousands of events, and chunks that have arrived are read without returning to the browser.
          await pace();
          signal?.throwIfAborted();
        }
      }
    }
  } finally {
    reader.cancel().catch(() => {});
  }
}

/** The chunks of the choices of a streamed completion, in order of arrival. */
export async function* complete(body, signal) {
  const response = await request("/v1/completions", { body: { ...body, stream: true }, signal });
  for await (const data of events(response.body, signal)) {
    if (data === "[DONE]") return;
    const message = JSON.parse(data);
    if (message.error) throw new Error(message.error.message);
    yield* message.choices;
  }
  throw new Error("The server ended the stream before the text was finished.");
}

/** The tokens of one chunk: id, text, log probability, and the most likely alternatives. */
export function tokensOf({ logprobs }) {
  return (logprobs?.tokens ?? []).map((text, i) => ({
    id: logprobs.token_ids?.[i],
    text,
    logprob: logprobs.token_logprobs[i],
    alternatives: Object.entries(logprobs.top_logprobs?.[i] ?? {}).sort((a, b) => b[1] - a[1]),
  }));
}
