#!/usr/bin/env python3
"""The generation speed of llama.cpp, through its C API: a rival of bench/generate.py, which runs it.

    pip install llama-cpp-python
    llama_cpp_generate.py --model model.gguf --tokens 255 --streams 16 --threads 2

Every step decodes one token of each sequence, with random tokens: which ones they are does not change the time. Only the decoding is timed, so that
Python costs llama.cpp nothing. Flash attention is off, which is the faster setting for these models on a CPU.
"""
import argparse, ctypes, json, random, time

import llama_cpp as api

p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
p.add_argument("--model", required=True, help="a GGUF file")
for name, default in dict(tokens=255, streams=1, threads=2, rounds=3).items():
    p.add_argument(f"--{name}", type=int, default=default)
a = p.parse_args()

silent = api.llama_log_callback(lambda level, text, data: None)
api.llama_log_set(silent, ctypes.c_void_p(0))
api.llama_backend_init()
model = api.llama_model_load_from_file(a.model.encode(), api.llama_model_default_params())
assert model, f"{a.model} was not loaded"
parameters = api.llama_context_default_params()
parameters.n_ctx = a.streams * -(-(a.tokens + 1) // 256) * 256
parameters.n_batch = parameters.n_ubatch = max(a.streams, 32)
parameters.n_seq_max = a.streams
parameters.n_threads = parameters.n_threads_batch = a.threads
parameters.flash_attn_type = 0
context = api.llama_init_from_model(model, parameters)
assert context, "llama.cpp made no context"
vocabulary = api.llama_vocab_n_tokens(api.llama_model_get_vocab(model))

batch = api.llama_batch_init(a.streams, 0, 1)
batch.n_tokens = a.streams
for s in range(a.streams):
    batch.n_seq_id[s], batch.seq_id[s][0], batch.logits[s] = 1, s, 1
speeds = []
for _ in range(a.rounds):
    api.llama_memory_clear(api.llama_get_memory(context), True)
    seconds = 0.0
    for position in range(a.tokens):
        for s in range(a.streams):
            batch.token[s], batch.pos[s] = random.randrange(vocabulary), position
        start = time.perf_counter()
        failed = api.llama_decode(context, batch)
        api.llama_synchronize(context)
        seconds += time.perf_counter() - start
        assert failed == 0, f"llama_decode returned {failed}"
    speeds.append(a.tokens * a.streams / seconds)
print(json.dumps(dict(program="llama.cpp", tokens_per_s=sorted(speeds)[len(speeds) // 2])))
