#!/usr/bin/env bash
# ImageNet's training images, ten crops each. Options of tokenize_corpus may follow.
source "$(dirname "$0")/submit.sh"
submit tokenize-imagenet -- python -m tatok_pipe.tokenize_corpus configs/tokenize/imagenet.yaml \
    "input.shards=$TATOK_IMAGES/train" "tokenizer.checkpoint=$TATOK_BUCKET/tokenizer-base/tokenizer" \
    "output.url=$TATOK_BUCKET/tokens/imagenet" "$@"
