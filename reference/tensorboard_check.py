"""Compares what TensorBoard reads from a run's event files with what folio wrote beside them.

    python tensorboard_check.py RUN_DIR...

For each run: every scalar, step by step and epoch by epoch, with metrics.jsonl and losses.json; every sample with
metrics.jsonl; the newest settings with hyperparameters.json. Both of TensorBoard's readers are asked: the one behind its web
pages and the older one, which other programs use. Exit code 1: something differs, is missing, or is there twice.
"""

import json
import sys
from pathlib import Path

import numpy as np
from tensorboard.backend.event_processing import event_accumulator, plugin_event_accumulator
from tensorboard.plugins.hparams import metadata as hparams
from tensorboard.util import tensor_util

# All of them, where TensorBoard would show a thousand of each.
EVERYTHING = {
    event_accumulator.SCALARS: 0,
    event_accumulator.TENSORS: 0,
}

# What --resume takes anew.
MAY_CHANGE = {
    "num_epochs",
    "max_steps",
    "save_every",
    "keep",
    "save_losses",
    "save_checkpoint",
    "max_skipped_steps",
    "sample_tokens",
    "tensorboard",
}


def expected(run):
    """{tag: [(step, value)]} from the run's own files; scalars are float32, as TensorBoard keeps them."""
    scalars, samples = {}, []
    for line in (run / "metrics.jsonl").read_text().splitlines():
        record = json.loads(line)
        kind, step = record["event"], record["step"]
        if kind == "start":
            continue
        for key, value in record.items():
            if key == "sample" and value is not None:
                samples.append((step, "".join(f"    {part}\n" for part in value.split("\n"))))
            elif isinstance(value, (int, float)) and not isinstance(value, bool) and key not in ("step", "epoch"):
                scalars.setdefault(f"{kind}/{key}", []).append((step, np.float32(value)))
    return scalars, samples


def check_losses(run, scalars):
    """losses.json tells the same epochs as the records, from the first of them on."""
    path = run / "losses.json"
    if not path.exists():
        return 0
    losses, compared = json.loads(path.read_text()), 0
    names = {
        "train_losses": "train_loss",
        "eval_losses": "eval_loss",
        "train_bits_per_character": "train_bits_per_character",
        "eval_bits_per_character": "eval_bits_per_character",
        "train_bits_per_byte": "train_bits_per_byte",
        "eval_bits_per_byte": "eval_bits_per_byte",
        "gradient_norms": "gradient_norm",
    }
    for theirs, ours in names.items():
        told = scalars[f"epoch/{ours}"]
        values = list(zip(losses["steps"], map(np.float32, losses[theirs]), strict=True))[-len(told) :]
        assert told == values, f"{run}: {ours} differs from losses.json: {told} {values}"
        compared += len(values)
    return compared


def check(run):
    scalars, samples = expected(run)

    pages = plugin_event_accumulator.EventAccumulator(str(run), tensor_size_guidance={}, size_guidance=EVERYTHING)
    pages.Reload()
    tensors = {
        tag: [(event.step, tensor_util.make_ndarray(event.tensor_proto)) for event in pages.Tensors(tag)]
        for tag in pages.Tags()["tensors"]
    }
    shown = {tag: [(step, value.item()) for step, value in told] for tag, told in tensors.items() if "/" in tag}
    del shown[hparams.SESSION_START_INFO_TAG]
    assert shown == scalars, f"{run}: {difference(shown, scalars)}"
    texts = [(step, value.item().decode()) for step, value in tensors.get("sample", [])]
    assert texts == samples, f"{run}: samples differ: {texts} {samples}"

    older = event_accumulator.EventAccumulator(str(run), size_guidance=EVERYTHING).Reload()
    shown = {tag: [(event.step, event.value) for event in older.Scalars(tag)] for tag in older.Tags()["scalars"]}
    assert shown == scalars, f"{run}: {difference(shown, scalars)}"

    settings = json.loads((run / "hyperparameters.json").read_text())
    table = tensors["hyperparameters"][-1][1].item().decode()
    rows = [row.strip("| ").split(" | ", 1) for row in table.splitlines()[2:]]
    told = {key: cell if isinstance(settings.get(key), str) else json.loads(cell) for key, cell in rows}
    assert told == settings, f"{run}: {table}"
    content = pages.SummaryMetadata(hparams.SESSION_START_INFO_TAG).plugin_data.content
    told = hparams.parse_session_start_info_plugin_data(content).hparams
    told = {key: getattr(value, value.WhichOneof("kind")) for key, value in told.items()}
    # TensorBoard keeps the first that it was told of, and some may change when a run goes on.
    kept = {key: value for key, value in settings.items() if value is not None and key not in MAY_CHANGE}
    told = {key: value for key, value in told.items() if key not in MAY_CHANGE}
    assert told == kept, f"{run}: {told}"

    in_losses = check_losses(run, scalars)
    files = sorted(path.name for path in run.glob("events.out.tfevents.*"))
    count, steps = sum(map(len, scalars.values())), len(scalars.get("step/loss", []))
    print(
        f"{run}: {len(files)} event files, {len(scalars)} curves, {steps} steps: {count} scalars, "
        f"{len(samples)} samples and {len(settings)} settings are equal, {in_losses} of them in losses.json too"
    )


def difference(shown, told):
    for tag in sorted(shown.keys() | told.keys()):
        if shown.get(tag) != told.get(tag):
            return f"{tag}: TensorBoard has {shown.get(tag)}, folio {told.get(tag)}"


if __name__ == "__main__":
    assert len(sys.argv) > 1, __doc__
    for argument in sys.argv[1:]:
        try:
            check(Path(argument))
        except AssertionError as error:
            sys.exit(f"error: {error}")
