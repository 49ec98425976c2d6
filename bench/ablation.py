#!/usr/bin/env python3
"""What each technique of the preset `quick` does: the preset without it, and the plain settings with it, three seeds each.

    cargo build --release && python3 bench/ablation.py /tmp/ablation

Runs that are there already are not trained again. Prints a table of the lowest evaluation losses, nats per character: mean and range over
the seeds, of the averaged weights and of the weights themselves.
"""
import argparse, json, pathlib, subprocess

FOLIO = pathlib.Path(__file__).parent.parent / "target/release/folio"
# What the preset changes, and the plain setting.
PLAIN = {
    "Muon": ["--optimizer", "adamw", "--learning_rates", "3e-3"],
    "random places": ["--block_offset", "fixed"],
    "wsd": ["--lr_schedule", "cosine"],
}


def train(folio, directory, name, flags, seed, steps):
    run = directory / f"{name.replace(' ', '_')}_{steps}_{seed}"
    status = run / "status.json"
    if not (status.exists() and json.loads(status.read_text())["state"] == "finished"):
        command = [folio, "train", "--preset", "quick", "--overwrite", "--seed", str(seed), "--run_dir", run, *flags]
        command += ["--max_steps", str(steps), "--cosine_T_max", str(steps), "--num_epochs", "1000"]
        subprocess.run(command, check=True, capture_output=True)
    epochs = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    epochs = [epoch for epoch in epochs if epoch["event"] == "epoch"]
    return [min(epoch[key] for epoch in epochs) for key in ("eval_loss", "raw_eval_loss")]


def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("directory", type=pathlib.Path)
    p.add_argument("--folio", default=FOLIO)
    p.add_argument("--seeds", type=int, nargs="+", default=[1337, 1, 2])
    p.add_argument("--steps", type=int, default=3800, help="of each run; the schedule is as long [default: the preset's 3800]")
    a = p.parse_args()
    a.directory.mkdir(parents=True, exist_ok=True)
    settings = {"all": []}
    settings |= {f"without {technique}": flags for technique, flags in PLAIN.items()}
    settings["none"] = sum(PLAIN.values(), [])
    settings |= {f"{technique} alone": sum((f for t, f in PLAIN.items() if t != technique), []) for technique in PLAIN}
    print("| techniques | averaged weights | weights |\n|---|---|---|", flush=True)
    for name, flags in settings.items():
        results = [train(a.folio, a.directory, name, flags, seed, a.steps) for seed in a.seeds]
        cells = [f"{sum(r) / len(r):.4f} ({min(r):.4f} to {max(r):.4f})" for r in zip(*results)]
        print(f"| {name} | {cells[0]} | {cells[1]} |", flush=True)


main()
