"""Write the models of other programs that folio's tests import: golden/import.

    python import_golden.py [DIR]

- `hf`: as transformers saves a GPT-2, with a tokenizer.json;
- `hf_varied`: float16 in shards, GELU with erf, an inner width of its own, a separate head, vocab.json and merges.txt;
- `hf_bin`: a pytorch_model.bin in bfloat16 without a head, with the buffers of old versions, and no tokenizer;
- `nanogpt`, `nanogpt_no_bias`: ckpt.pt in the layout of nanoGPT's `train.py`, with and without a meta.pkl;
- `mingpt`: model.pt in the layout of minGPT, with a separate head, and the config.json that it writes.

`expected.safetensors` has the logits of each, computed in float32, and the losses of 50 steps of fine-tuning.

The models of nanoGPT and minGPT are written here from the description of their state dicts: names, shapes and
formulas. They share one class, because they differ only in the activation, the biases and the head.
"""

import json
import math
import pickle
import sys
import tempfile
from pathlib import Path

import numpy as np
import safetensors.torch
import tokenizers
import torch
import torch.nn as nn
import torch.nn.functional as F
import transformers
from tokenizers import decoders, models, pre_tokenizers, trainers
from transformers import GPT2Config, GPT2LMHeadModel, GPT2Model, PreTrainedTokenizerFast

from golden import hash32

TEXT = "to be, or not to be, that is the question: whether 'tis nobler in the mind to suffer"
CHARACTERS = sorted(set("to be, or not"))
SIZES = dict(n_embd=8, n_head=2, n_layer=2)
CONTEXT = 12
# Rows of the embedding that stand for no token.
PADDING = 5
STEPS = 50


class Block(nn.Module):
    def __init__(self, width, heads, bias, gelu):
        super().__init__()
        self.heads, self.gelu = heads, gelu
        self.ln_1 = nn.LayerNorm(width, bias=bias)
        self.attn = nn.Module()
        self.attn.c_attn = nn.Linear(width, 3 * width, bias=bias)
        self.attn.c_proj = nn.Linear(width, width, bias=bias)
        self.ln_2 = nn.LayerNorm(width, bias=bias)
        self.mlp = nn.Module()
        self.mlp.c_fc = nn.Linear(width, 4 * width, bias=bias)
        self.mlp.c_proj = nn.Linear(4 * width, width, bias=bias)

    def forward(self, x):
        batch, time, width = x.shape
        parts = self.attn.c_attn(self.ln_1(x)).split(width, dim=2)
        query, key, value = (part.view(batch, time, self.heads, -1).transpose(1, 2) for part in parts)
        attended = F.scaled_dot_product_attention(query, key, value, is_causal=True)
        x = x + self.attn.c_proj(attended.transpose(1, 2).reshape(batch, time, width))
        return x + self.mlp.c_proj(self.gelu(self.mlp.c_fc(self.ln_2(x))))


class Gpt(nn.Module):
    """The layout of nanoGPT and minGPT."""

    def __init__(self, vocab_size, tied, bias, gelu, buffers):
        super().__init__()
        width, heads, layers = SIZES["n_embd"], SIZES["n_head"], SIZES["n_layer"]
        self.transformer = nn.ModuleDict(dict(
            wte=nn.Embedding(vocab_size, width),
            wpe=nn.Embedding(CONTEXT, width),
            h=nn.ModuleList(Block(width, heads, bias, gelu) for _ in range(layers)),
            ln_f=nn.LayerNorm(width, bias=bias),
        ))
        self.lm_head = nn.Linear(width, vocab_size, bias=False)
        for name, parameter in self.named_parameters():
            nn.init.normal_(parameter, mean=1.0 if "ln_" in name and name.endswith("weight") else 0.0, std=0.3)
        if tied:
            self.lm_head.weight = self.transformer.wte.weight
        if buffers:
            for block in self.transformer.h:
                block.attn.register_buffer("bias", torch.ones(CONTEXT, CONTEXT).tril()[None, None])

    def forward(self, tokens):
        x = self.transformer.wte(tokens) + self.transformer.wpe(torch.arange(tokens.shape[1]))
        for block in self.transformer.h:
            x = block(x)
        return self.lm_head(self.transformer.ln_f(x))


def tanh_gelu(x):
    return 0.5 * x * (1 + torch.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))


def byte_bpe():
    tokenizer = tokenizers.Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=264, initial_alphabet=alphabet, show_progress=False)
    tokenizer.train_from_iterator([TEXT], trainer)
    tokenizer.add_special_tokens(["<|endoftext|>"])
    return tokenizer


def tokens_of(count, vocab_size, seed):
    """Ids by formula, the same in numpy and in Rust."""
    return torch.tensor((hash32(np.arange(count) + seed * 1000) % vocab_size).astype(np.int64))


def logits_of(model, vocab_size):
    """The logits of the last two positions of a whole context: (2, V)."""
    tokens = tokens_of(CONTEXT, vocab_size, 1)[None]
    with torch.no_grad():
        logits = model.eval()(tokens)
    return getattr(logits, "logits", logits)[0, -2:].contiguous()


def losses_of(model, vocab_size):
    """The losses of fine-tuning on 4 sequences per step, before each step."""
    matrices = [p for p in model.parameters() if p.dim() >= 2]
    vectors = [p for p in model.parameters() if p.dim() < 2]
    groups = [dict(params=matrices, weight_decay=0.01), dict(params=vectors, weight_decay=0.0)]
    optimizer = torch.optim.AdamW(groups, lr=1e-3, betas=(0.9, 0.99), eps=1e-8)
    losses = []
    for step in range(STEPS):
        tokens = tokens_of(4 * (CONTEXT + 1), vocab_size, 10 + step % 5).view(4, CONTEXT + 1)
        logits = model.eval()(tokens[:, :-1]).logits
        loss = F.cross_entropy(logits.reshape(-1, logits.shape[-1]), tokens[:, 1:].reshape(-1))
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        losses.append(loss.item())
    return torch.tensor(losses)


