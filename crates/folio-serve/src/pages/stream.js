// A completion as it comes from the server.

import { request } from "./shell.js";

/**
 * The data of a text/event-stream, one string per event. Lines may be split anywhere between two chunks,
 * characters too.
 */
async function* events(body) {
  const reader = body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  let data = [];
  try {
    for (;;) {
      const { value, done } = await reader.read().catch((error) => {
        if (error.name === "AbortError") throw error;
        throw new Error("The connection broke before the text was finished. Is folio serve still running?");
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
        }
      }
    }
  } finally {
    reader.cancel().catch(() => {});
  }
}

/** The choices of a streamed completion, in the order in which their parts come. */
export async function* complete(body, signal) {
  const response = await request("/v1/completions", { body: { ...body, stream: true }, signal });
  for await (const data of events(response.body)) {
    if (data === "[DONE]") return;
    const message = JSON.parse(data);
    if (message.error) throw new Error(message.error.message);
    yield* message.choices;
  }
  throw new Error("The server ended the text before it was finished.");
}

/** The tokens of one part of a choice: id, text, natural logarithm of the probability, and what else was likely. */
export function tokensOf({ logprobs }) {
  return (logprobs?.tokens ?? []).map((text, i) => ({
    id: logprobs.token_ids?.[i],
    text,
    logprob: logprobs.token_logprobs[i],
    alternatives: Object.entries(logprobs.top_logprobs?.[i] ?? {}).sort((a, b) => b[1] - a[1]),
  }));
}
