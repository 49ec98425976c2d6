#!/usr/bin/env python3
"""Check that transformers and folio agree on a checkpoint: tokens, log probabilities, greedy text.

    python transformers_check.py --folio FOLIO RUN_DIR...
    python transformers_check.py --folio FOLIO --import MODEL_DIR...

RUN_DIR is a run whose vocabulary can encode `ROMEO:`; FOLIO is the folio binary. Checks for the best checkpoint of each run:
- AutoTokenizer gives the same tokens and texts as folio;
- AutoModelForCausalLM gives the same log probabilities as folio's server, in float32;
- `generate` gives the same text as folio at temperature 0, in float32;
- `pipeline("text-generation", DIRECTORY)` continues a prompt without further settings;
- folio can load the tokenizer that transformers saves.
With `--import`, MODEL_DIR is a model that transformers saved. folio imports it, and transformers must give the same logits for
folio's checkpoint as for the original.
Prints one line per check, and exits with 1 at the first failure.
"""
import argparse, json, subprocess, sys, tempfile, time, urllib.request
from pathlib import Path

import tokenizers, torch, transformers
from transformers import AutoModelForCausalLM, AutoTokenizer, pipeline

PROMPTS = ["ROMEO:", "First Citizen:\nBefore we", "  the  king\n\nis 'dead'. ", "\n"]
# Texts that only a BPE can encode.
ODD = ["naïveté 日本語 👩‍🚀\t\r\n \x00", "I'LL we'll 1234567  ½²", "a <|endoftext| b", "e\u0301 \u00e9 \ufb01"]
PORT = 18923


def check(name, holds, detail=""):
    print(f"{'ok' if holds else 'FAILED'}: {name} {detail}".rstrip(), flush=True)
    if not holds:
        sys.exit(1)


class Folio:
    def __init__(self, program, run):
        self.program, self.run = program, run

    def __call__(self, *args, stdin=""):
        done = subprocess.run([self.program, *map(str, args)], input=stdin.encode(), capture_output=True)
        if done.returncode != 0:
            sys.exit(f"folio {args}: {done.stderr.decode()}")
        return done.stdout.decode()

    def ids(self, text, tokenizer=None, *flags):
        given = self("tokenizer", "encode", "--tokenizer_type", tokenizer or self.run, *flags, stdin=text)
        return [int(number) for number in given.split()]

    def greedy(self, prompt, count):
        args = ["--best_eval_loss_model", "--temperature", "0", "--max_new_tokens", count, "--json"]
        args += ["--precision", "f32"]
        return json.loads(self("generate", self.run, "--prompt", prompt, *args))

    def log_probabilities(self, prompt):
        """The log probabilities of all tokens of a prompt but the first, from a server."""
        command = [self.program, "serve", self.run, "--port", str(PORT), "--precision", "f32"]
        server = subprocess.Popen(command, stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL)
        try:
            body = {"model": Path(self.run).name, "prompt": prompt, "max_tokens": 0, "echo": True, "logprobs": 0}
            request = urllib.request.Request(f"http://127.0.0.1:{PORT}/v1/completions", json.dumps(body).encode(),
                                             {"Content-Type": "application/json"})
            for attempt in range(100):
                try:
                    answer = json.load(urllib.request.urlopen(request))
                    break
                except urllib.error.HTTPError as error:
                    sys.exit(f"the server: {error.read().decode()}")
                except urllib.error.URLError:
                    time.sleep(0.1)
            return answer["choices"][0]["logprobs"]["token_logprobs"][1:]
        finally:
            server.terminate()
            server.wait()


