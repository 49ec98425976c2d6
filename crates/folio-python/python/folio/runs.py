"""What was saved: runs and sweeps."""

from __future__ import annotations

import html
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any, Dict, List, Optional, Tuple, Union

from . import _folio
from ._folio import FolioError, Tokenizer
from .model import Model

if TYPE_CHECKING:
    from matplotlib.axes import Axes

StrPath = Union[str, "os.PathLike[str]"]


class Run:
    """A run that was saved: ``Run("runs/quick")``. Everything is read from its files when it is asked for."""

    def __init__(self, path: StrPath) -> None:
        self.path = Path(path)
        kind = _folio.locate(self.path)
        if kind == "sweep":
            raise FolioError(f"{self.path} is a sweep; use folio.Sweep, or name one of its runs")
        if kind != "run":
            raise FolioError(f"{self.path} is a {kind}, not a run; give the directory of a run")

    @property
    def name(self) -> str:
        """The name of its directory."""
        return self.path.resolve().name

    @property
    def state(self) -> str:
        """running, stopped, finished, diverged, failed or killed."""
        return _folio.status(self.path)

    @property
    def settings(self) -> Dict[str, Any]:
        """The settings, under their names in hyperparameters.json."""
        return _folio.settings(self.path)

    @property
    def history(self) -> Dict[str, List[float]]:
        """One list per figure with one value per epoch: epoch, step, train_loss, eval_loss (nats per token), and so on."""
        return _folio.history(self.path)

    @property
    def losses(self) -> Any:
        """The history as a pandas DataFrame with one row per epoch; without pandas, as a dictionary of lists."""
        try:
            import pandas
        except ImportError:
            return self.history
        return pandas.DataFrame(self.history).set_index("epoch")

    @property
    def best_eval_loss(self) -> Optional[float]:
        """The lowest evaluation loss, at the end of an epoch or inside it, in nats per token."""
        return min((loss for _, loss in self.evaluations), default=None)

    @property
    def evaluations(self) -> List[Tuple[int, float]]:
        """The step and the loss of every evaluation, at the end of an epoch or inside it."""
        return _folio.evaluations(self.path)

    @property
    def checkpoints(self) -> List[Path]:
        """The checkpoints, the newest last."""
        return [Path(path) for path, _ in _folio.checkpoints(self.path)]

    @property
    def tokenizer(self) -> Tokenizer:
        """The tokenizer."""
        return Tokenizer.load(self.path)

    def model(self, epoch: Optional[int] = None, *, precision: Optional[str] = None) -> Model:
        """The model with the lowest evaluation loss, or the one after an epoch."""
        path = self.path if epoch is None else self.path / f"checkpoint_{epoch}"
        return Model.load(path, precision=precision)

    def export(self, format: str, path: StrPath, *, type: Optional[str] = None, overwrite: bool = False) -> Path:
        """Writes the best checkpoint for other programs: see Model.export()."""
        _folio.export(self.path, format, type, Path(path), overwrite)
        return Path(path)

    def plot(self, ax: Optional[Axes] = None) -> Axes:
        """Plots training and evaluation losses with matplotlib."""
        history = self.history
        ax = ax or _new_axes()
        ax.plot(history["step"], history["train_loss"], label="train")
        steps, losses = zip(*self.evaluations) if self.evaluations else ((), ())
        ax.plot(steps, losses, label="eval")
        _label(ax, self.name)
        return ax

    def __repr__(self) -> str:
        return f"<folio.Run: {self.path}, {self.state}, {_count(self.history)}{_loss(self.best_eval_loss)}>"

    def _repr_html_(self) -> str:
        settings, history = self.settings, self.history
        size = ", ".join(f"{name} {settings[name]}" for name in ("n_blocks", "n_heads", "n_emb", "block_size"))
        rows = [("run", str(self.path)), ("state", f"{self.state}, {_count(history)}"), ("model", size)]
        if self.best_eval_loss is not None:
            rows.append(("best eval loss", f"{self.best_eval_loss:.4f} nats per token"))
        cells = "".join(f"<tr><th>{name}</th><td>{html.escape(value)}</td></tr>" for name, value in rows)
        return f"<table>{cells}</table>{_curves(history)}"


