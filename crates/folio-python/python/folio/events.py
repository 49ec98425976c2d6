"""The events of training, in the order in which they occur. ``run`` is 0, or the number of a sweep's run minus 1."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import List, Optional


@dataclass(frozen=True)
class Event:
    """What all events are."""


@dataclass(frozen=True)
class RunStarted(Event):
    """A run of a sweep begins."""

    run: int


@dataclass(frozen=True)
class Started(Event):
    """A run starts or resumes."""

    run: int
    #: Epochs completed so far.
    epoch: int
    #: Steps taken so far.
    step: int
    #: Steps left to take.
    steps: int
    #: Parameters of the model.
    parameters: int
    #: Parameters that are trained: all of them without ``freeze``.
    trained: int
    #: The number format of its matmuls: f32 or bf16.
    precision: str


@dataclass(frozen=True)
class EpochStarted(Event):
    """An epoch starts or resumes."""

    run: int
    #: Counting from 1.
    epoch: int
    #: The last epoch of the run.
    last_epoch: int
    #: Steps of the epoch.
    steps: int
    #: Steps of it that were taken before the run was stopped.
    taken: int


@dataclass(frozen=True)
class Step(Event):
    """An optimizer step was taken."""

    run: int
    #: The epoch it belongs to, counting from 1.
    epoch: int
    #: Counting from 1.
    step: int
    #: Tokens of its batch.
    tokens: int
    #: The loss of its batch, in nats per token.
    loss: float
    #: The norm of the gradients before clipping.
    gradient_norm: float
    #: The learning rate.
    learning_rate: float
    #: Whether the step was skipped because its loss or gradients are not finite.
    skipped: bool


@dataclass(frozen=True)
class Evaluating(Event):
    """The model is being evaluated."""

    run: int


@dataclass(frozen=True)
class Evaluated(Event):
    """The model was evaluated inside an epoch, because of ``eval_every``."""

    run: int
    #: The epoch, counting from 1.
    epoch: int
    #: Steps taken by now.
    step: int
    #: Mean over all evaluation batches, in nats per token.
    eval_loss: float
    #: The evaluation loss of the weights themselves, if `eval_loss` is that of their moving average.
    raw_eval_loss: Optional[float]
    #: The loss in bits per character, which can be compared across tokenizers.
    eval_bits_per_character: float


@dataclass(frozen=True)
class StoppedEarly(Event):
    """Training ends before its last step, because the evaluation loss has not improved for ``patience`` evaluations."""

    run: int
    #: The evaluations in a row without improvement.
    evaluations: int
    #: The lowest evaluation loss so far, in nats per token.
    best_loss: float
    #: The step that it was reached at.
    best_step: int


@dataclass(frozen=True)
class EpochEnded(Event):
    """An epoch has ended. It is saved next."""

    run: int
    #: Counting from 1.
    epoch: int
    #: The last epoch of the run.
    last_epoch: int
    #: Steps taken by now.
    step: int
    #: Mean over the epoch's batches, in nats per token.
    train_loss: float
    #: Mean over all evaluation batches, in nats per token.
    eval_loss: float
    #: The evaluation loss of the weights themselves, if `eval_loss` is that of their moving average.
    raw_eval_loss: Optional[float]
    #: The losses in bits per character, which can be compared across tokenizers.
    train_bits_per_character: float
    eval_bits_per_character: float
    #: The learning rate of the epoch's last step.
    learning_rate: float
    #: Mean norm of the gradients before clipping.
    gradient_norm: float
    #: Steps whose gradients were clipped.
    clipped_steps: int
    #: Steps that were skipped because their loss or gradients are not finite.
    skipped_steps: int
    #: Text that the model generates, if the run is saved.
    sample: Optional[str]


@dataclass(frozen=True)
class Saved(Event):
    """The run was saved."""

    run: int
    #: The directory of the checkpoint.
    checkpoint: Path
    #: Whether it was saved because of Training.save() or Training.stop().
    requested: bool

    def __post_init__(self) -> None:
        object.__setattr__(self, "checkpoint", Path(self.checkpoint))


@dataclass(frozen=True)
class Problem(Event):
    """Something failed, such as saving, and training goes on."""

    run: int
    message: str


@dataclass(frozen=True)
class RunEnded(Event):
    """A run of a sweep has ended, or had ended before."""

    run: int
    #: finished, stopped, diverged or failed.
    state: str
    #: Epochs trained.
    epochs: int
    #: The evaluation loss of each epoch, in nats per token.
    eval_losses: List[float]
    #: Why it failed.
    error: Optional[str]


@dataclass(frozen=True)
class StageEnded(Event):
    """A stage of successive halving has ended, and another one follows."""

    #: The runs of the next stage.
    survivors: List[int]
    #: Epochs that they will have trained for at its end.
    epochs: int
