"""Training: arguments, events, results, interruption."""

import inspect
import os
import re
import subprocess
import sys
import threading
from pathlib import Path

import pytest

import folio
from conftest import TINY
from folio import events


def test_a_run_reports_its_events_in_order():
    training = folio.Training(data=Path("text.txt"), run_dir="run", **TINY)
    assert not training.is_sweep and training.settings[0]["n_emb"] == 16 and training.outcome is None
    seen = list(training)
    assert training.outcome == "finished"
    assert isinstance(seen[0], folio.Started) and seen[0].precision == "f32"
    steps = [event for event in seen if isinstance(event, folio.Step)]
    assert [event.step for event in steps] == list(range(1, seen[0].steps + 1))
    assert all(event.loss > 0 and event.tokens % 16 == 0 and not event.skipped for event in steps)
    epochs = [event for event in seen if isinstance(event, folio.EpochEnded)]
    assert [event.epoch for event in epochs] == [1, 2] and epochs[0].last_epoch == 2
    assert epochs[0].sample and epochs[0].raw_eval_loss is None
    assert training.run.history["eval_loss"] == [event.eval_loss for event in epochs]
    saved = [event for event in seen if isinstance(event, events.Saved)]
    assert saved[-1].checkpoint == Path("run/checkpoint_2") and not saved[-1].requested
    assert list(training) == [], "it trains once"


def test_the_same_settings_under_every_name_train_the_same(capsys):
    runs = [
        folio.train(data="text.txt", learning_rates=2e-3, **TINY),
        folio.train(data=["text.txt"], lr=[2e-3], **TINY),
        folio.train(data=Path("text.txt"), learning_rate=2e-3, batch_size=None, **TINY),
    ]
    assert [str(run.path) for run in runs] == [f"runs/text-1x16{end}" for end in ("", "-2", "-3")]
    assert runs[0].history == runs[1].history == runs[2].history
    assert runs[0].settings["learning_rate"] == 2e-3
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 6 and lines[0].startswith("Epoch: 1/2 || Train loss: ")


def test_numbers_of_numpy_are_numbers():
    import numpy as np

    training = folio.Training(
        no_save=np.bool_(True), n_emb=np.int64(8), n_heads=2, learning_rates=np.array([1e-3, 2e-3]), dropouts=np.float32(0.5)
    )
    assert [settings["learning_rate"] for settings in training.settings] == [1e-3, 2e-3]
    assert training.settings[0]["dropout"] == 0.5 and training.run_dir is None


def test_a_preset_can_be_overridden():
    preset, changed = (folio.Training(preset="quick", no_save=True, **given).settings[0] for given in ({}, {"n_emb": 64}))
    assert preset["n_emb"] != 64 and changed == {**preset, "n_emb": 64}


@pytest.mark.parametrize(
    "arguments, message",
    [
        (dict(n_embd=8), "unknown argument 'n_embd' (did you mean 'n_emb'?)"),
        (dict(n_emb=385), "`n_emb 385` is not divisible by `n_heads 6`"),
        (dict(n_emb="wide"), 'n_emb="wide": give a whole number'),
        (dict(dropouts=1.5), "`dropout 1.5` is out of range"),
        (dict(learning_rates=float("nan")), "learning_rates=NaN: give a finite number"),
        (dict(seed=object()), "seed: a value of type object is not a number"),
        (dict(data="missing.txt"), "missing.txt"),
        (dict(preset="quik"), "'quick'"),
        (dict(resume="nowhere"), "nowhere does not exist: give the run_dir"),
        (dict(learning_rates=[1e-3, 2e-3]), "use folio.sweep"),
        (dict(no_save=True), "folio.Training(no_save=True)"),
    ],
)
def test_mistakes_are_explained_and_leave_nothing_behind(arguments, message):
    with pytest.raises(folio.FolioError) as error:
        folio.train(**arguments)
    text = str(error.value)
    assert message in text and "\n" not in text and "--" not in text
    assert isinstance(error.value, ValueError)
    assert sorted(os.listdir()) in (["runs", "text.txt"], ["text.txt"]) and not any(Path().glob("runs/*"))


def test_an_error_while_training_is_an_exception():
    with pytest.raises(folio.FolioError, match="training diverged: .*learning_rate"):
        folio.train(data="text.txt", run_dir="run", max_skipped_steps=1, **{**TINY, "learning_rates": 1e30, "grad_clip": 0})
    assert folio.Run("run").state == "diverged"


def test_warnings_are_python_warnings():
    with pytest.warns(UserWarning, match="cosine_T_max") as caught:
        folio.Training(data="text.txt", no_save=True, cosine_T_max=5, **TINY)
    assert caught[0].filename == __file__


