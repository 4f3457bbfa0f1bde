#!/usr/bin/env bash
# The base tokenizer on ImageNet, on 8 GPUs. Options of train_tokenizer may follow.
source "$(dirname "$0")/submit.sh"
submit train-tokenizer -- python -m tatok_pipe.train_tokenizer configs/tokenizer/base.yaml \
    "input.shards=$TATOK_IMAGES/train" "validation.shards=$TATOK_IMAGES/val" \
    "output.url=$TATOK_BUCKET/tokenizer-base" workers.count=8 "$@"
