"""Write the golden files of folio's tokenizer tests, or encode a text with a tokenizer.json.

    python tokenizers_golden.py --text tiny_shakespeare.txt --gpt2 RUN/tokenizer.json    # writes golden/tokenizers/
    python tokenizers_golden.py --text FILE --check RUN/tokenizer.json                   # reads, prints, writes nothing

The golden files contain the results of Hugging Face's `tokenizers` with a byte-level BPE: the merges trained on tiny
Shakespeare, and the ids of difficult strings with GPT-2's vocabulary. OpenAI's `tiktoken` must give the same ids before they are
written. RUN is the directory of a folio run with `--tokenizer_type bpe`.

Sources:
- byte-pair encoding: Sennrich, Haddow and Birch 2016, "Neural Machine Translation of Rare Words with Subword Units";
- byte-level BPE, and the split into words: Radford et al. 2019, "Language Models are Unsupervised Multitask Learners".
"""

import argparse
import hashlib
import json
import os
import sys
from pathlib import Path

# `tokenizers` reads both at first use. One thread, so that the results are deterministic.
os.environ["RAYON_NUM_THREADS"] = "1"
os.environ["TOKENIZERS_PARALLELISM"] = "false"

import numpy as np
import tiktoken
import tokenizers
from tokenizers import Tokenizer, models, pre_tokenizers, trainers

CORPUS_SHA256 = "86c4e6aa9db7c042ec79f339dcb96d42b0075e16b8fc2e86bf0ca57e2dc565ed"
CORPUS_CHARS, TRAIN_CHARS = 1_115_394, 1_003_854
# Vocabulary size, and number of characters to train on.
TRAININGS = [(512, TRAIN_CHARS), (1_024, TRAIN_CHARS), (4_096, TRAIN_CHARS), (10_000, CORPUS_CHARS)]
N_FIRST = 20

# GPT-2's split into words, as published.
GPT2_PATTERN = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
END_OF_TEXT = "<|endoftext|>"