def test_a_loop_that_is_left_saves_and_can_be_resumed(run):
    training = folio.Training(data="text.txt", run_dir="run", **TINY)
    for event in training:
        if isinstance(event, folio.Step) and event.step == 3:
            break
    assert training.outcome == "stopped" and training.run.state == "stopped"
    resumed = folio.train(resume="run", progress=False)
    assert resumed.state == "finished"
    assert resumed.history == run.history, "the same bits as without the interruption"


def test_stop_and_save_can_be_requested():
    training = folio.Training(data="text.txt", run_dir="run", **TINY)
    saved = []
    for event in training:
        if isinstance(event, folio.Started):
            training.save()
        if isinstance(event, events.Saved) and event.requested:
            saved.append(event.checkpoint.name)
            training.stop()
    assert training.outcome == "stopped" and saved[0].startswith("step_")


def test_an_exception_in_a_callback_stops_and_saves(capsys):
    def fail(event):
        if isinstance(event, folio.Step):
            raise KeyError("mine")

    with pytest.raises(KeyError, match="mine"):
        folio.train(data="text.txt", run_dir="run", on_event=fail, **TINY)
    assert folio.Run("run").state == "stopped"
    assert "folio.train(resume='run')" in capsys.readouterr().out


def test_a_training_that_never_starts_leaves_nothing():
    training = folio.Training(data="text.txt", **TINY)
    assert training.run_dir.is_dir()
    training.finish()
    assert list(training) == [] and not training.run_dir.exists()


def test_ctrl_c_saves_and_raises_keyboard_interrupt():
    """SIGINT arrives while the main thread waits for an event of a step that takes long."""
    script = """
import os, signal, folio
# As in a terminal; CI may start programs with SIGINT ignored.
signal.signal(signal.SIGINT, signal.default_int_handler)
def on_event(event):
    if isinstance(event, folio.Step) and event.step == 2:
        os.kill(os.getpid(), signal.SIGINT)
try:
    folio.train(data="text.txt", run_dir="run", num_epochs=1000, n_emb=16, n_heads=2, n_blocks=1, on_event=on_event)
except KeyboardInterrupt:
    print("interrupted", folio.Run("run").state)
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert "interrupted stopped" in done.stdout and done.returncode == 0, done.stderr
    assert folio.Run("run").checkpoints


def test_the_gil_is_released_while_training():
    """A thread counts while the main thread waits for the first event, whose step takes long."""
    training = folio.Training(data="text.txt", no_save=True, **{**TINY, "n_emb": 128, "batch_sizes": 64})
    counted, done = [0], threading.Event()

    def count():
        while not done.is_set():
            counted[0] += 1

    thread = threading.Thread(target=count)
    thread.start()
    before = counted[0]
    first = next(event for event in training if isinstance(event, folio.Step))
    during = counted[0] - before
    done.set()
    thread.join()
    assert first.step == 1
    # Python hands the GIL over every 5 ms, so that the thread counts a few thousand times even beside a busy thread; if
    # the main thread held the GIL in its waits, it would count none.
    assert during > 0


def test_a_sweep_returns_its_runs_best_first(capsys):
    seen = []
    sweep = folio.sweep(data="text.txt", run_dir="sweep", learning_rates=[1e-4, 1e-2], on_event=seen.append, **TINY)
    assert isinstance(sweep, folio.Sweep) and sweep.varying == ["learning_rate"]
    assert [run.settings["learning_rate"] for run in sweep.runs] == [1e-4, 1e-2]
    assert sweep.best.name == "run_2" and sweep.best.best_eval_loss < sweep.runs[0].best_eval_loss
    ended = [event for event in seen if isinstance(event, folio.RunEnded)]
    assert [(event.run, event.state, event.epochs) for event in ended] == [(0, "finished", 2), (1, "finished", 2)]
    assert {event.run for event in seen if isinstance(event, folio.Step)} == {0, 1}
    assert "run_2 || Epoch: 2/2" in capsys.readouterr().out
    with pytest.raises(folio.FolioError, match="is a sweep; use folio.Sweep"):
        folio.Run("sweep")


def test_every_setting_is_documented():
    names = [setting.name for setting in folio.settings()]
    assert len(names) == len(set(names)) and {"data", "n_emb", "learning_rates", "resume", "threads"} <= set(names)
    for function in (folio.train, folio.sweep, folio.Training):
        assert set(names) <= set(inspect.signature(function).parameters)
        assert all(f"\n{name}" in function.__doc__ for name in names)
        assert re.search(r"\nlearning_rates, or lr.*\n(    .*\n)*?.*Takes several values", function.__doc__)
        assert "--" not in function.__doc__.split("\nSettings:\n")[1]


def test_a_program_that_exits_while_it_trains_is_not_held_up():
    script = """
import folio
training = folio.Training(data="text.txt", run_dir="run", num_epochs=100000, n_emb=16, n_heads=2, n_blocks=1, block_size=16)
events = iter(training)
next(events)
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert done.returncode == 0 and "Traceback" not in done.stderr, done.stderr
