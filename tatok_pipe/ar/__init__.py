"""The autoregressive generator of token sequences, and its training."""
