"""Write the golden files that folio's tests compare with, or check a folio checkpoint.

    python golden.py --corpus tiny_shakespeare.txt            # writes golden/
    python golden.py --check-checkpoint DIR --logits FILE     # reads, compares, writes nothing

The golden files contain PyTorch's results for a small GPT-2: logits, gradients, parameters after a few steps of AdamW,
and the losses of a short training run. Initial weights are not stored. A formula computes them, with the same bits in
numpy and in Rust (see `initial_params`).

Legend: B batch, T time, C channels, H heads, D = C / H head size, V vocabulary, L layers.

Sources:
- the model: Radford et al. 2019, "Language Models are Unsupervised Multitask Learners"; the block follows
  Vaswani et al. 2017, "Attention Is All You Need", with the LayerNorm moved in front of each branch;
- GELU: Hendrycks and Gimpel 2016, "Gaussian Error Linear Units", the form with tanh;
- AdamW: Loshchilov and Hutter 2019, "Decoupled Weight Decay Regularization".
"""

import argparse
import hashlib
import json
import math
import os
import sys
from collections.abc import Callable
from dataclasses import asdict, dataclass, fields
from pathlib import Path

import numpy as np
import safetensors
import safetensors.torch
import torch
import torch.nn.functional as F
import transformers

ADAM_EPS = 1e-8
Params = dict[str, torch.Tensor]


@dataclass(frozen=True)
class Config:
    """The size of a model, and how it differs from GPT-2 (variations.py)."""

    vocab_size: int
    block_size: int
    n_emb: int
    n_heads: int
    n_blocks: int
    n_inner: int | None = None  # the width of the MLP; None: 4C
    activation: str = "gelu_new"  # or "gelu": with erf instead of tanh
    layer_norm_eps: float = 1e-5
    tied: bool = True  # whether the head is the token embedding
    scale: float = 1.0  # of the initial weights, except embeddings and LayerNorm weights; a power of 2

    @property
    def inner(self) -> int:
        return 4 * self.n_emb if self.n_inner is None else self.n_inner


@dataclass(frozen=True)
class Recipe:
    """The training settings, except the learning rate, which is a function of the step."""

    steps: int
    betas: tuple[float, float]
    weight_decay: float
    clip: float


@dataclass
class Run:
    """The results of a training run."""

    losses: torch.Tensor  # (steps): the loss before each step
    grad_norms: torch.Tensor  # (steps): the norm of the whole gradient before clipping
    params: Params  # the parameters after the last step


def hash32(x: np.ndarray) -> np.ndarray:
    """A bijection of uint32 values: two multiplications modulo 2^32 between three xor-shifts."""
    x = np.array(x, dtype=np.uint32)
    x ^= x >> np.uint32(16)
    x *= np.uint32(0x7FEB352D)
    x ^= x >> np.uint32(15)
    x *= np.uint32(0x846CA68B)
    x ^= x >> np.uint32(16)
    return x


def param_shapes(config: Config) -> dict[str, tuple[int, ...]]:
    """Name -> shape, in folio's order of parameters. A linear weight is (in, out)."""
    C, inner = config.n_emb, config.inner
    shapes = {"wte.weight": (config.vocab_size, C), "wpe.weight": (config.block_size, C)}
    for block_idx in range(config.n_blocks):
        block = {
            "ln_1.weight": (C,),
            "ln_1.bias": (C,),
            "attn.c_attn.weight": (C, 3 * C),
            "attn.c_attn.bias": (3 * C,),
            "attn.c_proj.weight": (C, C),
            "attn.c_proj.bias": (C,),
            "ln_2.weight": (C,),
            "ln_2.bias": (C,),
            "mlp.c_fc.weight": (C, inner),
            "mlp.c_fc.bias": (inner,),
            "mlp.c_proj.weight": (inner, C),
            "mlp.c_proj.bias": (C,),
        }
        shapes |= {f"h.{block_idx}.{name}": shape for name, shape in block.items()}
    shapes |= {"ln_f.weight": (C,), "ln_f.bias": (C,)}
    return shapes if config.tied else shapes | {"lm_head.weight": (config.vocab_size, C)}


