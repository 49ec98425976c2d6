#!/usr/bin/env python3
"""Compare the training speed of folio and its rivals on the same step.

    cargo build --release
    python3 -m venv /tmp/rival && /tmp/rival/bin/pip install torch numpy jax
    python3 bench/compare.py --rival-python /tmp/rival/bin/python --rivals pytorch compiled jax -- char nanogpt-cpu

    python3 bench/compare.py --rival-python /tmp/rival/bin/python --ranks 2 -- char bpe gpt2-124m-8x256

With --ranks, folio under mpirun is compared with itself on one rank with all threads, and with PyTorch's
DistributedDataParallel (gloo); each rank has its share of the threads. This prints a table and writes no record.

    python3 bench/compare.py --rival-python /tmp/rival/bin/python --isa avx2 --precisions f32 -- char nanogpt-cpu

With --isa, folio and PyTorch are limited to an instruction set that is narrower than the processor's.

The rivals are PyTorch in eager mode, PyTorch with torch.compile (which needs a C++ compiler), and JAX. For each setting and
precision the programs alternate, so that drift of the machine affects all of them. Prints the rows of a table of medians,
with the ratio to the fastest rival, and writes them to bench/record/<cpu>/<date>.csv, with a bar chart next to it.
"""
import argparse, csv, datetime, json, os, pathlib, platform, re, statistics, subprocess

HERE = pathlib.Path(__file__).parent
SETTINGS = {
    "char": dict(batch=64, block=256, vocab=65, emb=384, blocks=6, heads=6, dropout=0.2, steps=3),
    "char-no-dropout": dict(batch=64, block=256, vocab=65, emb=384, blocks=6, heads=6, dropout=0.0, steps=3),
    "bpe": dict(batch=32, block=128, vocab=50257, emb=384, blocks=6, heads=6, dropout=0.2, steps=3),
    "nanogpt-cpu": dict(batch=12, block=64, vocab=65, emb=128, blocks=4, heads=4, dropout=0.0, steps=40),
    "gpt2-124m": dict(batch=4, block=64, vocab=50257, emb=768, blocks=12, heads=12, dropout=0.0, steps=4),
    "gpt2-124m-8x256": dict(batch=8, block=256, vocab=50257, emb=768, blocks=12, heads=12, dropout=0.0, steps=3),
}
RIVALS = {
    "pytorch": [str(HERE / "torch_gpt2.py"), "train"],
    "compiled": [str(HERE / "torch_gpt2.py"), "train", "--compile"],
    "jax": [str(HERE / "jax_gpt2.py")],
}
# What limits PyTorch, oneDNN and MKL to an instruction set.
LIMITS = {
    "avx2": dict(ATEN_CPU_CAPABILITY="avx2", ONEDNN_MAX_CPU_ISA="AVX2", MKL_ENABLE_INSTRUCTIONS="AVX2"),
    "avx512": dict(ATEN_CPU_CAPABILITY="avx512", ONEDNN_MAX_CPU_ISA="AVX512_CORE", MKL_ENABLE_INSTRUCTIONS="AVX512"),
}


def cpu_name():
    """The name of the processor, for use as a directory name."""
    text = pathlib.Path("/proc/cpuinfo").read_text() if pathlib.Path("/proc/cpuinfo").exists() else ""
    found = {key: re.search(rf"^{key}\s*: (.*)$", text, re.M) for key in ("model name", "cpu family", "model", "stepping")}
    if not found["model name"]:
        return platform.processor() or "unknown"
    name = re.sub(r"[^A-Za-z0-9]+", "-", found["model name"][1]).strip("-").lower()
    numbers = "-".join(found[key][1] for key in ("cpu family", "model", "stepping") if found[key])
    return f"{name}-{numbers}"


def step(command, setting, threads, limits=None):
    """Runs a program once, with `limits` in its environment, and returns the JSON object that it prints."""
    flags = [f"--{name}={value}" for name, value in setting.items()]
    # These two variables slow down current versions of numpy and PyTorch.
    environment = {k: v for k, v in os.environ.items() if k not in ("OPENBLAS_CORETYPE", "OPENBLAS_L2_SIZE")}
    done = subprocess.run([*command, *flags, f"--threads={threads}"], capture_output=True, text=True,
                          env=environment | (limits or {}))
    if done.returncode:
        raise SystemExit(f"{' '.join(command)} failed:\n{done.stderr}")
    return json.loads(done.stdout.splitlines()[-1])


def compare_ranks(a):
    """Prints a row for each setting and precision: one rank with all threads, several that share them, and PyTorch's ranks."""
    print(f"| setting | precision | 1 rank, {a.threads} threads | {a.ranks} ranks | efficiency | communication | DDP | ratio |")
    print("|---|---|---:|---:|---:|---:|---:|---:|")
    threads = a.threads // a.ranks
    # Neither program binds its processes to cores.
    mpirun = [a.mpirun, "-n", str(a.ranks), *a.mpirun_flags]
    torchrun = [a.rival_python, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(a.ranks)]
    for name in a.settings:
        for precision in a.precisions:
            folio = [a.folio, "bench", "step", f"--precision={precision}"]
            bf16 = ["--bf16"] if precision == "bf16" else []
            programs = {
                "one rank": (folio, a.threads),
                "ranks": ([*mpirun, *folio, *a.folio_flags], threads),
                "ddp": ([*torchrun, *RIVALS["pytorch"], "--ddp", *bf16], threads),
            }
            results = {program: [] for program in programs}
            for _ in range(a.rounds):
                for program, (command, count) in programs.items():
                    results[program].append(step(command, SETTINGS[name], count))
            speed = {k: statistics.median(r["tokens_per_s"] for r in v) for k, v in results.items()}
            share = statistics.median(r["communication_s"] / r["step_s"] for r in results["ranks"])
            print(f"| {name} | {precision} | {speed['one rank']:,.0f} | {speed['ranks']:,.0f} | "
                  f"{speed['ranks'] / speed['one rank']:.2f} | {share:.1%} | {speed['ddp']:,.0f} | "
                  f"{speed['ranks'] / speed['ddp']:.2f} |", flush=True)


