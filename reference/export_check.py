#!/usr/bin/env python3
"""Check that llama.cpp, transformers and onnxruntime compute what folio computes, from the files of `folio export`.

    python export_check.py --folio FOLIO --node DIRECTORY RUN_DIR...

DIRECTORY has node_modules/node-llama-cpp. For the best checkpoint of each run:
- hf: AutoModelForCausalLM, AutoTokenizer and `pipeline` load the directory; f32 has the bits of the checkpoint; greedy text
  as folio's. The other formats are compared with the logits of this model in float32;
- onnx: onnxruntime gives its logits, for several batch sizes and lengths;
- gguf, in every type: llama.cpp gives folio's ids for texts, its logits up to rounding, and 200 greedy tokens as folio
  does. Where rounding changes the most likely token, the two tokens' logits must be that close.
Prints one line per check, and exits with 1 at the first failure.
"""
import argparse, json, shutil, subprocess, sys, tempfile
from pathlib import Path

import numpy, onnxruntime, torch, transformers
from transformers import AutoModelForCausalLM, AutoTokenizer, pipeline

# The text to continue and more texts to tokenize, for runs on tiny Shakespeare and for others. A model of characters only
# gets texts of its characters.
TEXTS = ["ROMEO:\nWhat light", "  the  king\n\nis 'dead'. I'll\n", "First Citizen:\nBefore we\n\n\n  proceed", "Größe naïve café",
         "日本語の文章です。", "床前明月光，疑是地上霜。", "Привет, мир! 👩‍🚀🙂", "e\u0301 ½² 1234567 WE'VE\t tab\u00a0nbsp \u3000x",
         "한국어 हिन्दी ελληνικά עברית العربية"]
NEW_TOKENS = 200
# The largest difference of a logit relative to the largest logit: four or five roundings in a row. llama.cpp rounds keys,
# values and GELU to f16 in every type, by up to 2^-11; bfloat16 by 2^-9, and q8_0 by 1/254 of the largest of 32 numbers.
ALLOWED = {"f32": 2e-3, "f16": 2e-3, "bf16": 1e-2, "q8_0": 2e-2}


def check(name, holds, detail=""):
    print(f"  {'ok' if holds else 'FAILED'}: {name} {detail}".rstrip(), flush=True)
    if not holds:
        sys.exit(1)


class Folio:
    def __init__(self, program, run, place):
        self.program, self.run, self.place = str(Path(program).resolve()), run.resolve(), place

    def __call__(self, *args, stdin=""):
        done = subprocess.run([self.program, *map(str, args)], input=stdin.encode(), capture_output=True, cwd=self.place)
        if done.returncode != 0:
            raise RuntimeError(f"folio {args}: {done.stderr.decode()}")
        return done.stdout.decode()

    def ids(self, text):
        return [int(number) for number in self("tokenizer", "encode", "--tokenizer_type", self.run, stdin=text).split()]

    def greedy(self, prompt):
        args = ["--temperature", "0", "--max_new_tokens", NEW_TOKENS, "--precision", "f32", "--json"]
        return json.loads(self("generate", self.run / "best", "--prompt", prompt, *args))["text"]

    def export(self, form, *flags):
        return self.place / self("export", self.run / "best", "--to", form, *flags).strip()


def texts_of(folio):
    """The texts that the vocabulary can encode, with their ids."""
    known = {}
    for text in TEXTS:
        try:
            known[text] = folio.ids(text)
        except RuntimeError as error:
            if "is not among the" not in str(error):
                raise
    return known


def check_hf(folio, prompt):
    directory = folio.export("hf")
    own = (folio.run / "best" / "model.safetensors").read_bytes()
    check("hf: the weights of the checkpoint", (directory / "model.safetensors").read_bytes() == own)
    model = AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32).eval()
    tokenizer = AutoTokenizer.from_pretrained(directory)
    ids = tokenizer(prompt, return_tensors="pt")["input_ids"]
    with torch.no_grad():
        written = model.generate(ids, do_sample=False, max_new_tokens=NEW_TOKENS)[0, ids.shape[1]:]
    text = tokenizer.decode(written)
    check(f"hf: {NEW_TOKENS} greedy tokens", text == folio.greedy(prompt), repr(text[:30]))
    made = pipeline("text-generation", str(directory))(prompt)[0]["generated_text"]
    check("hf: a pipeline", made.startswith(prompt) and len(made) > len(prompt), repr(made[:30]))
    for name, dtype in [("f16", torch.float16), ("bf16", torch.bfloat16)]:
        other = AutoModelForCausalLM.from_pretrained(folio.export("hf", "--type", name, "--out", name), dtype="auto")
        pairs = zip(other.parameters(), model.parameters(), strict=True)
        same = all(half.dtype == dtype and torch.equal(half, whole.to(dtype)) for half, whole in pairs)
        check(f"hf: weights in {name}", same)
    return model, written.tolist()


