#!/usr/bin/env bash
# 50,000 images, 50 of each class. Options of generate may follow.
source "$(dirname "$0")/submit.sh"
submit generate-50k -- python -m tatok_pipe.generate configs/generate/50k.yaml \
    "checkpoint=$TATOK_BUCKET/generator-l" "tokenizer=$TATOK_BUCKET/tokenizer-base/tokenizer" \
    "output.url=$TATOK_BUCKET/samples/50k" "$@"