def check_tokens(folio, directory, tokenizer):
    """Compare ids and texts, including special tokens if there are any."""
    is_bpe = bool(json.loads((directory / "tokenizer.json").read_text())["model"]["merges"])
    texts = PROMPTS + (ODD if is_bpe else [])
    for text in texts:
        ids = tokenizer(text)["input_ids"]
        check("tokens", ids == folio.ids(text), repr(text))
        check("decoded text", tokenizer.decode(ids) == text)
    end = tokenizer.eos_token
    config = json.loads((directory / "config.json").read_text())
    check("the end token", tokenizer.eos_token_id == config["eos_token_id"], repr(end))
    check("the first token", tokenizer.bos_token_id == config["bos_token_id"], repr(tokenizer.bos_token))
    if end:
        text = f"To be{end} or not"
        check("tokens with an end", tokenizer(text)["input_ids"] == folio.ids(text, None, "--allow_special"))
    check("the context", tokenizer.model_max_length == config["n_positions"])
    with tempfile.TemporaryDirectory() as saved:
        tokenizer.save_pretrained(saved)
        for text in texts:
            ids = folio.ids(text, Path(saved) / "tokenizer.json", "--allow_special")
            check("tokens with the tokenizer that transformers saves", ids == folio.ids(text))


def check_model(folio, directory, tokenizer):
    model = AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32).eval()
    context = model.config.n_positions
    for prompt in PROMPTS[:2]:
        ids = tokenizer(prompt, return_tensors="pt")["input_ids"]
        with torch.no_grad():
            theirs = model(ids).logits[0].log_softmax(-1)[:-1].gather(-1, ids[0, 1:, None])[:, 0]
        difference = (theirs - torch.tensor(folio.log_probabilities(prompt))).abs().max().item()
        # The order of summation in float32 differs. Written so that a NaN fails.
        check("log probabilities", difference <= 1e-4, f"({difference:.1e})")
        count = context - ids.shape[1]
        ours = folio.greedy(prompt, count)
        with torch.no_grad():
            written = model.generate(ids, do_sample=False, max_new_tokens=count)[0, ids.shape[1]:]
        text = tokenizer.decode(written, skip_special_tokens=True)
        check("greedy text", text == ours["text"], f"({len(written)} tokens) {text[:40]!r}")


def check_pipeline(directory):
    write = pipeline("text-generation", str(directory))
    for prompt in PROMPTS[:1]:
        text = write(prompt)[0]["generated_text"]
        check("a pipeline", text.startswith(prompt) and len(text) > len(prompt), repr(text[:60]))
        several = write([prompt, prompt + " the"], batch_size=1)
        check("a pipeline of two", len(several) == 2)


def check_import(program, directory):
    with tempfile.TemporaryDirectory() as place:
        run = Path(place) / "run"
        Folio(program, run)("import", directory, "--run_dir", run)
        load = lambda path: AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32).eval()
        theirs, ours = load(directory), load(run / "latest")
        context = theirs.config.n_positions
        ids = torch.arange(context)[None] * 7 % theirs.config.vocab_size
        with torch.no_grad():
            difference = (theirs(ids).logits - ours(ids).logits).abs().max().item()
        # The weights are the same bits, and so are the sums.
        check("logits after import", difference == 0, f"({difference:.1e})")
        same = AutoTokenizer.from_pretrained(directory)("to be")["input_ids"]
        check("tokens after import", AutoTokenizer.from_pretrained(run / "latest")("to be")["input_ids"] == same)


def main():
    parser = argparse.ArgumentParser(formatter_class=argparse.RawDescriptionHelpFormatter, description=__doc__)
    parser.add_argument("run_dirs", nargs="*", type=Path, metavar="RUN_DIR")
    parser.add_argument("--import", nargs="+", default=[], type=Path, metavar="MODEL_DIR", dest="imports")
    parser.add_argument("--folio", default="folio", help="the folio binary (default: %(default)s)")
    args = parser.parse_args()
    transformers.utils.logging.set_verbosity_error()
    torch.set_num_threads(1)
    print(f"transformers {transformers.__version__}, tokenizers {tokenizers.__version__}, torch {torch.__version__}")
    for directory in args.imports:
        print(directory)
        check_import(args.folio, directory)
    for run in args.run_dirs:
        folio, directory = Folio(args.folio, run), run / "best"
        print(run)
        tokenizer = AutoTokenizer.from_pretrained(directory)
        check_tokens(folio, directory, tokenizer)
        check_model(folio, directory, tokenizer)
        check_pipeline(directory)


if __name__ == "__main__":
    main()
