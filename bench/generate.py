#!/usr/bin/env python3
"""Compare the generation speed of folio and PyTorch with the same model and random weights.

    cargo build --release
    python3 -m venv /tmp/rival && /tmp/rival/bin/pip install torch numpy
    python3 bench/generate.py --rival-python /tmp/rival/bin/python

PyTorch recomputes the whole context for every token, as a plain sampling script does. The programs alternate. Prints a table
of medians: tokens per second for one sequence and for 16 in parallel, in each format, and folio's share of the memory bandwidth.
"""
import argparse, json, os, pathlib, statistics, subprocess

HERE = pathlib.Path(__file__).parent
CASES = [(precision, streams) for precision in ("f32", "bf16", "int8") for streams in (1, 16)]


def run(command):
    """Runs a program once and returns the JSON object that it prints."""
    # These two variables slow down current versions of numpy and PyTorch.
    environment = {k: v for k, v in os.environ.items() if k not in ("OPENBLAS_CORETYPE", "OPENBLAS_L2_SIZE")}
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    if done.returncode:
        raise SystemExit(f"{' '.join(command)} failed:\n{done.stderr}")
    return json.loads(done.stdout.splitlines()[-1])


parser = argparse.ArgumentParser()
parser.add_argument("--folio", default=str(HERE.parent / "target/release/folio"))
parser.add_argument("--rival-python", help="a Python with torch; without it only folio is timed")
parser.add_argument("--rounds", type=int, default=5)
parser.add_argument("--threads", type=int, default=2)
for name, default in dict(block=256, vocab=65, emb=384, blocks=6, heads=6, tokens=256).items():
    parser.add_argument(f"--{name}", type=int, default=default)
args = parser.parse_args()
sizes = [f"--{name}={getattr(args, name)}" for name in ("block", "vocab", "emb", "blocks", "heads", "tokens", "threads")]

rival, ours = [], {case: [] for case in CASES}
for round in range(args.rounds):
    if args.rival_python:
        rival.append(run([args.rival_python, str(HERE / "torch_gpt2.py"), "generate", *sizes])["tokens_per_s"])
    for precision, streams in CASES:
        flags = [f"--precision={precision}", f"--streams={streams}", "--rounds=3"]
        ours[precision, streams].append(run([args.folio, "bench", "generate", *sizes, *flags]))

if rival:
    print(f"PyTorch: {statistics.median(rival):.1f} tokens/s, ranging from {min(rival):.1f} to {max(rival):.1f}")
print("| format | sequences | tokens/s | relative to PyTorch | relative to one sequence | GB/s | memory read, GB/s "
      "| share of memory read |")
print("|---|---|---|---|---|---|---|---|")
for precision, streams in CASES:
    middle = lambda key: statistics.median(result[key] or 0 for result in ours[precision, streams])
    speed = middle("tokens_per_s")
    alone = statistics.median(result["tokens_per_s"] for result in ours[precision, 1])
    ratio = f"{speed / statistics.median(rival):.0f}" if rival else ""
    read, memory = middle("gb_per_s"), middle("memory_gb_per_s")
    share = f"{100 * read / memory:.0f} %" if memory else ""
    print(f"| {precision} | {streams} | {speed:,.0f} | {ratio} | {speed / alone:.1f} | {read:.1f} | {memory:.1f} | {share} |")
