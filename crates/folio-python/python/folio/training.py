"""Training runs and sweeps."""

from __future__ import annotations

import inspect
import os
import textwrap
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Callable, Dict, Iterator, List, Optional, Sequence, Union

from . import _folio, events
from ._folio import FolioError
from .events import EpochEnded, Event, Problem, RunEnded
from .runs import Run, Sweep

#: What an argument can be: a number, a name, a path, a switch, or several of them; None is the default.
SettingValue = Union[None, bool, int, float, str, "os.PathLike[str]", Sequence[Any]]


@dataclass(frozen=True)
class Setting:
    """An argument of train()."""

    #: Its name: that of the flag of ``folio train``.
    name: str
    #: Its other names.
    aliases: List[str]
    #: What it does.
    help: str
    #: The default in words, if there is one.
    default: Optional[str]
    #: Whether several values of it make a sweep.
    can_vary: bool


def settings() -> List[Setting]:
    """Every argument of train(), sweep() and Training, in the order of ``folio train --help``."""
    return [Setting(**fields) for fields in _folio.arguments()]


class Training:
    """A training run, or a sweep, as an iterable of its events.

    Making one checks the arguments and reads the text. Iterating over it trains::

        training = folio.Training(preset="quick")
        for event in training:
            if isinstance(event, folio.Step):
                print(event.step, event.loss)
        run = training.run

    Training happens on threads without the GIL, at most 64 events ahead of the loop. A loop that is left early, by
    ``break``, by an exception or by Ctrl-C, finishes the step, saves and stops; a second Ctrl-C does not wait for that.
    What was saved can be resumed: ``folio.Training(resume=training.run_dir)``.

    A text that cannot be used, settings that contradict each other and unknown arguments raise FolioError.
    """

    def __init__(self, **settings: SettingValue) -> None:
        self._inner = _folio.Training(settings)
        for note in self.notes:
            if note.startswith("warning: "):
                warnings.warn(note[len("warning: ") :], stacklevel=_depth_of_caller())

    def __iter__(self) -> Iterator[Event]:
        try:
            while True:
                event = self._inner.next()
                if event is None:
                    return
                name, fields = event
                yield getattr(events, name)(**fields)
        finally:
            # After the last event this does nothing.
            self.finish()

    def stop(self) -> None:
        """Requests to finish the step, save and stop. The remaining events follow."""
        self._inner.stop()

    def save(self) -> None:
        """Requests to finish the step, save and continue."""
        self._inner.save()

    def finish(self) -> None:
        """Stops training and waits until it has saved. Leaving the loop does this."""
        try:
            self._inner.finish()
        except FolioError as error:
            # Another exception may be on its way.
            warnings.warn(str(error), stacklevel=_depth_of_caller())

    @property
    def run_dir(self) -> Optional[Path]:
        """The directory of the run or the sweep; None with ``no_save``."""
        path = self._inner.run_dir
        return None if path is None else Path(path)

    @property
    def is_sweep(self) -> bool:
        """Whether there are several runs."""
        return self._inner.is_sweep

    @property
    def settings(self) -> List[Dict[str, Any]]:
        """The settings of each run."""
        return self._inner.settings

    @property
    def notes(self) -> List[str]:
        """Warnings, and what folio chose, such as the precision."""
        return self._inner.notes

    @property
    def outcome(self) -> Optional[str]:
        """``finished`` or ``stopped``; None before that, and after an error."""
        return self._inner.outcome

    @property
    def run(self) -> Run:
        """What a single run has saved so far."""
        if self.is_sweep:
            raise FolioError(f"{self.run_dir} is a sweep; use sweep instead of run")
        return Run(self._saved())

    @property
    def sweep(self) -> Sweep:
        """What a sweep has saved so far."""
        return Sweep(self._saved())

    def _saved(self) -> Path:
        if self.run_dir is None:
            raise FolioError("no_save: nothing is saved; leave it out")
        return self.run_dir

    def __repr__(self) -> str:
        return f"<folio.Training: {self.run_dir or 'not saved'}, {self.outcome or 'not ended'}>"


