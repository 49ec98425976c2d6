"""Runs and sweeps: what they hold, and how notebooks show them."""

import builtins

import matplotlib
import pandas
import pytest

import folio
from conftest import TINY

matplotlib.use("Agg")


@pytest.fixture
def without(monkeypatch):
    """Makes the import of some packages fail, as if they were not installed."""

    def hide(*names):
        real = builtins.__import__

        def fail(name, *args, **kwargs):
            if name.split(".")[0] in names:
                raise ImportError(f"No module named {name!r}")
            return real(name, *args, **kwargs)

        monkeypatch.setattr(builtins, "__import__", fail)

    return hide


def test_losses_are_a_data_frame(run):
    assert isinstance(run.losses, pandas.DataFrame) and list(run.losses.index) == [1, 2]
    assert {"step", "train_loss", "eval_loss", "learning_rate", "eval_bits_per_character"} <= set(run.losses.columns)
    assert run.losses["eval_loss"].min() == run.best_eval_loss


def test_without_pandas_losses_are_lists(run, without):
    without("pandas")
    assert run.losses["epoch"] == [1, 2] and len(run.losses["train_loss"]) == 2


def test_plot_draws_both_losses(run, without):
    ax = run.plot()
    assert [line.get_label() for line in ax.get_lines()] == ["train", "eval"]
    assert list(ax.get_lines()[1].get_ydata()) == run.history["eval_loss"]
    assert run.plot(ax) is ax and len(ax.get_lines()) == 4
    without("matplotlib")
    with pytest.raises(ImportError, match="pip install matplotlib"):
        run.plot()


def test_a_run_shows_itself(run):
    assert repr(run).startswith("<folio.Run: ") and "finished, 2 epochs, best eval loss " in repr(run)
    page = run._repr_html_()
    assert page.count("<polyline") == 2 and f"{run.best_eval_loss:.4f}" in page and "n_emb 16" in page


def test_what_is_not_a_run_is_refused(run):
    for path, message in [("text.txt", "is not a directory"), ("nowhere", "does not exist"), (run.path / "best", "is a checkpoint")]:
        with pytest.raises(folio.FolioError, match=message):
            folio.Run(path)


def test_a_sweep_shows_itself(without):
    sweep = folio.sweep(data="text.txt", run_dir="sweep", dropouts=[0, 0.5], progress=False, **TINY)
    table = sweep.results
    assert list(table.columns) == ["dropout", "state", "best_eval_loss"] and table["best_eval_loss"].is_monotonic_increasing
    assert [line.get_label() for line in sweep.plot().get_lines()] == ["dropout 0.0", "dropout 0.5"]
    assert sweep._repr_html_().count("<tr>") == 3 and "2 runs, best eval loss" in repr(sweep)
    assert sweep.best.model().generate(max_new_tokens=3, seed=1)
    without("pandas")
    assert [row["run"] for row in sweep.results] == list(table.index)


def test_a_run_counts_as_a_sweep_of_one(run):
    assert [one.path for one in folio.Sweep(run.path).runs] == [run.path] and folio.Sweep(run.path).best.path == run.path
