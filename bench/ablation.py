#!/usr/bin/env python3
"""What each technique of the preset `quick` does: the preset without it, and the plain settings with it, three seeds each.

    cargo build --release && python3 bench/ablation.py /tmp/ablation [--parallel 4]

Runs that are there already are not trained again. With --parallel N, N runs train at a time and share the
processors. Prints a table of the lowest evaluation losses, nats per character: mean and range over the seeds, of the averaged weights and
of the weights themselves.
"""
import argparse, json, os, pathlib, subprocess, sys
from concurrent.futures import ThreadPoolExecutor

FOLIO = pathlib.Path(__file__).parent.parent / "target/release/folio"
# What the preset changes, and the plain setting.
PLAIN = {
    "Muon": ["--optimizer", "adamw", "--learning_rates", "3e-3"],
    "random places": ["--block_offset", "fixed"],
    "wsd": ["--lr_schedule", "cosine"],
}


def train(a, name, flags, seed):
    """The lowest evaluation losses of a run, trained if it is not there."""
    directory, steps = a.directory, a.steps
    run = directory / f"{name.replace(' ', '_')}_{steps}_{seed}"
    status = run / "status.json"
    if not (status.exists() and json.loads(status.read_text())["state"] == "finished"):
        command = [a.folio, "train", "--preset", "quick", "--overwrite", "--seed", str(seed), "--run_dir", run, *flags]
        command += ["--max_steps", str(steps), "--cosine_T_max", str(steps), "--num_epochs", "1000"]
        command += ["--threads", str(max(1, len(os.sched_getaffinity(0)) // a.parallel))]
        subprocess.run(command, check=True, capture_output=True)
    epochs = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    epochs = [epoch for epoch in epochs if epoch["event"] == "epoch"]
    losses = [min(epoch[key] for epoch in epochs) for key in ("eval_loss", "raw_eval_loss")]
    print(name, seed, *losses, file=sys.stderr, flush=True)
    return losses


def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("directory", type=pathlib.Path)
    p.add_argument("--folio", default=FOLIO)
    p.add_argument("--seeds", type=int, nargs="+", default=[1337, 1, 2])
    p.add_argument("--steps", type=int, default=3800, help="of each run; the schedule is as long [default: the preset's 3800]")
    p.add_argument("--parallel", type=int, default=1, help="runs at a time [default: 1]")
    a = p.parse_args()
    a.directory.mkdir(parents=True, exist_ok=True)
    settings = {"all": []}
    settings |= {f"without {technique}": flags for technique, flags in PLAIN.items()}
    settings["none"] = sum(PLAIN.values(), [])
    settings |= {f"{technique} alone": sum((f for t, f in PLAIN.items() if t != technique), []) for technique in PLAIN}
    runs = [(name, flags, seed) for seed in a.seeds for name, flags in settings.items()]
    with ThreadPoolExecutor(a.parallel) as pool:
        losses = pool.map(lambda run: train(a, *run), runs)
        results = {(name, seed): loss for (name, _, seed), loss in zip(runs, losses)}
    print("| techniques | averaged weights | weights |\n|---|---|---|")
    for name in settings:
        columns = zip(*(results[name, seed] for seed in a.seeds))
        cells = [f"{sum(r) / len(r):.4f} ({min(r):.4f} to {max(r):.4f})" for r in columns]
        print(f"| {name} | {cells[0]} | {cells[1]} |")


main()
