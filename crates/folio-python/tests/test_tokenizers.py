"""Tokenizers."""

import json

import pytest

import folio
from conftest import TEXT

MIXED = "Été: 日本 👍 I'll\n"


@pytest.mark.parametrize(
    "make, size",
    [
        (lambda: folio.Tokenizer.characters(MIXED), len(set(MIXED))),
        (lambda: folio.Tokenizer.train(TEXT, 280, ["<|endoftext|>"]), 280),
        (folio.Tokenizer.gpt2, 50257),
    ],
)
def test_tokenizers_round_trip_and_are_saved(make, size, tmp_path):
    tokenizer = make()
    assert len(tokenizer) == tokenizer.vocab_size == size
    ids = tokenizer.encode(MIXED)
    assert tokenizer.decode(ids) == MIXED and all(isinstance(i, int) for i in ids)
    tokenizer.save(tmp_path / "one.json")
    tokenizer.save("directory")
    assert folio.Tokenizer.load(tmp_path / "one.json") == folio.Tokenizer.load("directory") == tokenizer
    assert json.loads((tmp_path / "one.json").read_text())["model"]
    assert str(size) in repr(tokenizer)


def test_special_tokens_are_text_unless_asked_for():
    tokenizer = folio.Tokenizer.gpt2()
    assert tokenizer.encode("<|endoftext|>", special_tokens=True) == [tokenizer.end_token] == [50256]
    assert len(tokenizer.encode("<|endoftext|>")) > 1
    assert folio.Tokenizer.characters("ab").end_token is None


def test_a_tokenizer_can_be_trained_and_used_for_a_run():
    tokenizer = folio.Tokenizer.train(TEXT, 280)
    tokenizer.save("mine.json")
    assert tokenizer != folio.Tokenizer.train(TEXT, 281)
    training = folio.Training(data="text.txt", tokenizer_type="mine.json", no_save=True)
    assert training.settings[0]["tokenizer_type"].endswith("mine.json")


def test_mistakes_are_explained():
    tokenizer = folio.Tokenizer.characters("abc")
    with pytest.raises(folio.FolioError, match="token 3 is outside the vocabulary of 3"):
        tokenizer.decode([0, 3])
    with pytest.raises(folio.FolioError, match="'x'|\"x\"|x"):
        tokenizer.encode("x")
    with pytest.raises(folio.FolioError, match="too small"):
        folio.Tokenizer.train(TEXT, 100)
    with pytest.raises(folio.FolioError, match="nowhere"):
        folio.Tokenizer.load("nowhere.json")
    with pytest.raises(folio.FolioError, match="cannot create"):
        tokenizer.save("text.txt/inside")
    with pytest.raises((OverflowError, TypeError)):
        tokenizer.decode([-1])
