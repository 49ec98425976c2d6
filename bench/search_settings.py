#!/usr/bin/env python3
"""Search for training settings on a GPU, with a PyTorch GPT-2 that trains as `folio train` does.

    folio corpus > /tmp/text.txt
    python bench/search_settings.py /tmp/text.txt runs.jsonl --workers 4 < settings.jsonl

The text is split as by --split contiguous. Each line of the input changes some values of DEFAULT. Each line of the output has the
evaluation losses of a run, nats per token: of the weights (raw) and of four moving averages. It is faster than folio only because
it runs on a GPU: what it finds is confirmed with folio.

    {"name": "teacher", "seed": 1, "save": "/tmp/teacher.pt"}                        a run whose model is kept
    {"name": "student", "teachers": ["/tmp/teacher.pt"], "distill_weight": 0.9}      waits for it, and learns from it
    {"name": "ensemble", "ensemble": ["/tmp/teacher.pt", "/tmp/teacher2.pt"]}        the loss of the mean probability
"""
import argparse, json, math, os, sys, time

import torch
import torch.multiprocessing as mp
from torch import nn
from torch.nn import functional as F

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
DEFAULT = dict(
    name="", seed=0, n_emb=384, n_blocks=6, n_heads=6, block_size=256, batch_size=64, steps=2000, block_offset="random",
    dropout=0.2, weight_decay=0.1, learning_rate=1e-3, final_lr=1e-4, warmup=100, schedule="cosine", wsd_decay=0.2,
    optimizer="adamw", label_smoothing=0.0, input_noise=0.0, eval_every=250, compile=True, teachers=None,
    distill_weight=0.9, save=None, save_average=0.998, ensemble=None,
)
AVERAGES = [0.99, 0.995, 0.998, 0.999]


