#!/usr/bin/env bash
# What came in since yesterday, as cron on any machine may start it; waits, and exits with the job's success.
export TATOK_WAIT="${TATOK_WAIT:-1}"
source "$(dirname "$0")/submit.sh"
submit nightly-tokenize-"$(date -u +%Y%m%d)" -- python -m tatok_pipe.tokenize_corpus configs/tokenize/nightly.yaml \
    "input.shards=$TATOK_IMAGES/incoming" "tokenizer.checkpoint=$TATOK_BUCKET/tokenizer-base/tokenizer" \
    "output.url=$TATOK_BUCKET/tokens/incoming" "$@"
