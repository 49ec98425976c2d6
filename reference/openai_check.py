#!/usr/bin/env python3
"""Asks a folio server with OpenAI's own client, and checks what comes back.

    folio serve RUN_DIR --port 8080
    python openai_check.py http://127.0.0.1:8080/v1 MODEL [--api_key KEY]

Lists models, completes, chats, streams, draws several samples with log probabilities, stops, and makes mistakes. Prints a
line for each; the first that does not hold ends it with exit code 1. Needs a server without --chat_template.
"""
import argparse, math, sys

import openai


def check(name, holds, told=""):
    print(f"{'ok' if holds else 'FAILED'}: {name} {told}".rstrip())
    if not holds:
        sys.exit(1)


def refused(kind, ask):
    """The error that `ask` is refused with, which must be of this kind."""
    try:
        ask()
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
    check("its usage", whole.usage.completion_tokens == 40 and whole.choices[0].finish_reason == "length")
    check("the same seed writes the same", complete().choices[0].text == whole.choices[0].text)
    check("another seed another", complete(seed=6).choices[0].text != whole.choices[0].text)

    chunks = list(complete(stream=True, stream_options={"include_usage": True}))
    text = "".join(chunk.choices[0].text for chunk in chunks[:-1])
    check("a stream is the same text", text == whole.choices[0].text, f"({len(chunks)} chunks)")
    check("its usage comes last", chunks[-1].choices == [] and chunks[-1].usage == whole.usage)
    check("its end is told", chunks[-2].choices[0].finish_reason == "length")

    several = complete(n=4, logprobs=5)
    check("four samples", sorted(choice.index for choice in several.choices) == [0, 1, 2, 3])
    check("they differ", len({choice.text for choice in several.choices}) > 1)
    check("the first is that of one alone", several.choices[0].text == whole.choices[0].text)
    for choice in several.choices:
        told = choice.logprobs
        lengths = {len(told.tokens), len(told.token_logprobs), len(told.top_logprobs), len(told.text_offset)}
        check(f"log probabilities of sample {choice.index}", lengths == {40})
        sums = [sum(math.exp(value) for value in top.values()) for top in told.top_logprobs]
        check("probabilities are at most 1 together", max(sums) < 1.0001, f"({max(sums):.4f})")
    greedy = complete(temperature=0, logprobs=1).choices[0].logprobs
    check("greedy takes the likeliest", all(
        lp == max(top.values()) for lp, top in zip(greedy.token_logprobs, greedy.top_logprobs)))

    stop = whole.choices[0].text[10:13]
    stopped = complete(stop=["\u0000", stop]).choices[0]
    before = whole.choices[0].text[:whole.choices[0].text.find(stop)]
    check("a stop string ends a text before it", stopped.text == before and stopped.finish_reason == "stop")
    echoed = complete(echo=True, max_tokens=0, logprobs=0).choices[0]
    check("a prompt is scored", echoed.text == "ROMEO:" and echoed.logprobs.token_logprobs[0] is None
          and all(value <= 0 for value in echoed.logprobs.token_logprobs[1:]))
    two = complete(prompt=["ROMEO:", "JULIET:"], n=2)
    check("two prompts, two samples each", len(two.choices) == 4 and two.choices[0].text == whole.choices[0].text)
    ids = several.choices[0].logprobs.model_extra["token_ids"]
    check("a prompt of tokens", len(complete(prompt=ids, max_tokens=3).choices[0].text) > 0)
    check("our own options", len(complete(extra_body={"top_k": 1, "min_p": 0.1}).choices[0].text) > 0)

    error = refused(openai.NotFoundError, lambda: complete(model="nobody"))
    check("an unknown model", error.code == "model_not_found" and error.param == "model", f"({error.body['message']})")
    error = refused(openai.BadRequestError, lambda: complete(temperature=-1))
    check("a wrong field", error.param == "temperature" and error.type == "invalid_request_error")
    refused(openai.NotFoundError, lambda: client.models.retrieve("nobody"))

    def chat(**fields):
        messages = [{"role": "system", "content": "HAMLET:"}, {"role": "user", "content": "ROMEO:"}]
        wanted = {"model": args.model, "messages": messages, "max_tokens": 40, "seed": 5, **fields}
        return client.chat.completions.create(**wanted)

    reply = chat(logprobs=True, top_logprobs=2)
    check("a chat goes on from the last message", reply.choices[0].message.content == whole.choices[0].text)
    check("its usage", reply.usage == whole.usage and reply.choices[0].finish_reason == "length")
    check("its log probabilities", len(reply.choices[0].logprobs.content) == 40)
    chunks = list(chat(stream=True, stream_options={"include_usage": True}))
    text = "".join(chunk.choices[0].delta.content or "" for chunk in chunks[:-1])
    check("a streamed chat is the same text", text == whole.choices[0].text and chunks[-1].usage == whole.usage)

    # Large bodies that are refused unread: the connection is kept, or its end is announced.
    for turn in range(20):
        large = "x" * (100_000 * (turn % 4 + 1))
        error = refused(openai.NotFoundError, lambda: client.embeddings.create(model=args.model, input=large))
        check(f"an address that is not there, {len(large)} bytes", error.code == "unknown_url")
        error = refused(openai.APIStatusError, lambda: complete(prompt="x" * 3_000_000))
        check("a body that is too large", error.status_code == 413)
    if args.api_key != "none":
        other = openai.OpenAI(base_url=args.url, api_key="another", max_retries=0)
        error = refused(openai.AuthenticationError, lambda: other.models.list())
        check("a wrong key", error.code == "invalid_api_key")

    stream = complete(max_tokens=4000, stream=True)
    next(iter(stream))
    stream.close()
    check("a client that hangs up leaves the server well", len(complete().choices[0].text) > 0)


if __name__ == "__main__":
    main()