def positions(param_idx: int, shape: tuple[int, ...]) -> np.ndarray:
    """A distinct uint32 for each element of each parameter: (param_idx << 20) + the row-major index."""
    assert math.prod(shape) <= 1 << 20 and param_idx < 1 << 12, f"parameter {param_idx} {shape} is too large"
    return np.uint32(param_idx << 20) + np.arange(math.prod(shape), dtype=np.uint32).reshape(shape)


def initial_params(config: Config) -> dict[str, np.ndarray]:
    """The parameters before the first step, float32, by formula.

    centered = (hash32(position) >> 8) * 2^-24 - 1/2, exact in float32 and uniform in [-1/2, 1/2).
    LayerNorm weights are 1 + centered * 0.2, all others are centered * scale. The standard deviation of `centered`
    is sqrt(1/12), so this scale makes it 0.02. Unlike in real training, biases are not zero: a zero bias
    would hide the mistake of not adding it.
    """
    scale = np.float32(0.0692820323)
    params = {}
    for param_idx, (name, shape) in enumerate(param_shapes(config).items()):
        bits = hash32(positions(param_idx, shape)) >> np.uint32(8)
        centered = bits.astype(np.float32) * np.float32(2**-24) - np.float32(0.5)
        is_gain = "ln_" in name and name.endswith(".weight")
        params[name] = np.float32(1) + centered * np.float32(0.2) if is_gain else centered * scale
        if not is_gain and name not in ("wte.weight", "wpe.weight"):
            params[name] = params[name] * np.float32(config.scale)  # exact
        assert params[name].dtype == np.float32
    return params


def fingerprint(params: dict[str, np.ndarray]) -> int:
    """sum of hash32(bits ^ position) modulo 2^32: equal fingerprints mean the same bits in the same places."""
    total = 0
    for param_idx, value in enumerate(params.values()):
        mixed = hash32(value.view(np.uint32) ^ positions(param_idx, value.shape))
        total += int(mixed.sum(dtype=np.uint64))
    return total % (1 << 32)


def leaves(params: dict[str, np.ndarray], dtype: torch.dtype) -> Params:
    """The same parameters as torch tensors that require gradients."""
    return {name: torch.tensor(value, dtype=dtype, requires_grad=True) for name, value in params.items()}


def gpt2(params: Params, tokens: torch.Tensor, config: Config) -> torch.Tensor:
    """Tokens (B, T) to logits (B, T, V); the logits at t depend on the tokens up to t."""
    x = params["wte.weight"][tokens] + params["wpe.weight"][: tokens.shape[1]]
    for block_idx in range(config.n_blocks):
        block = f"h.{block_idx}"
        normed = layer_norm(params, f"{block}.ln_1", x, config.layer_norm_eps)
        x = x + attention(params, f"{block}.attn", normed, config.n_heads)
        normed = layer_norm(params, f"{block}.ln_2", x, config.layer_norm_eps)
        x = x + mlp(params, f"{block}.mlp", normed, config.activation)
    head = params["wte.weight" if config.tied else "lm_head.weight"]
    return layer_norm(params, "ln_f", x, config.layer_norm_eps) @ head.T


def attention(params: Params, name: str, x: torch.Tensor, n_heads: int) -> torch.Tensor:
    """softmax(q k^T / sqrt(D), causal) v, for each head; (B, T, C) to (B, T, C)."""
    B, T, C = x.shape
    D = C // n_heads
    qkv = linear(params, f"{name}.c_attn", x).view(B, T, 3, n_heads, D)
    q, k, v = qkv.permute(2, 0, 3, 1, 4)  # each (B, H, T, D)
    scores = q @ k.mT / math.sqrt(D)  # (B, H, T, T)
    is_future = torch.ones(T, T, dtype=torch.bool).triu(diagonal=1)
    weights = scores.masked_fill(is_future, -math.inf).softmax(dim=-1)
    heads = weights @ v  # (B, H, T, D)
    return linear(params, f"{name}.c_proj", heads.transpose(1, 2).reshape(B, T, C))