class Block(nn.Module):
    def __init__(self, c):
        super().__init__()
        e, self.heads = c["n_emb"], c["n_heads"]
        self.ln_1, self.ln_2 = nn.LayerNorm(e), nn.LayerNorm(e)
        self.c_attn, self.attn_proj = nn.Linear(e, 3 * e), nn.Linear(e, e)
        self.c_fc, self.mlp_proj = nn.Linear(e, 4 * e), nn.Linear(4 * e, e)

    def forward(self, x, rate):
        b, t, e = x.shape
        q, k, v = self.c_attn(self.ln_1(x)).view(b, t, 3, self.heads, e // self.heads).permute(2, 0, 3, 1, 4)
        y = F.scaled_dot_product_attention(q, k, v, dropout_p=rate, is_causal=True)
        x = x + F.dropout(self.attn_proj(y.transpose(1, 2).reshape(b, t, e)), rate)
        return x + F.dropout(self.mlp_proj(F.gelu(self.c_fc(self.ln_2(x)), approximate="tanh")), rate)


class Gpt2(nn.Module):
    def __init__(self, c, vocab):
        super().__init__()
        self.wte, self.wpe = nn.Embedding(vocab, c["n_emb"]), nn.Embedding(c["block_size"], c["n_emb"])
        self.blocks = nn.ModuleList(Block(c) for _ in range(c["n_blocks"]))
        self.ln_f = nn.LayerNorm(c["n_emb"])
        for name, p in self.named_parameters():
            if p.dim() > 1:
                residual = name.endswith("proj.weight")
                nn.init.normal_(p, std=0.02 / math.sqrt(2 * c["n_blocks"]) if residual else 0.02)
            elif "ln" not in name:
                nn.init.zeros_(p)

    def forward(self, ids, rate=0.0):
        x = F.dropout(self.wte(ids) + self.wpe.weight[: ids.shape[1]], rate)
        for block in self.blocks:
            x = block(x, rate)
        return F.linear(self.ln_f(x), self.wte.weight)


def objective(model, ids, targets, rate, label_smoothing, teachers, weight):
    logits = model(ids, rate).float().flatten(0, 1)
    loss = F.cross_entropy(logits, targets.flatten(), label_smoothing=label_smoothing)
    if teachers is None:
        return loss
    return (1 - weight) * loss - weight * (teachers.flatten(0, 1) * F.log_softmax(logits, -1)).sum(-1).mean()


@torch.no_grad()
def newton_schulz(g):
    """Jordan et al. 2024, "Muon: An optimizer for hidden layers in neural networks"."""
    x = g.bfloat16() / (g.norm(dim=(-2, -1), keepdim=True) + 1e-7).bfloat16()
    for _ in range(5):
        m = x @ x.mT
        x = 3.4445 * x + (-4.7750 * m + 2.0315 * m @ m) @ x
    return x.float()


class Muon:
    """For matrices (outputs, inputs); q, k and v are matrices of their own. Matrices of one shape are updated together."""

    def __init__(self, weights):
        self.weights, self.momentum = weights, [torch.zeros_like(w) for w in weights]

    @torch.no_grad()
    def step(self, learning_rate, weight_decay, beta=0.95):
        grads = [w.grad for w in self.weights]
        torch._foreach_lerp_(self.momentum, grads, 1 - beta)
        shapes = {}
        for w, g in zip(self.weights, torch._foreach_lerp(grads, self.momentum, beta)):
            size = w.shape[1] if w.shape[0] == 3 * w.shape[1] else w.shape[0]
            for part, update in zip(w.data.split(size), g.split(size)):
                tall = part.shape[0] > part.shape[1]
                wide = update.mT if tall else update
                shapes.setdefault(tuple(wide.shape), []).append((part, wide, tall))
        for shape, members in shapes.items():
            updates = newton_schulz(torch.stack([wide for _, wide, _ in members]))
            scale = 0.2 * math.sqrt(max(shape))
            for (part, _, tall), update in zip(members, updates):
                part.mul_(1 - learning_rate * weight_decay).add_(update.mT if tall else update, alpha=-learning_rate * scale)


def rate_at(c, step):
    warmup = min(1.0, (step + 1) / c["warmup"]) if c["warmup"] else 1.0
    if c["schedule"] == "wsd":
        share = min(1.0, (c["steps"] - step) / (c["wsd_decay"] * c["steps"]))
    else:
        share = (1 + math.cos(math.pi * step / c["steps"])) / 2
    return warmup * (c["final_lr"] + (c["learning_rate"] - c["final_lr"]) * share)


def encode(text):
    """The two parts of the text as ids."""
    ids = {character: index for index, character in enumerate(sorted(set(text)))}
    data = torch.tensor([ids[character] for character in text], device=DEVICE)
    cut = int(len(data) * 0.9)
    return data[:cut], data[cut:], len(ids)


def blocks(data, time):
    count = (len(data) - 1) // time
    return data[: count * time].view(count, time), data[1 : count * time + 1].view(count, time)


def autocast():
    return torch.autocast(DEVICE, torch.bfloat16)


@torch.no_grad()
def evaluate(model, ids, targets):
    losses = []
    for i in range(0, len(ids), 128):
        with autocast():
            logits = model(ids[i : i + 128]).float()
        losses.append(F.cross_entropy(logits.flatten(0, 1), targets[i : i + 128].flatten(), reduction="none"))
    return torch.cat(losses).mean().item()


def load(path, vocab):
    saved = torch.load(path, map_location=DEVICE)
    model = Gpt2(saved["settings"], vocab).to(DEVICE)
    model.load_state_dict(saved["weights"])
    return model, saved["settings"]["block_size"]


@torch.no_grad()
def teacher_probabilities(paths, train, vocab):
    """(tokens, V): the mean of the teachers, each with at least half a block of context."""
    total = torch.zeros(len(train), vocab, device=DEVICE)
    for path in paths:
        model, time = load(path, vocab)
        half = time // 2
        starts = [*range(0, len(train) - time, half), len(train) - time]
        for i in range(0, len(starts), 128):
            some = torch.tensor(starts[i : i + 128], device=DEVICE)
            with autocast():
                probabilities = model(train[some[:, None] + torch.arange(time, device=DEVICE)]).float().softmax(-1)
            for j, start in enumerate(starts[i : i + 128]):
                first = 0 if start == 0 else half if start % half == 0 else time - (len(train) - starts[-2] - time)
                total[start + first : start + time] += probabilities[j, first:]
    return (total / len(paths)).half()


@torch.no_grad()
def ensemble(paths, held_out, vocab):
    total = 0
    for path in paths:
        model, time = load(path, vocab)
        ids, targets = blocks(held_out, time)
        with autocast():
            probabilities = torch.cat([model(ids[i : i + 128]).float().softmax(-1) for i in range(0, len(ids), 128)])
        total = total + probabilities.gather(-1, targets[..., None])
    return -(total / len(paths)).log().mean().item()


def optimizers(model, c):
    named = list(model.named_parameters())
    matrices = [p for name, p in named if p.dim() == 2 and name.startswith("blocks") and c["optimizer"] == "muon"]
    taken = {id(p) for p in matrices}
    groups = [[p for _, p in named if p.dim() == 2 and id(p) not in taken], [p for _, p in named if p.dim() == 1]]
    adamw = torch.optim.AdamW([dict(params=group) for group in groups], betas=(0.9, 0.99), fused=DEVICE == "cuda")
    return adamw, Muon(matrices) if matrices else None


def train(c, text, deadline):
    c = {**DEFAULT, **c}
    data, held_out, vocab = encode(text)
    if c["ensemble"]:
        return {"name": c["name"], "loss": ensemble(c["ensemble"], held_out, vocab)}
    torch.manual_seed(c["seed"])
    model = Gpt2(c, vocab).to(DEVICE)
    step_of = torch.compile(objective) if c["compile"] and DEVICE == "cuda" else objective
    (adamw, muon), weights = optimizers(model, c), [p for p in model.parameters()]
    values = [p.data for p in weights]
    averages = [[v.clone() for v in values] for _ in AVERAGES]
    table = teacher_probabilities(c["teachers"], data, vocab) if c["teachers"] else None
    order, (time_, count) = torch.Generator().manual_seed(c["seed"] + 1), (c["block_size"], c["batch_size"])
    starts, at, curve, began = [], 0, [], time.time()
    for step in range(c["steps"]):
        if at + count > len(starts):
            phase = int(torch.randint(time_, (1,), generator=order)) if c["block_offset"] == "random" else 0
            starts = torch.randperm((len(data) - 1 - phase) // time_, generator=order) * time_ + phase
            at = 0
        places = starts[at : at + count].to(DEVICE)[:, None] + torch.arange(time_, device=DEVICE)
        at += count
        ids, targets = data[places], data[places + 1]
        if c["input_noise"]:
            noise = data[torch.randint(len(data), ids.shape, device=DEVICE)]
            ids = torch.where(torch.rand(ids.shape, device=DEVICE) < c["input_noise"], noise, ids)
        learning_rate = rate_at(c, step)
        for group, decays in zip(adamw.param_groups, [1, 0]):
            group["lr"], group["weight_decay"] = learning_rate, decays * c["weight_decay"]
        with autocast():
            teachers = None if table is None else table[places].float()
            loss = step_of(model, ids, targets, c["dropout"], c["label_smoothing"], teachers, c["distill_weight"])
        loss.backward()
        nn.utils.clip_grad_norm_(weights, 1.0)
        adamw.step()
        if muon:
            muon.step(learning_rate, c["weight_decay"])
        for p in weights:
            p.grad = None
        for decay, average in zip(AVERAGES, averages):
            torch._foreach_lerp_(average, values, 1 - min(decay, (step + 1) / (step + 10)))
        if (step + 1) % c["eval_every"] == 0 or step + 1 == c["steps"]:
            curve.append({"step": step + 1, **losses(model, values, averages, blocks(held_out, time_))})
            if time.time() > deadline:
                break
    if c["save"]:
        torch._foreach_copy_(values, averages[AVERAGES.index(c["save_average"])])
        torch.save({"settings": c, "weights": model.state_dict()}, c["save"] + ".part")
        os.rename(c["save"] + ".part", c["save"])
    best = {key: min((row[key], row["step"]) for row in curve) for key in curve[0] if key != "step"}
    changed = {key: value for key, value in c.items() if value != DEFAULT[key]}
    return {"name": c["name"], "seconds": time.time() - began, "best": best, "settings": changed, "curve": curve}


@torch.no_grad()
def losses(model, values, averages, held_out):
    result = {"raw": evaluate(model, *held_out)}
    kept = [v.clone() for v in values]
    for decay, average in zip(AVERAGES, averages):
        torch._foreach_copy_(values, average)
        result[str(decay)] = evaluate(model, *held_out)
    torch._foreach_copy_(values, kept)
    return result


def worker(queue, text, out, deadline):
    while time.time() < deadline and not queue.empty():
        c = queue.get()
        needed = (c.get("teachers") or []) + (c.get("ensemble") or [])
        while not all(map(os.path.exists, needed)) and time.time() < deadline:
            time.sleep(1)
        result = train(c, text, deadline)
        with open(out, "a") as file:
            file.write(json.dumps(result) + "\n")
        print(result["name"], result.get("best") or result["loss"], flush=True)
        torch._dynamo.reset()


def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("text")
    p.add_argument("out")
    p.add_argument("--workers", type=int, default=1)
    p.add_argument("--seconds", type=float, default=math.inf)
    a = p.parse_args()
    mp.set_start_method("spawn")
    queue, text = mp.Queue(), open(a.text).read()
    for line in filter(str.strip, sys.stdin):
        queue.put(json.loads(line))
    deadline = time.time() + a.seconds
    workers = [mp.Process(target=worker, args=(queue, text, a.out, deadline)) for _ in range(a.workers)]
    for process in workers:
        process.start()
    for process in workers:
        process.join()


if __name__ == "__main__":
    main()