class Sweep:
    """A sweep that was saved: ``Sweep("runs/search")``. A single run counts as a sweep of one."""

    def __init__(self, path: StrPath) -> None:
        self.path = Path(path)
        kind = _folio.locate(self.path)
        if kind not in ("sweep", "run"):
            raise FolioError(f"{self.path} is a {kind}, not a sweep; give the directory of a sweep")

    @property
    def runs(self) -> List[Run]:
        """The runs that have started, in order."""
        return [Run(path) for path in _folio.sub_runs(self.path) if (Path(path) / "hyperparameters.json").is_file()]

    @property
    def best(self) -> Run:
        """The run with the lowest evaluation loss."""
        losses = [(run.best_eval_loss, run) for run in self.runs]
        known = [(loss, run) for loss, run in losses if loss is not None]
        if not known:
            raise FolioError(f"{self.path} has no evaluation losses yet")
        return min(known, key=lambda pair: pair[0])[1]

    @property
    def varying(self) -> List[str]:
        """The names of the settings in which the runs differ."""
        return _folio.varying(self.path)

    @property
    def results(self) -> Any:
        """The varying settings, the state and the best evaluation loss of every run, the best first: a pandas DataFrame;
        without pandas, a list of dictionaries."""
        rows = self._rows()
        try:
            import pandas
        except ImportError:
            return rows
        columns = ["run", *self.varying, "state", "best_eval_loss"]
        return pandas.DataFrame(rows, columns=columns).set_index("run")

    def _rows(self) -> List[Dict[str, Any]]:
        varying = self.varying
        rows = []
        for run in self.runs:
            settings = run.settings
            values = {name: settings[name] for name in varying}
            rows.append({"run": run.name, **values, "state": run.state, "best_eval_loss": run.best_eval_loss})
        return sorted(rows, key=lambda row: (row["best_eval_loss"] is None, row["best_eval_loss"]))

    def plot(self, ax: Optional[Axes] = None) -> Axes:
        """Plots the evaluation losses of all runs with matplotlib."""
        ax = ax or _new_axes()
        varying = self.varying
        for run in self.runs:
            history, settings = run.history, run.settings
            label = ", ".join(f"{name} {settings[name]}" for name in varying) or run.name
            ax.plot(history["step"], history["eval_loss"], marker=".", label=label)
        _label(ax, f"{self.path.resolve().name}: evaluation losses")
        return ax

    def __repr__(self) -> str:
        runs = self.runs
        best = min((run.best_eval_loss for run in runs if run.best_eval_loss is not None), default=None)
        return f"<folio.Sweep: {self.path}, {len(runs)} runs{_loss(best)}>"

    def _repr_html_(self) -> str:
        rows = self._rows()
        if not rows:
            return html.escape(repr(self))
        head = "".join(f"<th>{html.escape(name)}</th>" for name in rows[0])
        body = "".join(f"<tr>{''.join(f'<td>{_cell(value)}</td>' for value in row.values())}</tr>" for row in rows)
        return f"<table><tr>{head}</tr>{body}</table>"


def _cell(value: object) -> str:
    return f"{value:.4g}" if isinstance(value, float) else html.escape(str(value))


def _count(history: Dict[str, List[float]]) -> str:
    epochs = len(history["epoch"])
    return "1 epoch" if epochs == 1 else f"{epochs} epochs"


def _loss(best: Optional[float]) -> str:
    return "" if best is None else f", best eval loss {best:.4f}"


def _new_axes() -> Axes:
    try:
        import matplotlib.pyplot as plt
    except ImportError as error:
        raise ImportError("plot() needs matplotlib: pip install matplotlib") from error
    return plt.subplots()[1]


def _label(ax: Axes, title: str) -> None:
    ax.set(title=title, xlabel="step", ylabel="loss, nats per token")
    ax.legend()


def _curves(history: Dict[str, List[float]]) -> str:
    """Both losses as a small picture, which needs no library."""
    if len(history["step"]) < 2:
        return ""
    width, height, margin = 360, 120, 6
    steps, losses = history["step"], history["train_loss"] + history["eval_loss"]
    low, high = min(losses), max(losses)

    def point(step: float, loss: float) -> Tuple[float, float]:
        x = margin + (width - 2 * margin) * (step - steps[0]) / (steps[-1] - steps[0])
        y = margin + (height - 2 * margin) * (high - loss) / ((high - low) or 1)
        return round(x, 1), round(y, 1)

    lines = []
    for name, color in (("train_loss", "#888"), ("eval_loss", "#c33")):
        points = " ".join(f"{x},{y}" for x, y in map(point, steps, history[name]))
        lines.append(f'<polyline points="{points}" fill="none" stroke="{color}" stroke-width="1.5"/>')
    caption = f"train (gray) and eval (red) loss per epoch, from {low:.3f} to {high:.3f}"
    return f'<svg width="{width}" height="{height}" role="img" aria-label="{caption}">{"".join(lines)}</svg><div>{caption}</div>'
