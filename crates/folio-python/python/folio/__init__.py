"""folio: train GPT-2 from scratch on your own text, on your own CPU.

>>> import folio
>>> run = folio.train(preset="quick", num_epochs=1, run_dir="runs/first")
>>> run.model().generate("ROMEO:", max_new_tokens=50, seed=1)

- train() and sweep() train; Training is an iterable of the events of either.
- Run and Sweep are what was saved. Model generates and computes logits and losses. Tokenizer converts text to ids.
- settings() lists every argument of train().

Errors are FolioError, a ValueError whose message says how to fix it. The module ``folio.events`` has the events.
"""

from . import events
from ._folio import FolioError, Tokenizer, __version__
from .events import EpochEnded, Event, Problem, RunEnded, Started, Step
from .model import Model
from .runs import Run, Sweep
from .training import Setting, Training, settings, sweep, train

__all__ = [
    "EpochEnded",
    "Event",
    "FolioError",
    "Model",
    "Problem",
    "Run",
    "RunEnded",
    "Setting",
    "Started",
    "Step",
    "Sweep",
    "Tokenizer",
    "Training",
    "__version__",
    "events",
    "settings",
    "sweep",
    "train",
]
