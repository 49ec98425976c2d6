"""Write the golden file of distillation: golden/gpt2_distill.safetensors.

    python distill.py [FILE]

The tiny model of golden.py, with a mixture of distributions and smoothed targets to learn. The distributions are multiples of 1/1024, so
that they are exact in f16, and each sums to 1.

Sources:
- Hinton et al. 2015, "Distilling the Knowledge in a Neural Network", arXiv 1503.02531, at temperature 1;
- torch.nn.CrossEntropyLoss with class probabilities as targets.
"""

import sys
from pathlib import Path

import numpy as np
import safetensors.torch
import torch
import torch.nn.functional as F

from golden import (
    TINY,
    TINY_RECIPE,
    Params,
    detached,
    fingerprint,
    gpt2,
    hash32,
    initial_params,
    leaves,
    mean_cross_entropy,
    settings,
    sorted_header,
    tiny_batch,
    versions,
    write_whole,
)

WEIGHT, SMOOTHING = 0.7, 0.1
UNITS = 1024


def distributions() -> np.ndarray:
    """(B, T, V) in float64: each row divides UNITS parts at random."""
    rows, vocab = 3 * 7, TINY.vocab_size
    cuts = hash32(np.arange(3000, 3000 + rows * (vocab - 1), dtype=np.uint32)) % (UNITS + 1)
    cuts = np.sort(cuts.astype(np.int64).reshape(rows, vocab - 1), axis=1)
    ends = np.concatenate([np.zeros((rows, 1), np.int64), cuts, np.full((rows, 1), UNITS)], axis=1)
    return (np.diff(ends, axis=1) / UNITS).reshape(3, 7, vocab)


def run(dtype: torch.dtype) -> Params:
    """The cross-entropy of the text, and the gradients of that of the mixture."""
    params = leaves(initial_params(TINY), dtype)
    tokens, targets = tiny_batch()
    logits = gpt2(params, tokens, TINY)
    one_hot = F.one_hot(targets, TINY.vocab_size).to(dtype)
    smoothed = (1 - SMOOTHING) * one_hot + SMOOTHING / TINY.vocab_size
    mixture = (1 - WEIGHT) * smoothed + WEIGHT * torch.tensor(distributions(), dtype=dtype)
    F.cross_entropy(logits.flatten(0, 1), mixture.flatten(0, 1)).backward()
    gradients = {f"grad.{name}": param.grad for name, param in params.items()}
    return detached({"loss": mean_cross_entropy(logits, targets).reshape(1)} | gradients)


def main() -> int:
    path = Path(sys.argv[1]) if len(sys.argv) > 1 else Path(__file__).parent / "golden" / "gpt2_distill.safetensors"
    torch.set_num_threads(1)
    torch.use_deterministic_algorithms(True)
    results = run(torch.float64)
    halves = distributions().astype(np.float16)
    assert (halves.astype(np.float64) == distributions()).all(), "not exact in f16"
    tokens, targets = tiny_batch()
    bits = torch.from_numpy(halves.view(np.uint16).astype(np.int32))
    tensors = {"tokens": tokens.int(), "targets": targets.int(), "distributions": bits}
    tensors |= {name: value.float() for name, value in results.items()}
    facts = versions() | settings(TINY, TINY_RECIPE) | {"distill_weight": WEIGHT, "label_smoothing": SMOOTHING}
    facts |= {"fingerprint": fingerprint(initial_params(TINY))}
    write_whole(path, sorted_header(safetensors.torch.save(tensors, {key: str(value) for key, value in facts.items()})))
    print(f"loss {results['loss'][0]:.6f}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