TEXTS = [
    # Empty and very short.
    "", " ", "a", "\n", "'", "!", "7", "Hello world", " Hello  world ", "The quick brown fox jumps over the lazy dog.",
    # Scripts.
    "À propos: naïveté, garçon, Straße, Łódź, İstanbul, þorn, ñandú, tiếng Việt",
    "Ελληνική γλώσσα: «Ἐν ἀρχῇ ἦν ὁ λόγος»", "Съешь же ещё этих мягких французских булок, да выпей чаю",
    "Հայերեն լեզու։ ქართული ენა ႠႡႢ", "العَرَبِيَّةُ لغة جميلة، أليس كذلك؟", "עִבְרִית שפה יפה, 'נכון'",
    "ܣܘܪܝܝܐ ދިވެހި ߒߞߏ", "हिन्दी में क्षत्रिय और श्रीमान्",
    "বাংলা ਪੰਜਾਬੀ ગુજરાતી ଓଡ଼ିଆ தமிழ் తెలుగు ಕನ್ನಡ മലയാളം සිංහල",
    "ภาษาไทยไม่มีช่องว่าง ลาว ພາສາລາວ", "བོད་སྐད། မြန်မာဘာသာ ភាសាខ្មែរ", "中文没有空格。《红楼梦》，一百二十回！",
    "日本語のテキスト、カタカナ、ｶﾀｶﾅ、々〆ヶー", "한국어 텍스트입니다. \u1112\u1161\u11ab", "አማርኛ ቋንቋ። ᏣᎳᎩ ᐃᓄᒃᑎᑐᑦ ᚠᚢᚦᚨᚱᚲ ᠮᠣᠩᠭᠣᠯ",
    # Letters and numbers outside the first 65,536 code points.
    "𐌲𐌿𐍄𐌹𐍃𐌺𐌰 𐐔𐐯𐑅𐐨𐑉𐐯𐐻 𒀀𒁀 𓀀𓂀", "𝐌𝐚𝐭𝐡 𝔣𝔯𝔞𝔨𝔱𝔲𝔯 𝟘𝟙𝟚x𝟛", "𠀀𠮷野家 𪚥",
    # Emoji: joined, skin tones, flags, keycaps, tags.
    "👨‍👩‍👧‍👦 family", "👍🏽👩🏿‍🚀 🧑🏻‍🤝‍🧑🏾", "🇩🇪🇫🇷 🇯🇵!", "1️⃣2️⃣ #️⃣ ❤️ ☎",
    "🏴\U000e0067\U000e0062\U000e0073\U000e0063\U000e0074\U000e007f", "ok👌ok 100💯",
    # Combining marks, letters that look like symbols, symbols that look like letters, case changes.
    "e\u0301a\u0308 n\u0303o", "\u0301\u0302 \u0303",
    "Z\u0351\u0346\u0343a\u0310\u0300l\u034c\u0358g\u0352\u031ao\u0300",
    "ªº ʰʲ ⓐⓑ ㏒ ℵℝ™℃ ǅ ﬁ ſt", "İıſßẞΣς",
    # Numbers of other scripts.
    "½ ¾x² x₂ ①⑳ Ⅻ ⅷ ↈ", "٣٤٥ ۳۴ ३४ ৪ ๓ ༣ ௰ ൰ ፲", "三十二 〇一 ㊂ ㈣ 𐄇 𒐕",
    # White space: mixed, from other scripts, and look-alikes.
    "a  b   c    d", "a\tb\t\tc \td\t e", "a\nb\n\nc\n\n\nd", "a\r\nb\r\n\r\nc\rd",
    "  \n  a \n\n b\t\n", "a   ", "a\n", "a\n\n", " \n \n ",
    "\t\t\t\tif x:\n\t\t\t\t\treturn  x\n", "a\u00a0b \u00a0c\u00a0 d\u00a0\u00a0e", "a\u3000b\u3000\u3000c \u3000d",
    "a\u2028b\u2028\u2028c\u2029d", "a\u0085b\u0085\u0085c \u0085",
    "a\x1cb\x1d\x1dc \x1ed\x1f", "\ufeffa\ufeff b",
    "a\u1680b\u2000c\u2003\u2009d\u202fe\u205ff", "a\u200bb\u200cc\u200dd\u2060e\u180ef\u00adg", "a\x0bb\x0c\x0cc",
    # Contractions.
    "I'll we've you're he'd I'm it's don't", "I'LL WE'VE YOU'RE HE'D I'M IT'S DON'T",
    "I’ll we’ve you’re he’d I’m it’s don’t",
    "'s't'm'd'll've're 'S'T'M'D'LL'VE'RE", "'tis ''s '' 'll' l'l 'l 'v 'r rock'n'roll o'clock it'ſ",
    "they'd've y'all'd've 'sdmt 'resx 'vex 'llama 's1 '1s", " 's  'll\n've\t're",
    # Digits and punctuation adjacent to letters.
    "abc123def456ghi", "3D 2nd x2y v1.2.3 0x1F 1e-9 4K", "1,234,567.89 12:34:56 2026-11-23",
    "3.14159265358979323846264338327950288",
    "foo_bar.baz(qux)[0] += {'a': \"b\"}; // #1 @x $y %z ^w &v *u ~t `s` |r| <q> ?p!",
    "https://example.org/a/b?c=d&e=f#g user@example.org", "--- *** ... ??? !!! ----------------",
    "a.b,c;d:e!f?g-h_i/j\\k",
    # Long words, some of them twice.
    "Donaudampfschifffahrtselektrizitätenhauptbetriebswerkbauunterbeamtengesellschaft",
    "Rindfleischetikettierungsüberwachungsaufgabenübertragungsgesetz " * 2,
    "b" * 47, "b" * 48 + " " + "b" * 49, "a" * 300, "ab" * 100,
    "xyzzy" * 13, "人" * 40, "!" * 70 + "?" * 70, "0123456789" * 10, " " * 70 + "x", "\n" * 70,
    # Control characters, and code points that are not characters.
    "".join(map(chr, range(0x20))), "\x00\x00a\x7f\x80\x9f b\x00", "\ue000 \U0010fffd \u0378",
    "\ufffd\ufffe\uffff \U0001ffff\U0010ffff",
    # Parts of the special token, which are ordinary text.
    "<|endof", "text|>", "<|endoftext |>", "< |endoftext|>", "<|endoftext|",
    "|endoftext|>", "<|ENDOFTEXT|>", "endoftext",
]


def byte_level() -> pre_tokenizers.PreTokenizer:
    """GPT-2's split into words, and its alphabet of bytes."""
    return pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)


