"""Models: generation, logits, losses, weights."""

import json
import math
import subprocess
import sys

import numpy as np
import pytest

import folio
from conftest import PROMPT, TEXT


def test_generation_is_that_of_the_command_line(run):
    options = dict(max_new_tokens=30, temperature=0.8, top_k=5, seed=7)
    text = run.model().generate(PROMPT, **options)
    assert text.startswith(PROMPT) and len(text) == len(PROMPT) + 30
    command = [sys.executable, "-m", "folio", "generate", str(run.path), "--prompt", PROMPT, "--json"]
    flags = [f"--{name}={value}" for name, value in options.items()]
    printed = subprocess.run(command + flags, capture_output=True, text=True, check=True).stdout
    assert json.loads(printed)["text"] == text[len(PROMPT) :]


def test_samples_and_streams_agree(run):
    model = folio.Model.load(run.path)
    samples = model.generate(PROMPT, num_samples=3, max_new_tokens=20, seed=1)
    assert samples == [model.generate(PROMPT, max_new_tokens=20, seed=seed) for seed in (1, 2, 3)]
    pieces = list(model.stream(PROMPT, max_new_tokens=20, seed=2))
    assert len(pieces) == 20 and PROMPT + "".join(pieces) == samples[1]
    assert model.generate(max_new_tokens=5, seed=1) and len(set(samples)) > 1


def test_a_stop_text_ends_generation(run):
    text = run.model().generate(PROMPT, max_new_tokens=200, temperature=0, stop="e")
    assert "e" not in text[len(PROMPT) :]


@pytest.mark.parametrize(
    "options, message",
    [
        (dict(temperatur=1), "unknown option 'temperatur'"),
        (dict(temperature=-1), "temperature"),
        (dict(max_new_tokens=0), "max_new_tokens"),
        (dict(top_k="many"), "top_k"),
        (dict(num_samples=0), "`num_samples 0` is out of range"),
        (dict(past_context="odd"), "unknown context mode 'odd'"),
        (dict(prompt="日"), "prompt: "),
    ],
)
def test_mistakes_in_generation_are_explained(run, options, message):
    with pytest.raises(folio.FolioError) as error:
        run.model().generate(**options)
    assert message in str(error.value)


def test_logits_predict_the_losses_and_the_text(run):
    model = run.model(precision="f32")
    ids = model.tokenizer.encode(TEXT[:17])
    logits = model.logits(ids[:16])
    assert logits.shape == (16, model.config["vocab_size"]) and logits.dtype == np.float32
    # Losses sum 22 exponentials in f32 and take a logarithm, and logits below are rounded to f32: a few units of the logits,
    # which are below 16 in magnitude, 16 * 2^-24 each.
    shifted = logits - logits.max(axis=1, keepdims=True)
    log_probabilities = shifted - np.log(np.exp(shifted.astype(np.float64)).sum(axis=1, keepdims=True))
    want = -log_probabilities[np.arange(16), ids[1:]]
    assert np.abs(logits).max() < 16
    np.testing.assert_allclose(model.losses(TEXT[:17]), want, atol=8 * 16 * 2**-24)
    likeliest = model.tokenizer.decode([int(logits[-1].argmax())])
    assert model.generate(TEXT[:16], temperature=0, max_new_tokens=1) == TEXT[:16] + likeliest


def test_losses_cover_every_token_but_the_first(run):
    model = run.model()
    losses = model.losses(TEXT[:1000])
    assert losses.shape == (999,) and losses.dtype == np.float32
    # Blocks do not see each other.
    np.testing.assert_array_equal(losses[:16], model.losses(TEXT[:17]))
    np.testing.assert_array_equal(losses[16:32], model.losses(TEXT[16:33]))
    np.testing.assert_array_equal(losses[-7:], model.losses(TEXT[992:1000]))
    with open("part.txt", "w") as file:
        file.write(TEXT[:1000])
    command = [sys.executable, "-m", "folio", "eval", str(run.path), "--data", "part.txt", "--json"]
    printed = json.loads(subprocess.run(command, capture_output=True, text=True, check=True).stdout)
    # The command and numpy sum 999 losses in f64 in different orders.
    assert math.isclose(losses.astype(np.float64).mean(), printed["loss"], rel_tol=1e-12)


def test_logits_and_losses_refuse_what_the_model_cannot_take(run):
    model = run.model()
    for ids, message in [([], "0 tokens"), ([0] * 17, "17 tokens: the model takes from 1 to 16"), ([99], "token 99 is outside")]:
        with pytest.raises(folio.FolioError, match=message):
            model.logits(ids)
    with pytest.raises(folio.FolioError, match="needs at least 2"):
        model.losses("T")


def test_weights_are_views_of_the_checkpoint(run):
    model = run.model()
    weights = model.state_dict()
    assert sum(array.size for array in weights.values()) == model.parameters
    for name, array in weights.items():
        assert array.dtype == np.float32 and not array.flags.writeable and not array.flags.owndata, name
    names = [name for name in weights if name.endswith("wte.weight")]
    assert [weights[name].shape for name in names] == [(model.config["vocab_size"], 16)]
    # GPT-2's first steps: the embedding of a text. Its size is that of N(0, 0.02) and a little training.
    wte = weights[names[0]]
    assert 0.01 < wte[model.tokenizer.encode(PROMPT)].std() < 0.5


def test_models_are_exported(run):
    assert run.export("gguf", "model.gguf", type="q8_0").read_bytes()[:4] == b"GGUF"
    assert run.model(1).export("onnx", "model.onnx").stat().st_size > 4 * run.model().parameters
    config = json.loads((run.export("hf", "exported") / "config.json").read_text())
    assert (config["model_type"], config["n_embd"]) == ("gpt2", 16)
    for format, options, message in [
        ("gguf", {}, "model.gguf"),
        ("hf", dict(type="q8_0"), "q8_0 is a type of gguf only"),
        ("csv", {}, "choose hf, gguf or onnx"),
        ("ggml", {}, "unknown format 'ggml'"),
    ]:
        with pytest.raises(folio.FolioError) as error:
            run.export(format, "model.gguf", **options)
        assert message in str(error.value) and "--" not in str(error.value)
    run.export("gguf", "model.gguf", overwrite=True)


def test_every_checkpoint_can_be_loaded(run):
    assert [path.name for path in run.checkpoints] == ["checkpoint_1", "checkpoint_2"]
    first, second = run.model(1), run.model(2)
    assert first.eval_loss == run.history["eval_loss"][0] > second.eval_loss
    assert folio.Model.load(run.path / "latest").checkpoint.name in ("checkpoint_2", "latest")
    assert run.model(precision="int8").precision == "int8"
    with pytest.raises(folio.FolioError, match="holds no checkpoint 9: there are 1, 2"):
        run.model(9)
    with pytest.raises(folio.FolioError, match="precision|format"):
        run.model(precision="f64")
    with pytest.raises(folio.FolioError, match="holds no run|train a model"):
        folio.Model.load()