def mlp(params: Params, name: str, x: torch.Tensor, activation: str) -> torch.Tensor:
    """Widen to 4C (or `n_inner`), GELU, back to C."""
    approximate = "tanh" if activation == "gelu_new" else "none"
    return linear(params, f"{name}.c_proj", F.gelu(linear(params, f"{name}.c_fc", x), approximate=approximate))


def layer_norm(params: Params, name: str, x: torch.Tensor, eps: float) -> torch.Tensor:
    """(x - mean) / sqrt(variance + eps) * weight + bias, over C."""
    return F.layer_norm(x, x.shape[-1:], params[f"{name}.weight"], params[f"{name}.bias"], eps)


def linear(params: Params, name: str, x: torch.Tensor) -> torch.Tensor:
    """x W + b, with W (in, out)."""
    return x @ params[f"{name}.weight"] + params[f"{name}.bias"]


def mean_cross_entropy(logits: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    """-log p(target), averaged over all B * T tokens."""
    return F.cross_entropy(logits.flatten(0, 1), targets.flatten())


def train(
    config: Config,
    recipe: Recipe,
    lr_of_step: Callable[[int], float],
    batch_of_step: Callable[[int], tuple[torch.Tensor, torch.Tensor]],
    dtype: torch.dtype,
    is_frozen: Callable[[str], bool] = lambda name: False,
) -> Run:
    """Train from the initial parameters, but for the frozen ones. Weight decay applies to matrices, not to vectors."""
    params = leaves(initial_params(config), dtype)
    for name, param in params.items():
        param.requires_grad_(not is_frozen(name))
    trained = [p for p in params.values() if p.requires_grad]
    matrices = [p for p in trained if p.ndim >= 2]
    vectors = [p for p in trained if p.ndim < 2]
    optimizer = torch.optim.AdamW(
        [{"params": matrices, "weight_decay": recipe.weight_decay}, {"params": vectors, "weight_decay": 0.0}],
        betas=recipe.betas,
        eps=ADAM_EPS,
    )
    losses, grad_norms = [], []
    for step in range(recipe.steps):
        tokens, targets = batch_of_step(step)
        for group in optimizer.param_groups:
            group["lr"] = lr_of_step(step)
        optimizer.zero_grad()
        loss = mean_cross_entropy(gpt2(params, tokens, config), targets)
        loss.backward()
        # Multiplies the gradient by min(1, clip / (norm + 1e-6)).
        grad_norms.append(torch.nn.utils.clip_grad_norm_(trained, recipe.clip))
        optimizer.step()
        losses.append(loss.detach())
    return Run(torch.stack(losses), torch.stack(grad_norms), detached(params))


def detached(tensors: Params) -> Params:
    """The values without gradients, contiguous, as safetensors requires."""
    return {name: tensor.detach().contiguous() for name, tensor in tensors.items()}


TINY = Config(vocab_size=11, block_size=8, n_emb=12, n_heads=3, n_blocks=2)
TINY_RECIPE = Recipe(steps=10, betas=(0.9, 0.95), weight_decay=0.1, clip=0.5)
TINY_LR, TINY_FINAL_LR = 1e-2, 1e-4


def tiny_lr(step: int) -> float:
    """Cosine decay from TINY_LR towards TINY_FINAL_LR."""
    share = (1 + math.cos(math.pi * step / TINY_RECIPE.steps)) / 2
    return TINY_FINAL_LR + (TINY_LR - TINY_FINAL_LR) * share


def tiny_batch() -> tuple[torch.Tensor, torch.Tensor]:
    """Tokens and targets, (3, 7) each. T is below block_size, so that row 7 of wpe has no gradient."""
    index = np.arange(3 * 7, dtype=np.uint32).reshape(3, 7)
    tokens, targets = (hash32(np.uint32(base) + index) % TINY.vocab_size for base in (1000, 2000))
    return torch.from_numpy(tokens.astype(np.int64)), torch.from_numpy(targets.astype(np.int64))


def tiny_tensors(config: Config, dtype: torch.dtype) -> Params:
    """All results of the tiny model, by the name under which they are stored."""
    tokens, targets = tiny_batch()
    params = leaves(initial_params(config), dtype)
    logits = gpt2(params, tokens, config)
    loss = mean_cross_entropy(logits, targets)
    loss.backward()
    run = train(config, TINY_RECIPE, tiny_lr, lambda _: (tokens, targets), dtype)
    return detached(
        {"logits": logits, "loss": loss.reshape(1)}
        | {f"grad.{name}": param.grad for name, param in params.items()}
        | {"losses": run.losses, "grad_norms": run.grad_norms}
        | {f"after.{name}": value for name, value in run.params.items()}
    )


def deviations(single: Params, double: Params) -> dict[str, str]:
    """The largest |float32 - float64| of each kind of tensor.

    The bias of the keys is listed separately. It adds the same amount to all scores of a query, which cancels in the
    softmax. Its true gradient is zero, and its float32 gradient is rounding noise. Adam divides a gradient by its own
    size, so it turns this noise into steps. Comparisons of `after` must exclude these values.
    """
    C = TINY.n_emb
    largest: dict[str, float] = {}
    for name, value in single.items():
        kind = name.split(".")[0]
        difference = (value.double() - double[name]).abs()
        if name.endswith("attn.c_attn.bias"):
            key_kind = f"{kind}.key_bias"
            largest[key_kind] = max(largest.get(key_kind, 0.0), difference[C : 2 * C].max().item())
            difference[C : 2 * C] = 0
        largest[kind] = max(largest.get(kind, 0.0), difference.max().item())
    return {f"deviation.{kind}": f"{value:.2e}" for kind, value in largest.items()}


def write_tiny(path: Path, config: Config = TINY) -> None:
    """Run the tiny model in both precisions, check it against transformers, and store the float32 results."""
    tokens, targets = tiny_batch()
    single, double = tiny_tensors(config, torch.float32), tiny_tensors(config, torch.float64)
    check_against_transformers(config, initial_params(config), tokens, single["logits"])

    n_clipped = int((single["grad_norms"] > TINY_RECIPE.clip).sum())
    assert 0 < n_clipped, f"no step is clipped: norms {single['grad_norms'].tolist()}"
    assert single["loss"][0] == single["losses"][0], "the loss of the first step must equal the stored loss"

    facts = versions() | settings(config, TINY_RECIPE) | {"lr": TINY_LR, "final_lr": TINY_FINAL_LR}
    facts |= {"fingerprint": fingerprint(initial_params(config))}
    metadata = {key: str(value) for key, value in facts.items()} | deviations(single, double)
    tensors = {"tokens": tokens.int(), "targets": targets.int()} | single
    write_whole(path, sorted_header(safetensors.torch.save(tensors, metadata)))

    print(f"{path.stem}: loss {single['losses'][0]:.6f} to {single['losses'][-1]:.6f}, {n_clipped} of 10 steps clipped")
    print("\n".join(f"  {key} {value}" for key, value in metadata.items() if key.startswith("deviation")))


def sorted_header(file: bytes) -> bytes:
    """The same safetensors file with its metadata sorted by key, so that equal runs write equal bytes.

    The format is the length of the header (u64, little-endian), the header (JSON, padded with spaces to a
    multiple of 8), the data. The order in which the library writes the metadata varies.
    """
    n_header = int.from_bytes(file[:8], "little")
    header = json.loads(file[8 : 8 + n_header])
    header["__metadata__"] = dict(sorted(header["__metadata__"].items()))
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text + file[8 + n_header :]


SHAKESPEARE = Config(vocab_size=65, block_size=64, n_emb=64, n_heads=4, n_blocks=2)
SHAKESPEARE_RECIPE = Recipe(steps=200, betas=(0.9, 0.99), weight_decay=0.1, clip=1.0)
SHAKESPEARE_LR, WARMUP_STEPS, BATCH_SIZE = 1e-3, 10, 8
CORPUS_SHA256 = "86c4e6aa9db7c042ec79f339dcb96d42b0075e16b8fc2e86bf0ca57e2dc565ed"


def shakespeare_lr(step: int) -> float:
    """Constant after a linear warm-up."""
    return SHAKESPEARE_LR * min(1.0, (step + 1) / WARMUP_STEPS)


def write_shakespeare(directory: Path, text: str) -> None:
    """Train 200 steps on characters, in both precisions, and store the float32 loss of each step."""
    token_of = {char: token for token, char in enumerate(sorted(set(text)))}
    n_train = int(0.9 * len(text))
    train_tokens = torch.tensor([token_of[char] for char in text[:n_train]])

    def batch_of_step(step: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Rows that start at hashed positions; the targets are the same rows shifted by one character."""
        T = SHAKESPEARE.block_size
        rows = np.arange(BATCH_SIZE, dtype=np.uint32) + np.uint32(3_000_000 + step * BATCH_SIZE)
        starts = (hash32(rows) % np.uint32(n_train - T - 1)).tolist()
        windows = torch.stack([train_tokens[start : start + T + 1] for start in starts])  # (B, T + 1)
        return windows[:, :-1], windows[:, 1:]

    runs = [
        train(SHAKESPEARE, SHAKESPEARE_RECIPE, shakespeare_lr, batch_of_step, dtype)
        for dtype in (torch.float32, torch.float64)
    ]
    losses, exact_losses = (run.losses.numpy() for run in runs)
    golden = versions() | settings(SHAKESPEARE, SHAKESPEARE_RECIPE)
    golden |= {"lr": SHAKESPEARE_LR, "warmup_steps": WARMUP_STEPS, "batch_size": BATCH_SIZE, "n_train": n_train}
    golden |= {"corpus_sha256": CORPUS_SHA256}
    golden |= {"fingerprint": fingerprint(initial_params(SHAKESPEARE))}
    golden |= {"deviation": float(f"{np.abs(losses - exact_losses).max():.2e}")}
    # str() of a float32 is the shortest decimal that reads back as the same float32.
    golden |= {"losses": [float(str(loss)) for loss in losses]}
    write_whole(directory / "shakespeare_200.json", (json.dumps(golden, indent=1) + "\n").encode())
    print(f"shakespeare: loss {losses[0]:.6f} to {losses[-1]:.6f}, deviation {golden['deviation']:.2e}")


def check_against_transformers(
    config: Config, params: dict[str, np.ndarray], tokens: torch.Tensor, logits: torch.Tensor
) -> None:
    """Check that the GPT-2 of transformers, with the same weights, computes the same logits for the tiny model."""
    model = transformers.GPT2LMHeadModel(
        transformers.GPT2Config(
            vocab_size=config.vocab_size,
            n_positions=config.block_size,
            n_embd=config.n_emb,
            n_head=config.n_heads,
            n_layer=config.n_blocks,
            n_inner=config.n_inner,
            activation_function=config.activation,
            layer_norm_epsilon=config.layer_norm_eps,
            resid_pdrop=0.0,
            embd_pdrop=0.0,
            attn_pdrop=0.0,
            tie_word_embeddings=config.tied,
            bos_token_id=None,
            eos_token_id=None,
        )
    )
    weights = {name: torch.tensor(value) for name, value in params.items()}
    if not config.tied:
        model.lm_head.load_state_dict({"weight": weights.pop("lm_head.weight")})
    model.transformer.load_state_dict(weights)
    with torch.no_grad():
        theirs = model.eval()(tokens).logits
    torch.testing.assert_close(logits, theirs, rtol=1e-5, atol=1e-6)
    print(f"transformers {transformers.__version__} agrees, largest difference {(logits - theirs).abs().max():.1e}")


def check_checkpoint(directory: Path, logits_file: Path) -> int:
    """Compare folio's logits with those of transformers for folio's checkpoint; return the exit code."""
    given = json.loads(logits_file.read_text())
    ours = torch.tensor(given["logits"], dtype=torch.float32)
    transformers.utils.logging.disable_progress_bar()
    model, report = transformers.GPT2LMHeadModel.from_pretrained(
        directory, dtype=torch.float32, local_files_only=True, output_loading_info=True
    )
    wrong = {key: sorted(names) for key, names in report.items() if key.endswith("_keys") and names}
    if wrong:
        print(f"{directory}: parameters do not match a GPT-2 of this size: {wrong}", file=sys.stderr)
        return 1
    with torch.no_grad():
        theirs = model.eval()(torch.tensor(given["tokens"])).logits
    if ours.shape != theirs.shape:
        print(f"{logits_file}: logits {tuple(ours.shape)}, expected {tuple(theirs.shape)}", file=sys.stderr)
        return 1
    difference, largest = (ours - theirs).abs().max().item(), theirs.abs().max().item()
    print(f"largest difference {difference:.3e}, largest logit {largest:.3e}, transformers {transformers.__version__}")
    # Written so that a NaN fails.
    return 0 if difference <= 1e-4 * largest else 1


def versions() -> dict[str, str]:
    """The versions that made a golden file."""
    modules = (np, safetensors, torch, transformers)
    return {module.__name__: str(module.__version__) for module in modules}


def settings(config: Config, recipe: Recipe) -> dict[str, int | float]:
    """Sizes, variations and hyperparameters as one flat dictionary."""
    default = {field.name: field.default for field in fields(config)}
    sizes = {key: value for key, value in asdict(config).items() if value != default[key]}
    values = sizes | asdict(recipe)
    beta1, beta2 = values.pop("betas")
    return values | {"beta1": beta1, "beta2": beta2, "eps": ADAM_EPS, "layer_norm_eps": config.layer_norm_eps}


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
    parser = argparse.ArgumentParser(description="Write folio's golden files, or check a folio checkpoint.")
    task = parser.add_mutually_exclusive_group(required=True)
    task.add_argument("--corpus", type=Path, metavar="PATH", help="tiny Shakespeare: write the golden files")
    task.add_argument("--check-checkpoint", type=Path, metavar="DIR", help="a folio checkpoint to compare with")
    parser.add_argument("--logits", type=Path, metavar="FILE", help='folio\'s {"tokens": ..., "logits": ...}')
    parser.add_argument("--out", type=Path, metavar="DIR", default=Path(__file__).parent / "golden",
                        help="directory for the golden files (default: golden/ next to this script)")
    args = parser.parse_args()
    if (args.logits is None) != (args.check_checkpoint is None):
        parser.error("--check-checkpoint DIR and --logits FILE go together")
    for path in (args.corpus, args.logits):
        if path and not path.is_file():
            parser.error(f"{path} does not exist")
    if args.check_checkpoint and not (args.check_checkpoint / "model.safetensors").is_file():
        parser.error(f"{args.check_checkpoint} contains no model.safetensors")

    # One thread and deterministic algorithms, so that the order of summation is the same in every run.
    torch.set_num_threads(1)
    torch.use_deterministic_algorithms(True)
    if args.check_checkpoint:
        return check_checkpoint(args.check_checkpoint, args.logits)
    content = args.corpus.read_bytes()
    if hashlib.sha256(content).hexdigest() != CORPUS_SHA256:
        parser.error(f"{args.corpus} differs from tiny Shakespeare; `folio corpus` prints the right text")
    write_tiny(args.out / "gpt2_tiny.safetensors")
    write_shakespeare(args.out, content.decode())
    return 0


if __name__ == "__main__":
    sys.exit(main())
