#!/usr/bin/env python3
"""Make a run whose model has all variations of GPT-2 from a run of width 64 or so, for export_check.py.

    python varied_run.py RUN_DIR NEW_RUN_DIR

The best checkpoint gets an MLP of width 96 (the first channels of the old one), GELU with erf, another epsilon, and a head of
its own: the embedding in reverse order, with noise.
"""
import hashlib, json, shutil, sys
from pathlib import Path

import numpy
from safetensors.numpy import load_file, save_file

INNER = 96
VARIATIONS = {"n_inner": INNER, "activation": "gelu", "layer_norm_epsilon": 1e-3, "tie_word_embeddings": False}


def update(path, change):
    values = json.loads(path.read_text())
    change(values)
    path.write_text(json.dumps(values))


def varied(tensors):
    """The tensors of the new model."""
    for name, values in tensors.items():
        if ".mlp.c_fc." in name:
            values = values[..., :INNER]
        elif name.endswith(".mlp.c_proj.weight"):
            values = values[:INNER]
        yield name, numpy.ascontiguousarray(values)
    embedding = tensors["wte.weight"]
    noise = 0.05 * numpy.random.default_rng(0).standard_normal(embedding.shape)
    yield "lm_head.weight", (embedding[::-1] + noise).astype(numpy.float32)


def main():
    source, run = map(Path, sys.argv[1:])
    shutil.copytree(source, run, symlinks=True)
    checkpoint = (run / "best").resolve()
    for name in ["model_hyperparameters.json", "hyperparameters.json"]:
        update(run / name, lambda values: values.update(VARIATIONS))
    update(checkpoint / "state.json", lambda values: values["identity"]["model"].update(VARIATIONS))
    tensors = dict(varied(load_file(checkpoint / "model.safetensors")))
    save_file(tensors, checkpoint / "model.safetensors", {"format": "pt"})
    (checkpoint / "optimizer.safetensors").unlink(missing_ok=True)

    def describe(manifest):
        manifest["format"] = 4
        manifest["files"].pop("optimizer.safetensors", None)
        for name, entry in manifest["files"].items():
            data = (checkpoint / name).read_bytes()
            entry.update(bytes=len(data), sha256=hashlib.sha256(data).hexdigest())

    update(checkpoint / "manifest.json", describe)


if __name__ == "__main__":
    main()