def train(
    *,
    on_event: Optional[Callable[[Event], object]] = None,
    progress: bool = True,
    **settings: SettingValue,
) -> Run:
    """Trains a model and returns its run.

    The arguments are the flags of ``folio train`` without their hyphens: ``train(data="my.txt", n_emb=128)`` is
    ``folio train --data my.txt --n_emb 128``. ``on_event`` is called with every event. ``progress`` prints a line per
    epoch.

    Ctrl-C finishes the step and saves; then KeyboardInterrupt is raised. ``train(resume=run_dir)`` continues.
    """
    training = Training(**settings)
    if training.is_sweep:
        # Removes the directory that was reserved.
        training.finish()
        raise FolioError(f"the settings describe {len(training.settings)} runs; use folio.sweep, or give one value each")
    if training.run_dir is None:
        raise FolioError("no_save: train() returns what was saved; iterate over folio.Training(no_save=True) instead")
    _watch(training, on_event, progress)
    return training.run


def sweep(
    *,
    on_event: Optional[Callable[[Event], object]] = None,
    progress: bool = True,
    **settings: SettingValue,
) -> Sweep:
    """Trains one run for each combination of the values given, as in ``sweep(learning_rates=[1e-3, 3e-3])``.

    ``search="random", trials=10`` and ``search="halving"`` search otherwise; then ``learning_rates="1e-4..3e-3:log"`` is a
    range. A run that fails does not end the sweep. Everything else is as in train().
    """
    training = Training(**settings)
    if training.run_dir is None:
        raise FolioError("no_save: sweep() returns what was saved; iterate over folio.Training(no_save=True) instead")
    _watch(training, on_event, progress)
    return training.sweep


def _watch(training: Training, on_event: Optional[Callable[[Event], object]], progress: bool) -> None:
    """Trains to the end."""
    try:
        for event in training:
            if progress:
                _print(event, training)
            if on_event is not None:
                on_event(event)
    except BaseException:
        if progress and training.outcome == "stopped":
            print(f"stopped and saved; to continue: folio.train(resume={str(training.run_dir)!r})")
        raise


def _print(event: Event, training: Training) -> None:
    name = f"run_{getattr(event, 'run', 0) + 1} || " if training.is_sweep else ""
    if isinstance(event, EpochEnded):
        print(
            f"{name}Epoch: {event.epoch}/{event.last_epoch} || Train loss: {event.train_loss:.4f} || "
            f"Eval loss: {event.eval_loss:.4f} || lr: {event.learning_rate:.4e}"
        )
    elif isinstance(event, Problem):
        warnings.warn(event.message, stacklevel=_depth_of_caller())
    elif isinstance(event, RunEnded) and event.error is not None:
        print(f"{name}{event.state}: {event.error}")


def _depth_of_caller() -> int:
    """The stack level of the first frame outside this package, for warnings."""
    own = os.path.dirname(__file__)
    for level, frame in enumerate(inspect.stack(context=0)[1:], start=1):
        if os.path.dirname(frame.filename) != own:
            return level
    return 1


def _document(function: Any) -> None:
    """Adds every setting to the signature and the documentation of a function or a class."""
    own = [
        parameter
        for parameter in inspect.signature(function).parameters.values()
        if parameter.kind is not inspect.Parameter.VAR_KEYWORD
    ]
    known = settings()
    keyword = [
        inspect.Parameter(setting.name, inspect.Parameter.KEYWORD_ONLY, default=None, annotation=SettingValue)
        for setting in known
    ]
    function.__signature__ = inspect.Signature(own + keyword)
    lines = []
    for setting in known:
        several = " Takes several values." if setting.can_vary else ""
        default = f" Default: {setting.default}." if setting.default else ""
        also = f", or {', '.join(setting.aliases)}" if setting.aliases else ""
        text = textwrap.fill(f"{setting.help}.{several}{default}", 100, initial_indent="    ", subsequent_indent="    ")
        lines.append(f"{setting.name}{also}\n{text}")
    function.__doc__ = inspect.cleandoc(function.__doc__ or "") + "\n\nSettings:\n\n" + "\n".join(lines)


for _function in (train, sweep, Training):
    _document(_function)