def logits_of(model, ids):
    with torch.no_grad():
        return model(torch.tensor(ids)).logits.numpy()


def check_onnx(folio, model):
    session = onnxruntime.InferenceSession(str(folio.export("onnx")), providers=["CPUExecutionProvider"])
    context, tokens = model.config.n_positions, model.config.vocab_size
    for batch, time in [(1, 1), (3, 7), (2, context)]:
        ids = (numpy.arange(batch * time) ** 2 * 7 % tokens).reshape(batch, time)
        got = session.run(["logits"], {"input_ids": ids})[0]
        want = logits_of(model, ids)
        difference = numpy.abs(got - want).max() / numpy.abs(want).max()
        # The order of summation differs; float32 has 6e-8.
        check(f"onnx: logits of {batch} x {time}", got.shape == want.shape and difference <= 1e-5, f"({difference:.1e})")


def llama_cpp(node, path, texts, prompt, count):
    question = json.dumps({"model": str(path), "texts": texts, "prompt": prompt, "count": count})
    done = subprocess.run(["node", str(node / "llama_cpp.mjs")], input=question.encode(), capture_output=True)
    if done.returncode != 0:
        sys.exit(f"node: {done.stderr.decode()}")
    return json.loads(done.stdout.decode().splitlines()[-1])


def check_gguf(folio, node, model, greedy, known, weight_type):
    path = folio.export("gguf", "--type", weight_type)
    (prompt, prompt_ids), *_ = known.items()
    answer = llama_cpp(node, path, list(known), prompt_ids, NEW_TOKENS)
    name = f"gguf {weight_type}"
    differing = [text for text, ids in zip(known, answer["ids"], strict=True) if ids != known[text]]
    check(f"{name}: ids of {len(known)} texts", not differing, "".join(map(repr, differing)))
    tokens = model.config.vocab_size
    want, got = logits_of(model, [prompt_ids])[0], numpy.array(answer["logits"])
    largest = numpy.abs(want).max()
    difference = numpy.abs(got[:, :tokens] - want).max() / largest
    check(f"{name}: logits", difference <= ALLOWED[weight_type], f"({difference:.1e} of the largest)")
    if got.shape[1] > tokens:
        below = (got[:, :tokens].max(axis=1) - got[:, tokens]).min()
        check(f"{name}: the end token", answer["end"] == tokens and below > 20, f"is {below:.1f} below the most likely one")
    written = answer["greedy"]
    agreed = next((at for at, (a, b) in enumerate(zip(written, greedy)) if a != b), len(greedy))
    if agreed == len(greedy):
        check(f"{name}: {len(greedy)} greedy tokens", len(written) == len(greedy))
    else:
        here = logits_of(model, [prompt_ids + greedy[:agreed]])[0, -1]
        gap = (here[greedy[agreed]] - here[written[agreed]]) / numpy.abs(here).max()
        # Both logits may be off.
        check(f"{name}: {agreed} of {len(greedy)} greedy tokens", gap <= 2 * ALLOWED[weight_type],
              f"then two tokens whose logits differ by {gap:.1e} of the largest")
    path.unlink()
    return answer["release"]


def main():
    parser = argparse.ArgumentParser(formatter_class=argparse.RawDescriptionHelpFormatter, description=__doc__)
    parser.add_argument("run_dirs", nargs="+", type=Path, metavar="RUN_DIR")
    parser.add_argument("--folio", default="folio", help="the folio binary (default: %(default)s)")
    parser.add_argument("--node", type=Path, required=True, help="a directory with node_modules/node-llama-cpp")
    args = parser.parse_args()
    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    torch.set_num_threads(1)
    # node finds its modules beside the program.
    shutil.copy(Path(__file__).parent / "llama_cpp.mjs", args.node)
    print(f"transformers {transformers.__version__}, torch {torch.__version__}, onnxruntime {onnxruntime.__version__}")
    for run in args.run_dirs:
        print(run)
        with tempfile.TemporaryDirectory() as place:
            folio = Folio(args.folio, run, Path(place))
            known = texts_of(folio)
            model, greedy = check_hf(folio, next(iter(known)))
            check_onnx(folio, model)
            for weight_type in ALLOWED:
                release = check_gguf(folio, args.node, model, greedy, known, weight_type)
    print(f"llama.cpp: {release}")


if __name__ == "__main__":
    main()