def chart(rows):
    """A bar chart of the ratios, as SVG."""
    height = 24 * len(rows) + 40
    scale = 420 / max(row["ratio"] for row in rows)
    lines = [f'<svg xmlns="http://www.w3.org/2000/svg" width="680" height="{height}" font-family="sans-serif" font-size="13">',
             '<rect width="100%" height="100%" fill="white"/>',
             '<text x="10" y="20">tokens per second, folio divided by the fastest rival (line: equal speed)</text>']
    for i, row in enumerate(rows):
        y = 34 + 24 * i
        name = f"{row['setting']} {row['precision']}"
        lines.append(f'<text x="160" y="{y + 13}" text-anchor="end">{name}</text>')
        lines.append(f'<rect x="170" y="{y}" width="{row["ratio"] * scale:.0f}" height="17" fill="#3b6ea5"/>')
        lines.append(f'<text x="{176 + row["ratio"] * scale:.0f}" y="{y + 13}">{row["ratio"]:.2f}</text>')
    x = 170 + scale
    lines.append(f'<line x1="{x:.0f}" x2="{x:.0f}" y1="28" y2="{height - 6}" stroke="#c0392b"/>')
    return "\n".join([*lines, "</svg>", ""])


def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("settings", nargs="+", choices=list(SETTINGS))
    p.add_argument("--rival-python", default="python3", help="a Python with torch, and with jax if it is among the rivals")
    p.add_argument("--folio", default=str(HERE.parent / "target/release/folio"))
    p.add_argument("--rivals", nargs="+", choices=RIVALS, default=["pytorch"])
    p.add_argument("--precisions", nargs="+", choices=["f32", "bf16"], default=["f32", "bf16"])
    p.add_argument("--isa", choices=LIMITS)
    p.add_argument("--rounds", type=int, default=3)
    p.add_argument("--threads", type=int, default=2)
    p.add_argument("--ranks", type=int, default=1)
    p.add_argument("--mpirun", default="mpirun")
    p.add_argument("--mpirun-flags", nargs="*", default=["--bind-to", "none"])
    p.add_argument("--folio-flags", nargs="*", default=[], help="such as --folio-flags=--zero=1, for several ranks")
    a = p.parse_args()
    if a.isa and (a.ranks > 1 or "jax" in a.rivals):
        p.error("--isa limits PyTorch on one rank only")
    if a.ranks > 1:
        return compare_ranks(a)
    rows = []
    for name in a.settings:
        for precision in a.precisions:
            isa = [f"--isa={a.isa}"] if a.isa else []
            programs = {"folio": [a.folio, "bench", "step", f"--precision={precision}", *isa]}
            for rival in a.rivals:
                bf16 = ["--bf16"] if precision == "bf16" else []
                programs[rival] = [a.rival_python, *RIVALS[rival], *bf16]
            results = {program: [] for program in programs}
            for _ in range(a.rounds):
                for program, command in programs.items():
                    results[program].append(step(command, SETTINGS[name], a.threads, LIMITS.get(a.isa)))
            speed = {k: statistics.median(r["tokens_per_s"] for r in v) for k, v in results.items()}
            memory = {k: max(r["peak_mib"] for r in v) for k, v in results.items()}
            fastest = max(a.rivals, key=speed.get)
            row = dict(setting=name, precision=precision, threads=a.threads, folio_tokens_per_s=round(speed["folio"]),
                       **{f"{rival}_tokens_per_s": round(speed[rival]) if rival in speed else "" for rival in RIVALS},
                       fastest_rival=fastest, ratio=round(speed["folio"] / speed[fastest], 2),
                       folio_peak_mib=memory["folio"], rival_peak_mib=memory[fastest])
            rows.append(row)
            rivals = " | ".join(f"{speed[rival]:,.0f}" if rival in speed else "" for rival in RIVALS)
            print(f"| {name} | {precision} | {speed['folio']:,.0f} | {rivals} | {row['ratio']:.2f} | "
                  f"{memory['folio']:,} | {memory[fastest]:,} |", flush=True)
    path = HERE / "record" / cpu_name() / f"{datetime.date.today()}{'-' + a.isa if a.isa else ''}.csv"
    path.parent.mkdir(parents=True, exist_ok=True)
    # Keep the rows measured earlier today, except those of the settings measured now.
    key = lambda row: (row["setting"], row["precision"], int(row["threads"]))
    if path.exists():
        with path.open(newline="") as file:
            earlier = [{**row, "ratio": float(row["ratio"])} for row in csv.DictReader(file)]
        rows = [row for row in earlier if key(row) not in {key(row) for row in rows}] + rows
        rows.sort(key=lambda row: list(SETTINGS).index(row["setting"]))
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, rows[0])
        writer.writeheader()
        writer.writerows(rows)
    path.with_suffix(".svg").write_text(chart(rows))
    print(f"wrote {path} and {path.with_suffix('.svg')}")


main()
