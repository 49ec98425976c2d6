#!/usr/bin/env python3
"""A rival: the GPT-2 training step of torch_gpt2.py in JAX on the CPU, compiled as a whole by XLA.

Needs `pip install jax`. With --bf16 the matmuls and the activations between them are bfloat16; LayerNorm, softmax, the loss,
the weights and AdamW stay in f32, as with PyTorch's autocast. The buffers of weights and moments are donated to the step.

  jax_gpt2.py --batch 64 --block 256 --vocab 65 --emb 384 --blocks 6 --heads 6 --dropout 0.2 [--bf16]

Prints one JSON line: median step seconds, tokens per second, peak resident MiB.
"""
import argparse, functools, json, os, resource, statistics, time

p = argparse.ArgumentParser()
for name, default in dict(batch=64, block=256, vocab=65, emb=384, blocks=6, heads=6, steps=5, threads=2).items():
    p.add_argument(f"--{name}", type=int, default=default)
p.add_argument("--dropout", type=float, default=0.2)
p.add_argument("--bf16", action="store_true")
a = p.parse_args()
# XLA's thread pool has one thread per processor in the affinity mask.
os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[: a.threads])

import jax
import jax.numpy as jnp

FORMAT = jnp.bfloat16 if a.bf16 else jnp.float32


def init(key):
    c = a.emb
    shapes = {"wte": (a.vocab, c), "wpe": (a.block, c)}
    for n in range(a.blocks):
        for layer, shape in dict(c_attn=(c, 3 * c), attn_proj=(c, c), c_fc=(c, 4 * c), mlp_proj=(4 * c, c)).items():
            shapes[f"h.{n}.{layer}"] = shape
    keys = jax.random.split(key, len(shapes))
    w = {name: 0.02 * jax.random.normal(k, shape) for k, (name, shape) in zip(keys, shapes.items())}
    w |= {f"{name}.b": jnp.zeros(shape[1]) for name, shape in shapes.items() if name[0] == "h"}
    norms = ["ln_f", *(f"h.{n}.{ln}" for n in range(a.blocks) for ln in ("ln_1", "ln_2"))]
    return w | {f"{n}.w": jnp.ones(c) for n in norms} | {f"{n}.b": jnp.zeros(c) for n in norms}


def loss(w, ids, key):
    keys = iter(jax.random.split(key, 1 + 3 * a.blocks))
    x_of = lambda name: w[name].astype(FORMAT)

    def drop(x):
        k = next(keys)
        if a.dropout == 0:
            return x
        return jnp.where(jax.random.bernoulli(k, 1 - a.dropout, x.shape), x / (1 - a.dropout), 0)

    def norm(x, name):
        x = x.astype(jnp.float32)
        mean = x.mean(-1, keepdims=True)
        x = (x - mean) * jax.lax.rsqrt(((x - mean) ** 2).mean(-1, keepdims=True) + 1e-5)
        return (x * w[f"{name}.w"] + w[f"{name}.b"]).astype(FORMAT)

    linear = lambda x, name: x @ x_of(name) + x_of(f"{name}.b")
    b, t = ids.shape[0], ids.shape[1] - 1
    split = lambda x: x.reshape(b, t, a.heads, a.emb // a.heads).transpose(0, 2, 1, 3)
    x = drop(w["wte"][ids[:, :-1]] + w["wpe"])
    future = jnp.triu(jnp.full((t, t), -jnp.inf), 1)
    for n in range(a.blocks):
        q, k, v = map(split, jnp.split(linear(norm(x, f"h.{n}.ln_1"), f"h.{n}.c_attn"), 3, -1))
        scores = (q @ k.swapaxes(2, 3)).astype(jnp.float32) / (a.emb // a.heads) ** 0.5 + future
        y = drop(jax.nn.softmax(scores)).astype(FORMAT) @ v
        x = x + drop(linear(y.transpose(0, 2, 1, 3).reshape(b, t, a.emb), f"h.{n}.attn_proj"))
        y = jax.nn.gelu(linear(norm(x, f"h.{n}.ln_2"), f"h.{n}.c_fc"), approximate=True)
        x = x + drop(linear(y, f"h.{n}.mlp_proj"))
    logits = (norm(x, "ln_f") @ x_of("wte").T).astype(jnp.float32)
    return -jnp.take_along_axis(jax.nn.log_softmax(logits), ids[:, 1:, None], -1).mean()


@functools.partial(jax.jit, donate_argnums=(0, 1, 2))
def step(w, m, v, i, ids, key):
    value, g = jax.value_and_grad(loss)(w, ids, key)
    norm = jnp.sqrt(sum((x**2).sum() for x in g.values()))
    g = jax.tree.map(lambda x: x * jnp.minimum(1.0, 1.0 / (norm + 1e-6)), g)
    m = jax.tree.map(lambda m, g: 0.9 * m + 0.1 * g, m, g)
    v = jax.tree.map(lambda v, g: 0.999 * v + 0.001 * g * g, v, g)
    update = lambda w, m, v: w * (1 - 1e-3 * 0.01) - 1e-3 * (m / (1 - 0.9**i)) / (jnp.sqrt(v / (1 - 0.999**i)) + 1e-8)
    return jax.tree.map(update, w, m, v), m, v, value


key = jax.random.key(0)
w = init(key)
m, v = (jax.tree.map(jnp.zeros_like, w) for _ in range(2))
times = []
for i in range(a.steps + 2):
    ids = jax.random.randint(jax.random.fold_in(key, 2 * i), (a.batch, a.block + 1), 0, a.vocab)
    start = time.perf_counter()
    w, m, v, value = step(w, m, v, float(i + 1), ids, jax.random.fold_in(key, 2 * i + 1))
    value.block_until_ready()
    jax.block_until_ready(w)
    if i >= 2:
        times.append(time.perf_counter() - start)
med = statistics.median(times)
peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024
print(json.dumps({**vars(a), "step_s": med, "tokens_per_s": a.batch * a.block / med, "peak_mib": peak}))
