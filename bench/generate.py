#!/usr/bin/env python3
"""Compare the generation speed of folio and its rivals: the same sizes, random weights, one sequence and 16 in parallel.

    cargo build --release
    python3 -m venv /tmp/rival && /tmp/rival/bin/pip install torch numpy transformers safetensors llama-cpp-python
    python3 bench/generate.py --rival-python /tmp/rival/bin/python --rivals llama.cpp transformers -- char gpt2-124m

The rivals are llama.cpp (which pip compiles for this machine: it needs a C++ compiler, and takes ten minutes), Hugging Face transformers
with its cache, and PyTorch that recomputes the whole context for every token, as a plain sampling script does. bf16 is compared with the
faster of llama.cpp's bf16 and f16, int8 with its q8_0. The programs alternate. Prints a table of medians.
"""
import argparse, json, os, pathlib, statistics, subprocess, tempfile

HERE = pathlib.Path(__file__).parent
SETTINGS = {
    "char": dict(block=256, vocab=65, emb=384, blocks=6, heads=6, tokens=255),
    "gpt2-124m": dict(block=1024, vocab=50257, emb=768, blocks=12, heads=12, tokens=64),
}
TOKENIZERS = {65: "chrs", 50257: "bpe"}
# What each rival calls folio's formats. Of several names the fastest counts.
FORMATS = {
    "llama.cpp": dict(f32=["f32"], bf16=["bf16", "f16"], int8=["q8_0"]),
    "transformers": dict(f32=["float32"], bf16=["bfloat16"]),
    "pytorch": dict(f32=["f32"]),
}


def run(command):
    """Runs a program once and returns the JSON object that it prints."""
    # These two variables slow down current versions of numpy and PyTorch.
    environment = {k: v for k, v in os.environ.items() if k not in ("OPENBLAS_CORETYPE", "OPENBLAS_L2_SIZE")}
    done = subprocess.run([str(part) for part in command], capture_output=True, text=True, env=environment)
    if done.returncode:
        raise SystemExit(f"{' '.join(map(str, command))} failed:\n{done.stderr}")
    return json.loads(done.stdout.splitlines()[-1])


def flags(**values):
    return [f"--{name}={value}" for name, value in values.items()]


def export(folio, directory, setting):
    """Exports a model of these sizes for the rivals, after one step of training."""
    sizes = flags(n_emb=setting["emb"], n_blocks=setting["blocks"], n_heads=setting["heads"], block_sizes=setting["block"],
                  tokenizer_type=TOKENIZERS[setting["vocab"]], batch_sizes=1, num_epochs=1, max_steps=1, sample_tokens=0, run_dir=directory / "run")
    call = lambda *command: subprocess.run([folio, *command], check=True, capture_output=True)
    call("train", "--save_checkpoint", *sizes)
    call("export", directory / "run", "--to", "hf", "--out", directory / "hf")
    for name in sum(FORMATS["llama.cpp"].values(), []):
        call("export", directory / "run", "--to", "gguf", "--type", name, "--out", directory / f"{name}.gguf")


def rival_speed(python, rival, name, directory, setting, streams, threads):
    tail = flags(tokens=setting["tokens"], streams=streams, threads=threads)
    if rival == "llama.cpp":
        return run([python, HERE / "llama_cpp_generate.py", f"--model={directory / name}.gguf", *tail])["tokens_per_s"]
    if rival == "transformers":
        return run([python, HERE / "transformers_generate.py", f"--model={directory / 'hf'}", f"--dtype={name}", *tail])["tokens_per_s"]
    return run([python, HERE / "torch_gpt2.py", "generate", *flags(**setting, threads=threads)])["tokens_per_s"]


def compare(args, name, directory):
    setting = SETTINGS[name]
    if {"llama.cpp", "transformers"} & set(args.rivals):
        export(args.folio, directory, setting)
    cases = [(precision, streams) for precision in args.precisions for streams in (1, 16)]
    ours, theirs = {case: [] for case in cases}, {}
    for _ in range(args.rounds):
        for precision, streams in cases:
            command = [args.folio, "bench", "generate", *flags(**setting, precision=precision, streams=streams, threads=args.threads, rounds=3)]
            ours[precision, streams].append(run(command))
            for rival in args.rivals:
                for format in FORMATS[rival].get(precision, []):
                    if rival == "pytorch" and streams > 1:
                        continue
                    speed = rival_speed(args.rival_python, rival, format, directory, setting, streams, args.threads)
                    theirs.setdefault((precision, streams, rival, format), []).append(speed)
    for precision, streams in cases:
        middle = lambda key: statistics.median(result[key] or 0 for result in ours[precision, streams])
        speed, read, memory = middle("tokens_per_s"), middle("gb_per_s"), middle("memory_gb_per_s")
        best = {}
        for (p, s, rival, _), speeds in theirs.items():
            if (p, s) == (precision, streams):
                best[rival] = max(best.get(rival, 0), statistics.median(speeds))
        rivals = " | ".join(f"{best[rival]:,.0f}" if rival in best else "" for rival in args.rivals)
        ratio = f"{speed / max(best.values()):.2f}" if best else ""
        share = f"{100 * read / memory:.0f} %" if memory else ""
        print(f"| {name} | {precision} | {streams} | {speed:,.0f} | {rivals} | {ratio} | {read:.1f} | {share} |", flush=True)


parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("settings", nargs="*", default=["char"], help=f"of {', '.join(SETTINGS)}")
parser.add_argument("--folio", default=HERE.parent / "target/release/folio")
parser.add_argument("--rival-python", help="a Python with the rivals' packages")
parser.add_argument("--rivals", nargs="*", default=[], choices=FORMATS)
parser.add_argument("--precisions", nargs="+", default=["f32", "bf16", "int8"])
parser.add_argument("--rounds", type=int, default=3)
parser.add_argument("--threads", type=int, default=2)
args = parser.parse_args()
if args.rivals and not args.rival_python:
    parser.error("--rivals needs --rival-python")
for setting in args.settings:
    if setting not in SETTINGS:
        parser.error(f"{setting} is not one of {', '.join(SETTINGS)}")

print(f"| model | format | sequences | folio, tokens/s | {' | '.join(f'{rival}, tokens/s' for rival in args.rivals)} | ratio to the fastest "
      "| GB/s | share of memory read |")
print("|" + "---|" * (7 + max(1, len(args.rivals))))
for setting in args.settings:
    with tempfile.TemporaryDirectory() as directory:
        compare(args, setting, pathlib.Path(directory))
