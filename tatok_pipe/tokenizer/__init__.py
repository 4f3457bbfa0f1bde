"""TaTok, the adaptive tokenizer (arXiv 2605.16384): model, entropy model, filtering, training."""
