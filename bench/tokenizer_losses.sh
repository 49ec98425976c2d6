#!/usr/bin/env bash
# Trains the model of a preset with every tokenizer on the same number of characters: the tables in docs/results.md. Writes its runs to
# the given directory. Runs that are finished there are not trained again.
#
#     cargo build --release && bench/tokenizer_losses.sh /tmp/tokenizers [nanogpt-cpu|shakespeare-best]
set -euo pipefail
folio="${FOLIO:-$(dirname "$0")/../target/release/folio}"
runs="${1:?usage: tokenizer_losses.sh DIRECTORY [PRESET]}"
preset="${2:-nanogpt-cpu}"
# The steps of the preset, at one token per character, and how many steps there are for each step of warm-up.
case $preset in
nanogpt-cpu) total=2000 per_warmup=20 ;;
shakespeare-best) total=5000 per_warmup=50 ;;
*) echo "tokenizer_losses.sh: preset $preset is neither nanogpt-cpu nor shakespeare-best" >&2 && exit 2 ;;
esac
# $2: the average number of characters per token in the training split.
train() {
    local name=$1 characters_per_token=$2
    shift 2
    grep -qs '"state": "finished"' "$runs/$name/status.json" && return
    local steps
    steps=$(awk "BEGIN { printf \"%d\", $total / $characters_per_token + 0.5 }")
    local start=$EPOCHREALTIME
    "$folio" train --preset "$preset" "$@" --max_steps "$steps" --cosine_T_max "$steps" \
        --warmup_steps "$((steps / per_warmup))" --num_epochs 100 --run_dir "$runs/$name" --overwrite >/dev/null 2>&1
    awk "BEGIN { printf \"%-16s %5d steps %6.1f s\n\", \"$name\", $steps, $EPOCHREALTIME - $start }"
}
train chrs 1 --tokenizer_type chrs
for size in 512 1024 2048 4096; do
    # Characters per token of the training split: the ratio of the loss in bits per token to the bits per character.
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
