#!/usr/bin/env python3
r"""Compare the speed of folio's tokenizers with Hugging Face's `tokenizers`, `rustbpe` and `tiktoken`.

    cargo build --release
    python3 -m venv /tmp/rival && /tmp/rival/bin/pip install tokenizers tiktoken rustbpe
    target/release/folio train --tokenizer_type bpe --n_emb 32 --n_heads 2 --n_blocks 1 --block_sizes 32 \
        --batch_sizes 2 --max_steps 1 --num_epochs 1 --save_losses --run_dir /tmp/gpt2
    target/release/folio corpus > /tmp/tiny_shakespeare.txt
    /tmp/rival/bin/python bench/tokenizer_speed.py --gpt2 /tmp/gpt2/tokenizer.json --text /tmp/tiny_shakespeare.txt

Prints a Markdown table: the median time of each program, and its ratio to folio's. The programs alternate. Every measurement
runs in a new process, and excludes startup, reading files and loading a vocabulary; no cache has seen the text before.

- train: a byte-level BPE of 1,024 and of 10,000 tokens from the text, with GPT-2's split into words, on --threads.
- encode: the text with GPT-2's vocabulary, on one thread.
- one letter: the same for a million letters a: a single word, the worst case for merging.

Each rival gets the text in the form that is fastest for it, whole or in pieces of a length found by trial. The text is cut
between a visible character and white space, which never splits a word, so that the work is the same. (Cutting into lines would
change the work, because it separates "\n" from the following word.) Hugging Face's library encodes with `encode_batch_fast`,
which does not compute offsets. rustbpe uses the published pattern, tiktoken its own equivalent one.
"""
import argparse, json, math, os, pathlib, re, statistics, subprocess, sys, tempfile, time

HERE = pathlib.Path(__file__).resolve().parent

PUBLISHED = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
EQUIVALENT = r"'(?:[sdmt]|ll|ve|re)| ?\p{L}++| ?\p{N}++| ?[^\s\p{L}\p{N}]++|\s++$|\s+(?!\S)|\s"
END_OF_TEXT = "<|endoftext|>"
# Candidate lengths of a piece of text, in characters.
LENGTHS = [1 << 11, 1 << 14, 1 << 16, 1 << 62]
TRIES = 3
LIMIT_S = 60
PROGRAMS = ["folio", "tokenizers", "rustbpe", "tiktoken"]


def pieces(text, length):
    """Cuts a text into pieces without splitting a word."""
    place, start, found = re.compile("(?<=[!-~])(?=[ \n])"), 0, []
    while start < len(text):
        cut = place.search(text, start + length)
        end = cut.start() if cut else len(text)
        found.append(text[start:end])
        start = end
    return found


def seconds(work):
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def train_tokenizers(parts, vocab_size):
    from tokenizers import Tokenizer, models, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
    trainer = trainers.BpeTrainer(vocab_size=vocab_size, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
                                  special_tokens=[], show_progress=False)
    return seconds(lambda: tokenizer.train_from_iterator(parts, trainer))


def train_rustbpe(parts, vocab_size):
    import rustbpe

    tokenizer = rustbpe.Tokenizer()
    return seconds(lambda: tokenizer.train_from_iterator(iter(parts), vocab_size, pattern=PUBLISHED))


def encode_tokenizers(parts, gpt2):
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(gpt2)
    tokenizer.encode_batch_fast(["Once"])
    return seconds(lambda: tokenizer.encode_batch_fast(parts))


def encode_tiktoken(parts, gpt2):
    import tiktoken

    # GPT-2's alphabet: bytes that are visible in Latin-1 map to that character, the others to the characters from U+0100 on.
    visible = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in visible]
    byte_of = {chr(byte): byte for byte in visible} | {chr(0x100 + i): byte for i, byte in enumerate(others)}
    vocab = json.loads(pathlib.Path(gpt2).read_bytes())["model"]["vocab"]
    special = {END_OF_TEXT: vocab.pop(END_OF_TEXT)}
    ranks = {bytes(byte_of[char] for char in token): rank for token, rank in vocab.items()}
    encoding = tiktoken.Encoding("gpt2", pat_str=EQUIVALENT, mergeable_ranks=ranks, special_tokens=special)
    encoding.encode_ordinary("Once")
    return seconds(lambda: [encoding.encode_ordinary(part) for part in parts])


