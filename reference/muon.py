"""Write the golden file of Muon: golden/gpt2_muon.safetensors.

    python muon.py [FILE]

The tiny model of golden.py is trained for ten steps, with Muon for the blocks' matrices and AdamW for all other parameters.

Sources:
- Muon: Jordan et al. 2024, "Muon: An optimizer for hidden layers in neural networks";
- its scale and weight decay: Liu et al. 2025, "Muon is Scalable for LLM Training", arXiv 2502.16982, section 2.2.
"""

import math
import sys
from pathlib import Path

import safetensors.torch
import torch

from golden import (
    ADAM_EPS,
    TINY,
    TINY_FINAL_LR,
    TINY_LR,
    TINY_RECIPE,
    Params,
    detached,
    fingerprint,
    gpt2,
    initial_params,
    leaves,
    mean_cross_entropy,
    settings,
    sorted_header,
    tiny_batch,
    tiny_lr,
    versions,
    write_whole,
)

MOMENTUM = 0.95
MUON_LR = 2 * TINY_LR  # Muon's peak; the schedule multiplies both
COEFFICIENTS = (3.4445, -4.7750, 2.0315)
ITERATIONS = 5


def orthogonalized(matrix: torch.Tensor) -> torch.Tensor:
    """U S V^T -> about U V^T, by Newton-Schulz iterations."""
    a, b, c = COEFFICIENTS
    x = matrix.T if matrix.shape[0] > matrix.shape[1] else matrix
    x = x / x.norm()
    for _ in range(ITERATIONS):
        gram = x @ x.T
        x = a * x + (b * gram + c * gram @ gram) @ x
    return x.T if matrix.shape[0] > matrix.shape[1] else x


def muon_step(param: torch.Tensor, grad: torch.Tensor, average: torch.Tensor, lr: float, weight_decay: float) -> None:
    """One update of a matrix, in place. `average` is the running mean of its gradients."""
    average.lerp_(grad, 1 - MOMENTUM)
    direction = orthogonalized(grad.lerp(average, MOMENTUM))
    param.mul_(1 - lr * weight_decay)
    param.sub_(direction, alpha=lr * 0.2 * math.sqrt(max(param.shape)))


def is_muon_s(name: str, param: torch.Tensor) -> bool:
    return name.startswith("h.") and param.ndim == 2


def parts(name: str, tensor: torch.Tensor) -> tuple[torch.Tensor, ...]:
    """The matrices that a parameter consists of: c_attn is queries, keys and values side by side."""
    return tensor.chunk(3, dim=1) if name.endswith("c_attn.weight") else (tensor,)


def run(dtype: torch.dtype) -> Params:
    """Losses and gradient norms of ten steps, and the parameters after them."""
    params = leaves(initial_params(TINY), dtype)
    tokens, targets = tiny_batch()
    hidden = {name: param for name, param in params.items() if is_muon_s(name, param)}
    others = [param for name, param in params.items() if name not in hidden]
    averages = {name: torch.zeros_like(param) for name, param in hidden.items()}
    decays = [
        {"params": [p for p in others if p.ndim >= 2], "weight_decay": TINY_RECIPE.weight_decay},
        {"params": [p for p in others if p.ndim < 2], "weight_decay": 0.0},
    ]
    adamw = torch.optim.AdamW(decays, betas=TINY_RECIPE.betas, eps=ADAM_EPS)
    losses, grad_norms = [], []
    for step in range(TINY_RECIPE.steps):
        for param in params.values():
            param.grad = None
        loss = mean_cross_entropy(gpt2(params, tokens, TINY), targets)
        loss.backward()
        grad_norms.append(torch.nn.utils.clip_grad_norm_(params.values(), TINY_RECIPE.clip))
        for group in adamw.param_groups:
            group["lr"] = tiny_lr(step)
        adamw.step()
        lr = tiny_lr(step) * MUON_LR / TINY_LR
        with torch.no_grad():
            for name, param in hidden.items():
                matrices = zip(parts(name, param), parts(name, param.grad), parts(name, averages[name]), strict=True)
                for matrix in matrices:
                    muon_step(*matrix, lr, TINY_RECIPE.weight_decay)
        losses.append(loss.detach())
    after = {f"after.{name}": value for name, value in params.items()}
    return detached({"losses": torch.stack(losses), "grad_norms": torch.stack(grad_norms)} | after)


def check_against_torch() -> None:
    """Check a few updates against torch.optim.Muon, which iterates in bfloat16: its rounding is 1/256."""
    for shape in ((12, 12), (12, 48), (48, 12)):
        torch.manual_seed(1)
        ours, average = torch.randn(shape), torch.zeros(shape)
        theirs = torch.nn.Parameter(ours.clone())
        optimizer = torch.optim.Muon(
            [theirs], lr=0.1, weight_decay=0.1, momentum=MOMENTUM, nesterov=True, adjust_lr_fn="match_rms_adamw"
        )
        before = ours.clone()
        for _ in range(3):
            grad = torch.randn(shape)
            theirs.grad = grad.clone()
            optimizer.step()
            muon_step(ours, grad, average, 0.1, 0.1)
        difference = (ours - theirs.detach()).norm() / (ours - before).norm()
        print(f"torch.optim.Muon, {shape}: updates differ by {difference:.1%}")
        assert difference < 0.05


def kind(name: str) -> str:
    """Whose tensor it is."""
    if name.startswith("after."):
        return "muon" if name.startswith("after.h.") and name.endswith((".c_attn.weight", ".c_proj.weight", ".c_fc.weight")) else "adamw"
    return name


def main() -> int:
    path = Path(sys.argv[1]) if len(sys.argv) > 1 else Path(__file__).parent / "golden" / "gpt2_muon.safetensors"
    torch.set_num_threads(1)
    torch.use_deterministic_algorithms(True)
    check_against_torch()
    single, double = run(torch.float32), run(torch.float64)
    deviations: dict[str, float] = {}
    C = TINY.n_emb
    for name, value in single.items():
        difference = (value.double() - double[name]).abs()
        if name.endswith("attn.c_attn.bias"):
            difference[C : 2 * C] = 0  # the keys' part is rounding noise, see golden.py
        deviations[kind(name)] = max(deviations.get(kind(name), 0.0), difference.max().item())
    n_clipped = int((double["grad_norms"] > TINY_RECIPE.clip).sum())
    assert 0 < n_clipped, "no step is clipped"
    tokens, targets = tiny_batch()
    tensors = {"tokens": tokens.int(), "targets": targets.int()} | {name: value.float() for name, value in double.items()}
    facts = versions() | settings(TINY, TINY_RECIPE) | {"lr": TINY_LR, "final_lr": TINY_FINAL_LR}
    facts |= {"muon_lr": MUON_LR, "muon_momentum": MOMENTUM, "fingerprint": fingerprint(initial_params(TINY))}
    facts |= {f"deviation.{name}": f"{value:.2e}" for name, value in deviations.items()}
    metadata = {key: str(value) for key, value in facts.items()}
    write_whole(path, sorted_header(safetensors.torch.save(tensors, metadata)))
    print(f"loss {double['losses'][0]:.6f} to {double['losses'][-1]:.6f}, {n_clipped} of 10 steps clipped, {deviations}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
