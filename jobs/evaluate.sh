#!/usr/bin/env bash
# All suites on ImageNet's validation images. Options of evaluate may follow.
source "$(dirname "$0")/submit.sh"
submit evaluate -- python -m tatok_pipe.evaluate configs/evaluate/imagenet.yaml \
    "data=$TATOK_IMAGES/val" "tokenizer=$TATOK_BUCKET/tokenizer-base/tokenizer" \
    "generator=$TATOK_BUCKET/generator-l" "tokens=$TATOK_BUCKET/tokens/imagenet" \
    "output.url=$TATOK_BUCKET/evaluation/imagenet" "$@"
