"""TensorBoard's own reader against folio's records of the same run.

    python tensorboard_check.py RUN_DIR

Every step and every epoch of RUN_DIR/metrics.jsonl must be in the event files, once and with the same numbers, also
after the run was killed and resumed; the samples must be there as text. Exit code 1 if anything differs.
"""

import json
import sys
from pathlib import Path

import numpy as np
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

STEP = {"loss/step": "loss", "learning_rate": "lr", "gradient_norm": "gradient_norm"}
EPOCH = {
    "loss/train": "train_loss",
    "loss/eval": "eval_loss",
    "bits_per_character/train": "train_bits_per_character",
    "bits_per_character/eval": "eval_bits_per_character",
    "bits_per_byte/train": "train_bits_per_byte",
    "bits_per_byte/eval": "eval_bits_per_byte",
}


def check(events: EventAccumulator, tag: str, lines: list[dict], key: str) -> int:
    """Compares one curve; returns how many points it has."""
    read = [(event.step, event.value) for event in events.Scalars(tag)]
    told = [(line["step"], line[key]) for line in lines]
    assert [step for step, _ in read] == [step for step, _ in told], f"{tag}: the steps differ"
    # Event files hold f32; a loss that is not finite is null in JSON.
    want = np.array([np.nan if value is None else value for _, value in told], dtype=np.float32)
    got = np.array([value for _, value in read], dtype=np.float32)
    assert np.array_equal(want, np.where(np.isfinite(got), got, np.nan), equal_nan=True), f"{tag}: the values differ"
    return len(read)


def main() -> None:
    run_dir = Path(sys.argv[1])
    lines = [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]
    steps = [line for line in lines if line["event"] == "step"]
    epochs = [line for line in lines if line["event"] == "epoch"]
    events = EventAccumulator(str(run_dir), size_guidance={"scalars": 0, "tensors": 0}, purge_orphaned_data=True)
    events.Reload()
    points = sum(check(events, tag, steps, key) for tag, key in STEP.items())
    points += sum(check(events, tag, epochs, key) for tag, key in EPOCH.items())
    assert len(events.Scalars("tokens_per_s")) == len(steps)
    samples = events.Tensors("sample/text_summary" if "sample/text_summary" in events.Tags()["tensors"] else "sample")
    assert [sample.step for sample in samples] == [line["step"] for line in epochs], "the samples' steps differ"
    for sample, line in zip(samples, epochs):
        text = sample.tensor_proto.string_val[0].decode()
        want = "".join(f"    {part}\n" for part in line["sample"].replace("\r\n", "\n").split("\n"))
        assert text.strip() == want.strip(), f"step {sample.step}: another sample"
    files = len(list(run_dir.glob("events.out.tfevents.*")))
    print(f"{files} event files: {points} points of {len(STEP) + len(EPOCH)} curves and {len(samples)} samples agree")


if __name__ == "__main__":
    main()
