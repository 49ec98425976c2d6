#!/usr/bin/env bash
# The model of the preset nanogpt-cpu on the same number of characters with every tokenizer: the table of
# docs/results.md. Writes runs under the directory given.
#
#     cargo build --release && bench/tokenizer_losses.sh /tmp/tokenizers
set -euo pipefail
folio="$(dirname "$0")/../target/release/folio"
runs="${1:?give a directory for the runs}"
# 2,000 steps of 12 x 64 characters, in tokens of so many characters on average (the training part's).
train() {
    local name=$1 characters_a_token=$2
    shift 2
    local steps warmup
    steps=$(awk "BEGIN { printf \"%d\", 2000 / $characters_a_token + 0.5 }")
    warmup=$((steps / 20))
    local begun=$EPOCHREALTIME
    "$folio" train --preset nanogpt-cpu "$@" --max_steps "$steps" --cosine_T_max "$steps" --warmup_steps "$warmup" \
        --num_epochs 10 --run_dir "$runs/$name" --overwrite >/dev/null 2>&1
    awk "BEGIN { printf \"%-16s %5d steps %6.1f s\n\", \"$name\", $steps, $EPOCHREALTIME - $begun }"
}
train chrs 1 --tokenizer_type chrs
for size in 512 1024 2048 4096; do
    # Characters a token: what the tokenizer makes of the training text, by the ratio of its two kinds of loss.
    "$folio" train --preset nanogpt-cpu --tokenizer_type corpus_bpe --vocab_size "$size" --max_steps 1 \
        --run_dir "$runs/probe" --overwrite --json >"$runs/probe.json" 2>/dev/null
    ratio=$(awk -F'[:,}]' '{ for (i = 1; i < NF; i++) { if ($i ~ /"train_loss"/) l = $(i + 1)
        if ($i ~ /"train_bits_per_character"/) b = $(i + 1) } print l / log(2) / b }' "$runs/probe.json")
    train "corpus_bpe_$size" "$ratio" --tokenizer_type corpus_bpe --vocab_size "$size"
done
train bpe 3.3244 --tokenizer_type bpe
for run in chrs corpus_bpe_512 corpus_bpe_1024 corpus_bpe_2048 corpus_bpe_4096 bpe; do
    "$folio" eval "$runs/$run" --json
done
