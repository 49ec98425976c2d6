"""Write the golden files of GPT-2s that differ from the published one, as other programs save them.

    python variations.py [DIRECTORY]      # golden/ next to this script by default

Each file has what gpt2_tiny.safetensors has (golden.py), for a model with another width of the MLP, GELU with erf, another
epsilon of LayerNorm, or a head of its own. transformers must compute the same logits.

The initial weights of the published GPT-2 would hide some of this: GELU's two forms differ by 5e-4 where its argument is
about 2.7, and by nothing where it is small. So `scale` enlarges the weights of the blocks until that argument is about 1.
Epsilon is visible where the variance of the residual stream is small, behind the embeddings, which are not enlarged.
"""

import sys
from dataclasses import replace
from pathlib import Path

import torch

from golden import TINY, Config, gpt2, initial_params, leaves, tiny_batch, write_tiny

SMALL = replace(TINY, n_blocks=1)
VARIATIONS = {
    # Narrower than qkv.
    "inner": replace(SMALL, n_inner=7, layer_norm_eps=1e-12),
    "erf": replace(SMALL, n_inner=43, activation="gelu", scale=16.0),
    "all": replace(TINY, n_inner=29, activation="gelu", layer_norm_eps=1e-6, tied=False, scale=16.0),
}


def check_visible(name: str, config: Config) -> None:
    """Check that the logits show each variation by far more than the tolerance of folio's tests, 2e-5 of their norm."""
    tokens, _ = tiny_batch()
    logits = gpt2(leaves(initial_params(config), torch.float64), tokens, config)
    others = {
        "activation": replace(config, activation="gelu_new"),
        "layer_norm_eps": replace(config, layer_norm_eps=1e-5),
    }
    for field, other in others.items():
        if other != config:
            difference = gpt2(leaves(initial_params(other), torch.float64), tokens, other) - logits
            relative = (difference.norm(dim=-1) / logits.norm(dim=-1)).max().item()
            print(f"{name}: {field} moves the logits by up to {relative:.1e} of their norm")
            assert relative > 1e-4, f"{name}: {field} is hardly visible"


def main() -> int:
    directory = Path(sys.argv[1]) if len(sys.argv) > 1 else Path(__file__).parent / "golden"
    torch.set_num_threads(1)
    torch.use_deterministic_algorithms(True)
    for name, config in VARIATIONS.items():
        check_visible(name, config)
        write_tiny(directory / f"gpt2_{name}.safetensors", config)
    return 0


if __name__ == "__main__":
    sys.exit(main())
