#!/usr/bin/env python3
"""The generation speed of Hugging Face transformers with its cache of keys and values: a rival of bench/generate.py, which runs it.

    pip install torch transformers safetensors
    transformers_generate.py --model DIRECTORY --dtype bfloat16 --tokens 255 --streams 16 --threads 2
"""
import argparse, json, time

import torch
from transformers import AutoModelForCausalLM

p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
p.add_argument("--model", required=True, help="a directory, as `folio export --to hf` writes it")
p.add_argument("--dtype", default="float32", choices=["float32", "bfloat16"])
for name, default in dict(tokens=255, streams=1, threads=2, rounds=3).items():
    p.add_argument(f"--{name}", type=int, default=default)
a = p.parse_args()

torch.set_num_threads(a.threads)
model = AutoModelForCausalLM.from_pretrained(a.model, dtype=getattr(torch, a.dtype)).eval()
prompt = torch.zeros(a.streams, 1, dtype=torch.long)
settings = dict(max_new_tokens=a.tokens, min_new_tokens=a.tokens, do_sample=True, use_cache=True, eos_token_id=None, pad_token_id=0)
settings["attention_mask"] = torch.ones_like(prompt)
speeds = []
with torch.inference_mode():
    for round in range(a.rounds + 1):
        start = time.perf_counter()
        model.generate(prompt, **settings)
        if round:  # The first one warms up.
            speeds.append(a.tokens * a.streams / (time.perf_counter() - start))
print(json.dumps(dict(program="transformers", tokens_per_s=sorted(speeds)[len(speeds) // 2])))
