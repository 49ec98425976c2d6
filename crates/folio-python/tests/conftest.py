"""What the tests share: a directory for each, and a run that is trained once."""

import os
from pathlib import Path

import pytest

import folio

#: A model that trains in a second.
TINY = dict(n_emb=16, n_heads=2, n_blocks=1, block_sizes=16, batch_sizes=8, num_epochs=2, precision="f32", seed=1)
#: 7,200 characters; 22 of them are distinct.
TEXT = "To be, or not to be, that is the question:\nWhether 'tis nobler\n" * 110
PROMPT = "To be"


@pytest.fixture(autouse=True)
def own_directory(tmp_path, monkeypatch):
    """Runs every test in its own directory, with a text in it."""
    monkeypatch.chdir(tmp_path)
    Path("text.txt").write_text(TEXT)


@pytest.fixture(scope="session")
def run(tmp_path_factory) -> folio.Run:
    """A trained run."""
    directory = tmp_path_factory.mktemp("trained")
    (directory / "text.txt").write_text(TEXT)
    before = Path.cwd()
    os.chdir(directory)
    try:
        trained = folio.train(data="text.txt", save_checkpoint=True, run_dir=directory / "run", progress=False, **TINY)
    finally:
        os.chdir(before)
    return trained
