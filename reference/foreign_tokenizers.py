"""Write the golden file for tokenizers saved by other programs: golden/tokenizers/foreign.json.

    python foreign_tokenizers.py [DIR]

Each case has the normalizer, pre-tokenizer and added tokens of a published kind of tokenizer. All share a small
vocabulary. Its merges were trained without splitting the text, so they span words, and a different split gives
different ids. For every text, the file contains the first digits of the sha256 of its ids, with and without special
tokens. `"strided"` is a text of many code points, to test the character classes of the patterns.

`python foreign_tokenizers.py --ids CASE TEXT` prints the expected ids, to debug a failing test.
"""

import hashlib
import json
import sys
from pathlib import Path

import numpy as np
import tokenizers
from tokenizers import AddedToken, Tokenizer, models, normalizers, pre_tokenizers, trainers
from tokenizers.pre_tokenizers import ByteLevel, Digits, Sequence, Split

from tokenizers_golden import GPT2_PATTERN, TEXTS

CL100K = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
QWEN2 = CL100K.replace(r"\p{N}{1,3}", r"\p{N}")
QWEN35 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?[\p{L}\p{M}]+|\p{N}| ?[^\s\p{L}\p{M}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)
O200K = "|".join([
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+(?i:'s|'t|'re|'ve|'m|'ll|'d)?",
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*(?i:'s|'t|'re|'ve|'m|'ll|'d)?",
    r"\p{N}{1,3}", r" ?[^\s\p{L}\p{N}]+[\r\n/]*", r"\s*[\r\n]+", r"\s+(?!\S)", r"\s+",
])
NANOCHAT = (
    r"'(?i:[sdmt]|ll|ve|re)|[^\r\n\p{L}\p{N}]?+\p{L}+|\p{N}{1,2}| ?[^\s\p{L}\p{N}]++[\r\n]*|\s*[\r\n]|\s+(?!\S)|\s+"
)
DEEPSEEK = [
    r"\p{N}{1,3}", "[一-龥぀-ゟ゠-ヿ]+",
    r"""[!"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~][A-Za-z]+|[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+| ?[\p{P}\p{S}]+[\r\n]*"""
    r"""|\s*[\r\n]+|\s+(?!\S)|\s+""",
]

MORE = [
    "'S'ſ'ſx 'K 'Re'vE'LLama I'Mit", "HTTPServer iPhone McDonald's ǅabc ʰABCdef ÀÉîõ", "12345678 ٣٤٥٣٤٥ ½½½½ Ⅻ1",
    "!!\n\n\r\nx ?\r\n /\n//\n", "  \n  \n x", "\t\tx  \u3000 y", "e\u0301e\u0301 \u0301x a\u0301\u0323 \u1100\u1161\u11a8",
    "\u00e9 \u212b \u2126 \ufb01 \u0958 \u0344", "\U000105d2\u0307 \U00011935\U00011930 a\u1ac1\u0301 a\u0301\u1ac1",
    "日本語テキスト123中文。漢字かな!abc @name #tag", "the them  the\nthe", " lead", "", " ", "x",
    "a<|a|>b", "a  <|l|>  b", "a  <|r|>  b<|r|>  <|l|> c", "<|l|><|l|>\n<|r|>\n", "word xwordx word_ word. word1 éword word",
    "<|w|> x<|w|> <|w|>x <|w|>\u0301", "caf\u00e9 cafe\u0301 caf\u00e9s", "<|a|><|a|>longer> <|a <|a|>", "TOOL toolTOOL TOOLTOOL",
    "  <|r|>\u3000\u2003x <|l|>", "\u200d<|w|> \u203f<|w|> <|w|>",
]


def split(pattern, behavior="isolated", invert=False):
    return Split(tokenizers.Regex(pattern), behavior, invert)


def then_bytes(*steps, prefix=False, regex=False):
    return Sequence([*steps, ByteLevel(add_prefix_space=prefix, use_regex=regex)])


ADDED = [
    AddedToken("<|a|>", special=True, normalized=False), AddedToken("<|a|>longer>", special=False, normalized=False),
    AddedToken("<|l|>", special=True, normalized=False, lstrip=True),
    AddedToken("<|r|>", special=True, normalized=False, rstrip=True),
    AddedToken("<|w|>", special=True, normalized=False, single_word=True),
    AddedToken("word", special=False, normalized=True, single_word=True),
    AddedToken("cafe\u0301", special=False, normalized=True), AddedToken("TOOL", special=True, normalized=True, lstrip=True),
]
CASES = {
    "gpt2": dict(pre=then_bytes(split(GPT2_PATTERN))),
    "llama3": dict(pre=then_bytes(split(CL100K)), ignore_merges=True),
    "cl100k": dict(pre=then_bytes(split(CL100K, "removed", True))),
    "qwen2": dict(pre=then_bytes(split(QWEN2)), nfc=True),
    "qwen3.5": dict(pre=then_bytes(split(QWEN35)), nfc=True, added=ADDED),
    "o200k": dict(pre=then_bytes(split(O200K))),
    "nanochat": dict(pre=then_bytes(split(NANOCHAT))),
    "deepseek": dict(pre=then_bytes(*map(split, DEEPSEEK))),
    "starcoder": dict(pre=then_bytes(Digits(individual_digits=True), regex=True), added=ADDED),
    "digits": dict(pre=then_bytes(Digits(individual_digits=False), prefix=True, regex=True)),
    "prefix": dict(pre=ByteLevel(add_prefix_space=True, use_regex=True), added=ADDED),
    "prefix alone": dict(pre=ByteLevel(add_prefix_space=True, use_regex=False), added=ADDED, ignore_merges=True),
    "whole": dict(pre=ByteLevel(add_prefix_space=False, use_regex=False), nfc=True),
    "removed": dict(pre=then_bytes(Split(" ", "removed"))),
    "contiguous": dict(pre=then_bytes(split(r"[ \n]", "contiguous"))),
    "previous": dict(pre=then_bytes(split(r"\s", "merged_with_previous"))),
    "next": dict(pre=then_bytes(split(r"\p{P}|\s", "merged_with_next"))),
    "next inverted": dict(pre=then_bytes(split(r"\p{Ll}{2,4}", "merged_with_next", True))),
}


def base() -> Tokenizer:
    """A vocabulary of bytes, merges that span words, and tokens without a merge."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = ByteLevel(add_prefix_space=False, use_regex=False)
    trainer = trainers.BpeTrainer(vocab_size=900, initial_alphabet=ByteLevel.alphabet(), show_progress=False)
    tokenizer.train_from_iterator([*TEXTS, *MORE, " the 's 12 3 \n\n" * 3], trainer)
    model = json.loads(tokenizer.to_str())
    for token in ["Ġthem", "ĠMcDonald", "iPhone", "ĠĊ", "Ġx"]:
        model["model"]["vocab"].setdefault(token, len(model["model"]["vocab"]))
    return Tokenizer.from_str(json.dumps(model))


def made(case: dict) -> Tokenizer:
    model = json.loads(base().to_str())
    model["model"]["ignore_merges"] = case.get("ignore_merges", False)
    tokenizer = Tokenizer.from_str(json.dumps(model))
    tokenizer.pre_tokenizer = case["pre"]
    if case.get("nfc"):
        tokenizer.normalizer = normalizers.NFC()
    for token in case.get("added", []):
        (tokenizer.add_special_tokens if token.special else tokenizer.add_tokens)([token])
    return tokenizer


def ids(tokenizer: Tokenizer, text: str, special: bool) -> list[int]:
    tokenizer.encode_special_tokens = not special
    return tokenizer.encode(text).ids


def start_of_sha256(ids: list[int]) -> str:
    return hashlib.sha256(np.array(ids, dtype="<u4").tobytes()).hexdigest()[:8]


def strided() -> str:
    return "".join(f"a{chr(c)}1{chr(c)} {chr(c)}\n" for c in range(0, 0x110000, 41) if not 0xD800 <= c <= 0xDFFF)


def main() -> None:
    if sys.argv[1:2] == ["--ids"]:
        tokenizer = made(CASES[sys.argv[2]])
        print([ids(tokenizer, sys.argv[3], special) for special in (True, False)])
        return
    texts = [*TEXTS, *MORE]
    shared = json.loads(base().to_str())
    merges = [" ".join(merge) if isinstance(merge, list) else merge for merge in shared["model"]["merges"]]
    vocab = sorted(shared["model"]["vocab"], key=shared["model"]["vocab"].get)
    golden = {"tokenizers": tokenizers.__version__, "vocab": vocab, "merges": merges, "texts": texts, "cases": {}}
    for name, case in CASES.items():
        tokenizer = made(case)
        saved = json.loads(tokenizer.to_str())
        fields = {field: saved[field] for field in ["normalizer", "pre_tokenizer", "added_tokens"]}
        hashes = {field: " ".join(start_of_sha256(ids(tokenizer, text, special)) for text in texts)
                  for field, special in [("special", True), ("ordinary", False)]}
        fields |= {"ignore_merges": saved["model"]["ignore_merges"], **hashes}
        golden["cases"][name] = fields | {"strided": start_of_sha256(ids(tokenizer, strided(), True))}
    directory = Path(sys.argv[1]) if len(sys.argv) > 1 else Path(__file__).parent / "golden" / "tokenizers"
    path = directory / "foreign.json"
    path.write_text(json.dumps(golden, ensure_ascii=True, separators=(",", ":")).replace('],"', '],\n"') + "\n")
    print(f"{path}: {len(CASES)} cases, {len(texts)} texts, {path.stat().st_size} bytes")


if __name__ == "__main__":
    main()
