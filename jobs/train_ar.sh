#!/usr/bin/env bash
# The generator L on the tokens of tokenize_imagenet, on 8 GPUs, 4 at least. Options of train_ar may follow.
source "$(dirname "$0")/submit.sh"
submit train-ar -- python -m tatok_pipe.train_ar configs/ar/l.yaml \
    "input.url=$TATOK_BUCKET/tokens/imagenet" "output.url=$TATOK_BUCKET/generator-l" \
    "tokenizer=$TATOK_BUCKET/tokenizer-base/tokenizer" \
    model.num_classes=1000 training.epochs=50 training.optimizer.ema_decay=0.9999 workers.min=4 workers.max=8 "$@"
