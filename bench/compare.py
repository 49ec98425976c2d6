#!/usr/bin/env python3
"""folio beside PyTorch on the same training step, turn about, in one run.

    cargo build --release
    python3 -m venv /tmp/rival && /tmp/rival/bin/pip install torch numpy
    python3 bench/compare.py --rival-python /tmp/rival/bin/python char nanogpt-cpu

For each setting the two programs take turns, so that a drift of the machine meets both. Prints a table of
medians and ratios and appends a record to bench/record/<cpu>/<date>.csv.
"""
import argparse, csv, datetime, json, os, pathlib, platform, re, statistics, subprocess

HERE = pathlib.Path(__file__).parent
SETTINGS = {
    "char": dict(batch=64, block=256, vocab=65, emb=384, blocks=6, heads=6, dropout=0.2, steps=5),
    "char-no-dropout": dict(batch=64, block=256, vocab=65, emb=384, blocks=6, heads=6, dropout=0.0, steps=5),
    "bpe": dict(batch=32, block=128, vocab=50257, emb=384, blocks=6, heads=6, dropout=0.2, steps=4),
    "nanogpt-cpu": dict(batch=12, block=64, vocab=65, emb=128, blocks=4, heads=4, dropout=0.0, steps=40),
    "gpt2-124m": dict(batch=4, block=64, vocab=50257, emb=768, blocks=12, heads=12, dropout=0.0, steps=4),
}


def cpu_name():
    """The processor's name, as a folder."""
    text = pathlib.Path("/proc/cpuinfo").read_text() if pathlib.Path("/proc/cpuinfo").exists() else ""
    found = {key: re.search(rf"^{key}\s*: (.*)$", text, re.M) for key in ("model name", "cpu family", "model", "stepping")}
    if not found["model name"]:
        return platform.processor() or "unknown"
    name = re.sub(r"[^A-Za-z0-9]+", "-", found["model name"][1]).strip("-").lower()
    numbers = "-".join(found[key][1] for key in ("cpu family", "model", "stepping") if found[key])
    return f"{name}-{numbers}"


def step(command, setting, threads):
    """Runs one program once; returns what it prints."""
    flags = [f"--{name}={value}" for name, value in setting.items()]
    # These two slow a current numpy and PyTorch down.
    environment = {k: v for k, v in os.environ.items() if k not in ("OPENBLAS_CORETYPE", "OPENBLAS_L2_SIZE")}
    done = subprocess.run([*command, *flags, f"--threads={threads}"], capture_output=True, text=True, env=environment)
    if done.returncode:
        raise SystemExit(f"{' '.join(command)} failed:\n{done.stderr}")
    return json.loads(done.stdout.splitlines()[-1])


def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("settings", nargs="+", choices=list(SETTINGS))
    p.add_argument("--rival-python", default="python3", help="a Python with torch")
    p.add_argument("--folio", default=str(HERE.parent / "target/release/folio"))
    p.add_argument("--rounds", type=int, default=3)
    p.add_argument("--threads", type=int, default=2)
    a = p.parse_args()
    programs = {
        "folio": [a.folio, "bench", "step"],
        "pytorch": [a.rival_python, str(HERE / "torch_gpt2.py"), "train"],
    }
    rows = []
    for name in a.settings:
        results = {program: [] for program in programs}
        for _ in range(a.rounds):
            for program, command in programs.items():
                results[program].append(step(command, SETTINGS[name], a.threads))
        speed = {k: statistics.median(r["tokens_per_s"] for r in v) for k, v in results.items()}
        memory = {k: max(r["peak_mib"] for r in v) for k, v in results.items()}
        rows.append([name, a.threads, round(speed["folio"]), round(speed["pytorch"]),
                     round(speed["folio"] / speed["pytorch"], 2), memory["folio"], memory["pytorch"]])
        print("{:16} {} threads: folio {:,} tokens/s, PyTorch {:,}, ratio {}; peak MiB {:,} and {:,}".format(*rows[-1]),
              flush=True)
    path = HERE / "record" / cpu_name() / f"{datetime.date.today()}.csv"
    path.parent.mkdir(parents=True, exist_ok=True)
    new = not path.exists()
    with path.open("a", newline="") as file:
        writer = csv.writer(file)
        if new:
            writer.writerow(["setting", "threads", "folio_tokens_per_s", "pytorch_tokens_per_s", "ratio",
                             "folio_peak_mib", "pytorch_peak_mib"])
        writer.writerows(rows)
    print(f"recorded in {path}")


main()
