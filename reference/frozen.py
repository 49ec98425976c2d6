"""Write the golden file of fine-tuning with frozen parameters: golden/gpt2_frozen.safetensors.

    python frozen.py [FILE]

The tiny model of golden.py is trained for ten steps, once for each part that `--freeze` names, with `requires_grad=False` for
the frozen parameters. The head is the token embedding, so freezing the embeddings freezes the head.
"""

import sys
from pathlib import Path

import safetensors.torch
import torch

from golden import (
    TINY,
    TINY_FINAL_LR,
    TINY_LR,
    TINY_RECIPE,
    fingerprint,
    initial_params,
    settings,
    sorted_header,
    tiny_batch,
    tiny_lr,
    train,
    versions,
    write_whole,
)

PARTS = {
    "embeddings": ("wte.", "wpe."),
    "blocks:1": ("h.0.",),
    "embeddings,blocks:1": ("wte.", "wpe.", "h.0."),
    "embeddings,blocks:2": ("wte.", "wpe.", "h.0.", "h.1."),
}


def main() -> int:
    path = Path(sys.argv[1]) if len(sys.argv) > 1 else Path(__file__).parent / "golden" / "gpt2_frozen.safetensors"
    torch.set_num_threads(1)
    torch.use_deterministic_algorithms(True)
    tokens, targets = tiny_batch()
    before = initial_params(TINY)
    tensors = {"tokens": tokens.int(), "targets": targets.int()}
    for parts, prefixes in PARTS.items():
        run = train(
            TINY, TINY_RECIPE, tiny_lr, lambda _: (tokens, targets), torch.float32, lambda name: name.startswith(prefixes)
        )
        n_clipped = int((run.grad_norms > TINY_RECIPE.clip).sum())
        print(f"{parts}: loss {run.losses[0]:.6f} to {run.losses[-1]:.6f}, {n_clipped} of 10 steps clipped")
        for name, value in run.params.items():
            if name.startswith(prefixes):
                assert torch.equal(value, torch.tensor(before[name])), f"{parts}: {name} has changed"
            else:
                tensors[f"{parts}.after.{name}"] = value
        tensors |= {f"{parts}.losses": run.losses, f"{parts}.grad_norms": run.grad_norms}
    facts = versions() | settings(TINY, TINY_RECIPE) | {"lr": TINY_LR, "final_lr": TINY_FINAL_LR}
    facts |= {"fingerprint": fingerprint(before)}
    metadata = {key: str(value) for key, value in facts.items()}
    write_whole(path, sorted_header(safetensors.torch.save(tensors, metadata)))
    return 0


if __name__ == "__main__":
    sys.exit(main())
