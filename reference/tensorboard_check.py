"""Compare the event files of a run, as TensorBoard reads them, with the run's other files.

    python tensorboard_check.py RUN_DIR...

For each run, compares every scalar of every step and epoch with metrics.jsonl and losses.json, every sample with
metrics.jsonl, and the newest settings with hyperparameters.json. Uses both of TensorBoard's readers: the one behind its
web pages, and the older one, which other programs use. Exits with 1 if anything differs, is missing or is duplicated.
"""

import json
import sys
from pathlib import Path

import numpy as np
from tensorboard.backend.event_processing import event_accumulator, plugin_event_accumulator
from tensorboard.plugins.hparams import metadata as hparams
from tensorboard.util import tensor_util

# Load all values; by default TensorBoard samples a thousand per tag.
EVERYTHING = {
    event_accumulator.SCALARS: 0,
    event_accumulator.TENSORS: 0,
}

# Settings that may change on resume.
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
    """{tag: [(step, value)]} from metrics.jsonl; scalars are float32, as in TensorBoard."""
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
    """Check that losses.json agrees with the last epochs of the event files."""
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
        found = scalars[f"epoch/{ours}"]
        values = list(zip(losses["steps"], map(np.float32, losses[theirs]), strict=True))[-len(found) :]
        assert found == values, f"{run}: {ours} differs from losses.json: {found} {values}"
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
    shown = {tag: [(step, value.item()) for step, value in found] for tag, found in tensors.items() if "/" in tag}
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
    found = {key: cell if isinstance(settings.get(key), str) else json.loads(cell) for key, cell in rows}
    assert found == settings, f"{run}: {table}"
    content = pages.SummaryMetadata(hparams.SESSION_START_INFO_TAG).plugin_data.content
    found = hparams.parse_session_start_info_plugin_data(content).hparams
    found = {key: getattr(value, value.WhichOneof("kind")) for key, value in found.items()}
    # TensorBoard keeps the first settings that it reads; some may change on resume.
    kept = {key: value for key, value in settings.items() if value is not None and key not in MAY_CHANGE}
    found = {key: value for key, value in found.items() if key not in MAY_CHANGE}
    assert found == kept, f"{run}: {found}"

    in_losses = check_losses(run, scalars)
    files = sorted(path.name for path in run.glob("events.out.tfevents.*"))
    count, steps = sum(map(len, scalars.values())), len(scalars.get("step/loss", []))
    print(
        f"{run}: {len(files)} event files, {len(scalars)} curves, {steps} steps: {count} scalars, "
        f"{len(samples)} samples and {len(settings)} settings are equal, {in_losses} of them also in losses.json"
    )


def difference(shown, found):
    for tag in sorted(shown.keys() | found.keys()):
        if shown.get(tag) != found.get(tag):
            return f"{tag}: TensorBoard has {shown.get(tag)}, folio {found.get(tag)}"


if __name__ == "__main__":
    assert len(sys.argv) > 1, __doc__
    for argument in sys.argv[1:]:
        try:
            check(Path(argument))
        except AssertionError as error:
            sys.exit(f"error: {error}")