RIVALS = {
    ("train", "tokenizers"): train_tokenizers,
    ("train", "rustbpe"): train_rustbpe,
    ("encode", "tokenizers"): encode_tokenizers,
    ("encode", "tiktoken"): encode_tiktoken,
}


def run(command, threads):
    """Runs a program once and returns the JSON object on its last line, or None after a timeout."""
    # The first two variables slow down current versions of numpy.
    environment = {k: v for k, v in os.environ.items() if k not in ("OPENBLAS_CORETYPE", "OPENBLAS_L2_SIZE")}
    environment |= {"RAYON_NUM_THREADS": str(threads), "TOKENIZERS_PARALLELISM": "true" if threads > 1 else "false"}
    try:
        done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=LIMIT_S)
    except subprocess.TimeoutExpired:
        return None
    if done.returncode:
        raise SystemExit(f"{' '.join(command)} failed:\n{done.stderr}")
    return json.loads(done.stdout.splitlines()[-1])


def rival(program, task, text, argument, threads):
    """The command that measures a rival once, with the fastest length of pieces, and the key of its result."""
    command = [sys.executable, __file__, "--measure", task, program, str(text), str(argument)]

    def best(length):
        times = []
        for _ in range(TRIES):
            result = run([*command, str(length)], threads)
            if result is None:
                return math.inf
            times.append(result["s"])
        return min(times)

    return [*command, str(min(LENGTHS, key=best))], "s"


def folio(a, text, vocab_size, threads):
    return [a.folio, "bench", "tokenizer", "--data", str(text), "--vocab_size", str(vocab_size),
            "--threads", str(threads), "--repeat", "1"]


def row(name, programs, rounds, threads):
    """Runs the programs, given as command and key of the result, alternately; prints medians and ratios."""
    times = {program: [] for program in programs}
    for _ in range(rounds):
        for program, (command, key) in programs.items():
            if None in times[program]:
                continue
            result = run(command, threads)
            times[program].append(result and result[key])
    medians = {k: None if None in v else statistics.median(v) for k, v in times.items()}
    cells = [name]
    for program in PROGRAMS:
        late = f"over {LIMIT_S}" if program in medians else ""
        cells.append(f"{medians[program]:.4f}" if medians.get(program) is not None else late)
    for program in PROGRAMS[1:]:
        late = f"over {LIMIT_S / medians['folio']:,.0f}" if program in medians else ""
        cells.append(f"{medians[program] / medians['folio']:.2f}" if medians.get(program) is not None else late)
    print(f"| {' | '.join(cells)} |", flush=True)


def main():
    if sys.argv[1:2] == ["--measure"]:
        task, program, text, argument, length = sys.argv[2:]
        argument = int(argument) if task == "train" else argument
        text = pathlib.Path(text).read_bytes().decode()
        print(json.dumps({"s": RIVALS[task, program](pieces(text, int(length)), argument)}))
        return
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--folio", default=str(HERE.parent / "target/release/folio"))
    p.add_argument("--text", required=True)
    p.add_argument("--gpt2", required=True, help="GPT-2's tokenizer.json, from a run of folio")
    p.add_argument("--rounds", type=int, default=5)
    p.add_argument("--threads", type=int, default=2, help="threads for training")
    a = p.parse_args()

    over = [f"{program} / folio" for program in PROGRAMS[1:]]
    print(f"| task | {', s | '.join(PROGRAMS)}, s | {' | '.join(over)} |")
    print("|---|" + "---:|" * (len(PROGRAMS) + len(over)))
    for vocab_size in (1_024, 10_000):
        row(f"train {vocab_size:,}", {
            "folio": (folio(a, a.text, vocab_size, a.threads), "train_s"),
            "tokenizers": rival("tokenizers", "train", a.text, vocab_size, a.threads),
            "rustbpe": rival("rustbpe", "train", a.text, vocab_size, a.threads),
        }, a.rounds, a.threads)
    with tempfile.TemporaryDirectory() as directory:
        letters = pathlib.Path(directory) / "letters.txt"
        letters.write_text("a" * 1_000_000)
        # A vocabulary that both texts are large enough for; only the encoding with GPT-2's is used.
        for name, text in (("encode", a.text), ("one letter", letters)):
            row(name, {
                "folio": (folio(a, text, 257, 1), "gpt2_encode_s"),
                "tokenizers": rival("tokenizers", "encode", text, a.gpt2, 1),
                "tiktoken": rival("tiktoken", "encode", text, a.gpt2, 1),
            }, a.rounds, 1)


main()
