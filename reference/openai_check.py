#!/usr/bin/env python3
"""Check a folio server with OpenAI's own client.

    folio serve RUN_DIR --port 8080
    python openai_check.py http://127.0.0.1:8080/v1 MODEL [--api_key KEY]

Tests models, completions, chats, streams, several samples with log probabilities, stop strings and errors. Prints one
line per check, and exits with 1 at the first failure. Needs a server without --chat_template.
"""
import argparse, math, sys

import openai


def check(name, holds, detail=""):
    print(f"{'ok' if holds else 'FAILED'}: {name} {detail}".rstrip())
    if not holds:
        sys.exit(1)


def rejected(kind, request):
    """The error of `request`, which must be of this kind."""
    try:
        request()
    except kind as error:
        return error
    check(f"{kind.__name__} was expected", False)


def main():
    parser = argparse.ArgumentParser(formatter_class=argparse.RawDescriptionHelpFormatter, description=__doc__)
    parser.add_argument("url")
    parser.add_argument("model")
    parser.add_argument("--api_key", default="none")
    args = parser.parse_args()
    client = openai.OpenAI(base_url=args.url, api_key=args.api_key, max_retries=0)

    def complete(**fields):
        wanted = {"model": args.model, "prompt": "ROMEO:", "max_tokens": 40, "seed": 5, **fields}
        return client.completions.create(**wanted)

    ids = [model.id for model in client.models.list()]
    check("models are listed", args.model in ids, f"({len(ids)})")
    check("one model", client.models.retrieve(args.model).owned_by == "folio")

    whole = complete()
    check("a completion", whole.object == "text_completion" and len(whole.choices[0].text) > 0)
    check("usage", whole.usage.completion_tokens == 40 and whole.choices[0].finish_reason == "length")
    check("the same seed gives the same text", complete().choices[0].text == whole.choices[0].text)
    check("another seed gives another text", complete(seed=6).choices[0].text != whole.choices[0].text)

    chunks = list(complete(stream=True, stream_options={"include_usage": True}))
    text = "".join(chunk.choices[0].text for chunk in chunks[:-1])
    check("a stream has the same text", text == whole.choices[0].text, f"({len(chunks)} chunks)")
    check("usage is in the last chunk", chunks[-1].choices == [] and chunks[-1].usage == whole.usage)
    check("the finish reason is in the stream", chunks[-2].choices[0].finish_reason == "length")

    several = complete(n=4, logprobs=5)
    check("four samples", sorted(choice.index for choice in several.choices) == [0, 1, 2, 3])
    check("samples differ", len({choice.text for choice in several.choices}) > 1)
    check("the first sample equals a single one", several.choices[0].text == whole.choices[0].text)
    for choice in several.choices:
        logprobs = choice.logprobs
        lists = [logprobs.tokens, logprobs.token_logprobs, logprobs.top_logprobs, logprobs.text_offset]
        lengths = {len(values) for values in lists}
        check(f"log probabilities of sample {choice.index}", lengths == {40})
        sums = [sum(math.exp(value) for value in top.values()) for top in logprobs.top_logprobs]
        check("the sum of probabilities is at most 1", max(sums) < 1.0001, f"({max(sums):.4f})")
    greedy = complete(temperature=0, logprobs=1).choices[0].logprobs
    check("greedy takes the most likely token", all(
        lp == max(top.values()) for lp, top in zip(greedy.token_logprobs, greedy.top_logprobs)))

    stop = whole.choices[0].text[10:13]
    stopped = complete(stop=["\u0000", stop]).choices[0]
    before = whole.choices[0].text[:whole.choices[0].text.find(stop)]
    check("a text ends before a stop string", stopped.text == before and stopped.finish_reason == "stop")
    echoed = complete(echo=True, max_tokens=0, logprobs=0).choices[0]
    check("a prompt is scored", echoed.text == "ROMEO:" and echoed.logprobs.token_logprobs[0] is None
          and all(value <= 0 for value in echoed.logprobs.token_logprobs[1:]))
    two = complete(prompt=["ROMEO:", "JULIET:"], n=2)
    check("two prompts, two samples each", len(two.choices) == 4 and two.choices[0].text == whole.choices[0].text)
    ids = several.choices[0].logprobs.model_extra["token_ids"]
    check("a prompt of tokens", len(complete(prompt=ids, max_tokens=3).choices[0].text) > 0)
    check("options of folio", len(complete(extra_body={"top_k": 1, "min_p": 0.1}).choices[0].text) > 0)

    error = rejected(openai.NotFoundError, lambda: complete(model="nobody"))
    check("an unknown model", error.code == "model_not_found" and error.param == "model", f"({error.body['message']})")
    error = rejected(openai.BadRequestError, lambda: complete(temperature=-1))
    check("an invalid field", error.param == "temperature" and error.type == "invalid_request_error")
    rejected(openai.NotFoundError, lambda: client.models.retrieve("nobody"))

    def chat(**fields):
        messages = [{"role": "system", "content": "HAMLET:"}, {"role": "user", "content": "ROMEO:"}]
        wanted = {"model": args.model, "messages": messages, "max_tokens": 40, "seed": 5, **fields}
        return client.chat.completions.create(**wanted)

    reply = chat(logprobs=True, top_logprobs=2)
    check("a chat continues the last message", reply.choices[0].message.content == whole.choices[0].text)
    check("usage", reply.usage == whole.usage and reply.choices[0].finish_reason == "length")
    check("log probabilities of a chat", len(reply.choices[0].logprobs.content) == 40)
    chunks = list(chat(stream=True, stream_options={"include_usage": True}))
    text = "".join(chunk.choices[0].delta.content or "" for chunk in chunks[:-1])
    check("a streamed chat has the same text", text == whole.choices[0].text and chunks[-1].usage == whole.usage)

    # Large bodies are rejected without being read; the connection stays open, or the server announces that it closes it.
    for turn in range(20):
        large = "x" * (100_000 * (turn % 4 + 1))
        error = rejected(openai.NotFoundError, lambda: client.embeddings.create(model=args.model, input=large))
        check(f"an unknown URL, {len(large)} bytes", error.code == "unknown_url")
        error = rejected(openai.APIStatusError, lambda: complete(prompt="x" * 3_000_000))
        check("a body that is too large", error.status_code == 413)
    if args.api_key != "none":
        other = openai.OpenAI(base_url=args.url, api_key="another", max_retries=0)
        error = rejected(openai.AuthenticationError, lambda: other.models.list())
        check("a wrong key", error.code == "invalid_api_key")

    stream = complete(max_tokens=4000, stream=True)
    next(iter(stream))
    stream.close()
    check("the server still works after a client disconnects", len(complete().choices[0].text) > 0)


if __name__ == "__main__":
    main()