def hf_config(vocab_size, **fields):
    # An eos of its own, since the default is outside this vocabulary.
    return GPT2Config(vocab_size=vocab_size, n_positions=CONTEXT, initializer_range=0.3, bos_token_id=264,
                      eos_token_id=264, **SIZES, **fields)


def transformers_models(directory, expected):
    bpe = byte_bpe()
    vocab_size = bpe.get_vocab_size() + PADDING
    model = GPT2LMHeadModel(hf_config(vocab_size))
    model.save_pretrained(directory / "hf")
    end = "<|endoftext|>"
    PreTrainedTokenizerFast(tokenizer_object=bpe, eos_token=end, bos_token=end).save_pretrained(directory / "hf")
    expected["hf"] = logits_of(model, vocab_size)
    expected["hf.losses"] = losses_of(model, vocab_size)

    varied = hf_config(vocab_size, activation_function="gelu", n_inner=20, layer_norm_epsilon=1e-3,
                       tie_word_embeddings=False)
    GPT2LMHeadModel(varied).half().save_pretrained(directory / "hf_varied", max_shard_size="6KB")
    saved = json.loads(bpe.to_str())
    (directory / "hf_varied/vocab.json").write_text(json.dumps({**saved["model"]["vocab"], end: 264}, ensure_ascii=False))
    merges = [" ".join(pair) if isinstance(pair, list) else pair for pair in saved["model"]["merges"]]
    (directory / "hf_varied/merges.txt").write_text("\n".join(["#version: 0.2", *merges]) + "\n")
    model = GPT2LMHeadModel.from_pretrained(directory / "hf_varied", dtype=torch.float32)
    expected["hf_varied"] = logits_of(model, vocab_size)
    expected["hf_varied.losses"] = losses_of(model, vocab_size)

    headless = GPT2Model(hf_config(vocab_size)).bfloat16()
    state = headless.state_dict()
    for layer in range(SIZES["n_layer"]):
        state[f"h.{layer}.attn.bias"] = torch.ones(CONTEXT, CONTEXT, dtype=torch.bool).tril()[None, None]
        state[f"h.{layer}.attn.masked_bias"] = torch.tensor(-1e4)
    place = directory / "hf_bin"
    headless.config.save_pretrained(place)
    torch.save(state, place / "pytorch_model.bin")
    model = GPT2LMHeadModel(hf_config(vocab_size))
    model.transformer.load_state_dict({name: state[name].float() for name in model.transformer.state_dict()})
    model.tie_weights()
    expected["hf_bin"] = logits_of(model, vocab_size)


def karpathy_models(directory, expected):
    rows = len(CHARACTERS) + PADDING
    for name, bias in [("nanogpt", True), ("nanogpt_no_bias", False)]:
        model = Gpt(rows, tied=True, bias=bias, gelu=F.gelu, buffers=False)
        expected[name] = logits_of(model, rows)
        args = dict(**SIZES, block_size=CONTEXT, bias=bias, vocab_size=rows, dropout=0.1)
        config = dict(out_dir="out", dataset="to_be", batch_size=12, learning_rate=1e-3, compile=not bias, wandb_log=False)
        state = model.state_dict()
        optimizer = torch.optim.AdamW(model.transformer.ln_f.parameters())
        if bias:
            # A step, so that there is a state to save.
            model(tokens_of(CONTEXT, rows, 2)[None]).sum().backward()
            with torch.no_grad():
                kept = {key: value.clone() for key, value in state.items()}
                optimizer.step()
                model.load_state_dict(kept)
        else:
            state = {f"_orig_mod.{key}": value for key, value in state.items()}
        checkpoint = {"model": state, "optimizer": optimizer.state_dict(), "model_args": args, "iter_num": 7,
                      "best_val_loss": torch.tensor(1.5), "config": config}
        (directory / name).mkdir()
        torch.save(checkpoint, directory / name / "ckpt.pt")
    meta = dict(vocab_size=len(CHARACTERS), itos=dict(enumerate(CHARACTERS)),
                stoi={c: index for index, c in enumerate(CHARACTERS)})
    (directory / "nanogpt/meta.pkl").write_bytes(pickle.dumps(meta))

    model = Gpt(rows, tied=False, bias=True, gelu=tanh_gelu, buffers=True)
    expected["mingpt"] = logits_of(model, rows)
    (directory / "mingpt").mkdir()
    torch.save(model.state_dict(), directory / "mingpt/model.pt")
    config = {"system": {"seed": 3407}, "model": {"model_type": None, "n_head": SIZES["n_head"], "resid_pdrop": 0.1}}
    (directory / "mingpt/config.json").write_text(json.dumps(config))


def main():
    torch.manual_seed(1)
    target = Path(sys.argv[1]) if len(sys.argv) > 1 else Path(__file__).parent / "golden" / "import"
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as place:
        directory, expected = Path(place) / "import", {}
        directory.mkdir()
        transformers_models(directory, expected)
        karpathy_models(directory, expected)
        versions = {"python": sys.version.split()[0], "torch": torch.__version__, "transformers": transformers.__version__}
        safetensors.torch.save_file(expected, directory / "expected.safetensors", versions)
        for path in sorted(directory.rglob("*")):
            if path.is_file():
                copy = target / path.relative_to(directory)
                copy.parent.mkdir(parents=True, exist_ok=True)
                copy.write_bytes(path.read_bytes())
                print(f"{copy}: {copy.stat().st_size} bytes")


if __name__ == "__main__":
    main()