def trained(text: str, vocab_size: int) -> Tokenizer:
    """A tokenizer that `tokenizers` trained on a text."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = byte_level()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        special_tokens=[],
        show_progress=False,
    )
    tokenizer.train_from_iterator([text], trainer)
    return tokenizer


def merges_of(tokenizer: Tokenizer) -> list[str]:
    """The merges in order, as "left right"."""
    merges = json.loads(tokenizer.to_str())["model"]["merges"]
    return [merge if isinstance(merge, str) else " ".join(merge) for merge in merges]


def sha256_of_ids(ids: list[int]) -> str:
    """The sha256 of the ids as little-endian u32."""
    return hashlib.sha256(np.array(ids, dtype="<u4").tobytes()).hexdigest()


def write_merges(directory: Path, text: str) -> None:
    """Train each vocabulary twice, and store the merges and the ids of the text."""
    trainings = []
    for vocab_size, n_chars in TRAININGS:
        tokenizer, again = (trained(text[:n_chars], vocab_size) for _ in range(2))
        assert tokenizer.to_str() == again.to_str(), f"two trainings of {vocab_size} tokens differ"
        vocab, merges = tokenizer.get_vocab(), merges_of(tokenizer)
        tokens = sorted(vocab, key=vocab.get)
        assert tokens[:256] == sorted(pre_tokenizers.ByteLevel.alphabet()), "the first ids are not the sorted alphabet"
        assert tokens[256:] == [merge.replace(" ", "") for merge in merges], "the ids are not in the order of the merges"
        ids = tokenizer.encode(text).ids
        merges_sha256 = hashlib.sha256("".join(merge + "\n" for merge in merges).encode()).hexdigest()
        trainings.append({
            "vocab_size": vocab_size,
            "train_chars": n_chars,
            "merges": len(merges),
            "merges_sha256": merges_sha256,
            "first_merges": merges[:N_FIRST],
            "ids": len(ids),
            "ids_sha256": sha256_of_ids(ids),
        })
        print(f"{vocab_size} tokens of {n_chars} characters: {len(merges)} merges, the text is {len(ids)} ids")
    golden = {"tokenizers": tokenizers.__version__, "corpus_sha256": CORPUS_SHA256, "trainings": trainings}
    content = json.dumps(golden, indent=1, ensure_ascii=False) + "\n"
    write_whole(directory / "merges_tiny_shakespeare.json", content.encode())


def tiktoken_of(gpt2: Path) -> tiktoken.Encoding:
    """GPT-2's vocabulary for tiktoken, whose ranks are the ids."""
    # The alphabet: bytes that are visible in Latin-1 map to that character, the others to the characters from U+0100 on.
    visible = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in visible]
    byte_of = {chr(byte): byte for byte in visible} | {chr(0x100 + i): byte for i, byte in enumerate(others)}
    vocab = json.loads(gpt2.read_bytes())["model"]["vocab"]
    special = vocab.pop(END_OF_TEXT)
    ranks = {bytes(byte_of[char] for char in token): rank for token, rank in vocab.items()}
    return tiktoken.Encoding("gpt2", pat_str=GPT2_PATTERN, mergeable_ranks=ranks, special_tokens={END_OF_TEXT: special})


def write_gpt2_ids(directory: Path, gpt2: Path) -> None:
    """Encode the difficult strings, one per line; `tiktoken` must give the same ids."""
    tokenizer, rival = Tokenizer.from_file(str(gpt2)), tiktoken_of(gpt2)
    lines = []
    for text in TEXTS:
        ids = tokenizer.encode(text).ids
        assert END_OF_TEXT not in text and ids == rival.encode_ordinary(text), f"tiktoken gives different ids for {text!r}"
        assert rival.decode_bytes(ids) == text.encode(), f"{text!r} does not survive a round trip"
        lines.append(json.dumps({"text": text, "ids": ids}, separators=(",", ":")))
    write_whole(directory / "gpt2_ids.json", ("[\n" + ",\n".join(lines) + "\n]\n").encode())
    print(f"GPT-2: {len(TEXTS)} strings, tiktoken {tiktoken.__version__} agrees")


def check(tokenizer: Path, text: str) -> None:
    """Print the number of ids and their sha256."""
    ids = Tokenizer.from_file(str(tokenizer)).encode(text).ids
    print(f"{len(ids)} ids, sha256 {sha256_of_ids(ids)}, tokenizers {tokenizers.__version__}")


def write_whole(path: Path, content: bytes) -> None:
    """Write to a temporary sibling and rename it, so that a golden file is never incomplete."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(path.name + ".tmp")
    with temporary.open("wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(path)


def main() -> int:
    parser = argparse.ArgumentParser(description="Write folio's golden files of tokenizers, or check a tokenizer.json.")
    parser.add_argument("out", type=Path, nargs="?", metavar="DIR", default=Path(__file__).parent / "golden/tokenizers",
                        help="directory for the golden files (default: golden/tokenizers/ next to this script)")
    parser.add_argument("--text", type=Path, required=True, metavar="PATH",
                        help="tiny Shakespeare, or any text to check with")
    task = parser.add_mutually_exclusive_group(required=True)
    task.add_argument("--gpt2", type=Path, metavar="FILE", help="GPT-2's tokenizer.json: write the golden files")
    task.add_argument("--check", type=Path, metavar="FILE", help="a tokenizer.json: print the hash of its ids for the text")
    args = parser.parse_args()
    for path in (args.text, args.gpt2, args.check):
        if path and not path.is_file():
            parser.error(f"{path} does not exist")

    content = args.text.read_bytes()
    if args.check:
        check(args.check, content.decode())
        return 0
    if hashlib.sha256(content).hexdigest() != CORPUS_SHA256:
        parser.error(f"{args.text} differs from tiny Shakespeare; `folio corpus` prints the right text")
    write_gpt2_ids(args.out, args.gpt2)
    write_merges(args.out, content.decode())
    return 0


if __name__ == "__main__":
    sys.exit(main())
