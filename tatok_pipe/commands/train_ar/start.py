"""What the codes of a new generator begin as."""

from __future__ import annotations

import logging

import numpy as np
import torch

from tatok_pipe import storage
from tatok_pipe.commands.train_ar.options import AUTO, NONE
from tatok_pipe.errors import UserError
from tatok_pipe.tokenizer.checkpoint import load_tokenizer
from tatok_pipe.tokenizer.options import PACKAGED
from tatok_pipe.tokens.spec import TokenSpec

logger = logging.getLogger("tatok_pipe.train_ar")


def read_start(given: str, spec: TokenSpec) -> np.ndarray | None:
    """Codewords (V, C) float32 of the patch codes, of the tokenizer that the option `tokenizer` gives; None where codes
    are to begin at random.

    Raises UserError where there is no tokenizer, or not the one that tokens of `spec` were made with.
    """
    if given == NONE:
        return None
    tokenizer = load_tokenizer(PACKAGED if given == AUTO else given, option="tokenizer")
    if tokenizer.fingerprint != spec.tokenizer_fingerprint:
        if given == AUTO:
            logger.info(
                "codes begin at random; with the tokenizer of the tokens as tokenizer=… they learn sooner"
            )
            return None
        raise UserError(
            f"tokenizer={storage.redact(given)}: has the fingerprint {tokenizer.fingerprint[:12]}, the tokens were "
            f"made by {spec.tokenizer_fingerprint[:12]}; give that one, or {NONE}"
        )
    quantizer = tokenizer.model.patch_quantizer
    return quantizer.codes_to_vectors(torch.arange(quantizer.vocab_size)).float().numpy()
