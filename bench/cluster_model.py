#!/usr/bin/env python3
"""The efficiency that docs/cluster.md predicts for many ranks, from measured speeds.

    python3 bench/cluster_model.py

A step of one rank takes tokens / speed. Its gradients are sent in buckets of 16 MiB at most, to and from every other rank:
2 (N - 1) / N times their bytes, and 4 (N - 1) messages per bucket. What travels while the backward pass runs, two thirds of the
step, costs no time; the gradients of the embeddings, which are complete last, always do.
"""

# Parameters, those of the embeddings, and tokens per second of a rank of 16 cores (measured, measured, scaled by 6 P).
MODELS = {
    "10.8 M, bf16": (10.8e6, 0.12e6, 35_500),
    "124 M, bf16": (124e6, 39e6, 2_084),
    "1.56 B, bf16": (1.56e9, 82e6, 2_084 * 124 / 1560),
}
NETWORKS = {"10 Gbit/s": (1.1e9, 20e-6), "100 Gbit/s": (11e9, 3e-6)}
BUCKET = 16 * 2**20
TOKENS = 16_384  # of each rank in a step


def efficiency(parameters, last, speed, bandwidth, latency, ranks, overlaps):
    def travel(count):
        size = 4 * count
        messages = 4 * (ranks - 1) * max(1, size / BUCKET)
        return 2 * (ranks - 1) / ranks * size / bandwidth + messages * latency

    compute = TOKENS / speed
    if not overlaps:
        return compute / (compute + travel(parameters))
    hidden = travel(parameters - last)
    return compute / (compute + max(0.0, hidden - compute * 2 / 3) + travel(last))


def main():
    counts = [2, 8, 32, 128, 1024]
    print("| model | network | " + " | ".join(f"{n:,} ranks" for n in counts) + " |")
    print("|---|---|" + "---:|" * len(counts))
    for model, (parameters, last, speed) in MODELS.items():
        for network, (bandwidth, latency) in NETWORKS.items():
            cells = []
            for ranks in counts:
                both = [efficiency(parameters, last, speed, bandwidth, latency, ranks, o) for o in (False, True)]
                cells.append(" to ".join(f"{100 * value:.0f}" for value in both) + " %")
            print(f"| {model} | {network} | " + " | ".join(cells) + " |")


main()
