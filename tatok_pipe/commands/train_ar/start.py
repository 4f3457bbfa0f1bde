"""What the codes of a new generator begin as."""

from __future__ import annotations

import numpy as np
import torch

from tatok_pipe import storage
from tatok_pipe.errors import UserError
from tatok_pipe.tokenizer.checkpoint import load_tokenizer
from tatok_pipe.tokens.spec import TokenSpec


def read_start(url: str | None, spec: TokenSpec) -> np.ndarray | None:
    """Codewords (V, C) float32 of the patch codes, of the tokenizer at `url`; None without one.

    Raises UserError where there is no tokenizer, or not the one that tokens of `spec` were made with.
    """
    if url is None:
        return None
    tokenizer = load_tokenizer(url, option="tokenizer")
    if tokenizer.fingerprint != spec.tokenizer_fingerprint:
        raise UserError(
            f"tokenizer={storage.redact(url)}: has the fingerprint {tokenizer.fingerprint[:12]}, the tokens were made "
            f"by {spec.tokenizer_fingerprint[:12]}; give that one, or null"
        )
    quantizer = tokenizer.model.patch_quantizer
    return quantizer.codes_to_vectors(torch.arange(quantizer.vocab_size)).float().numpy()
