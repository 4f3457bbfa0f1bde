"""A start for the weights of a generator's codes: each begins as its codeword.

At random, a generator has to find out from its tokens alone which of thousands of codes look alike, each of them from
the few sequences that have it; the tokenizer knows. What a code is as input and as output begin as the same random
turn of its codeword into the generator's width, at the size of the random start.

Letters: V codes, C dimensions of a codeword, W width.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from tatok_pipe.ar.model import WEIGHT_STD, Generator


@torch.no_grad()
def start_from_codewords(model: Generator, codewords: Tensor) -> None:
    """In place, by torch's random numbers. `codewords` (V, C) are those of the patch codes.

    Raises ValueError where these are not as many as the codes of the model.
    """
    table, out = model.patch_codes.weight, model.code_head.out.weight
    if len(codewords) != len(table):
        raise ValueError(f"{len(codewords)} codewords: expected {len(table)}, one of each patch code")
    turn = nn.init.orthogonal_(torch.empty(codewords.shape[1], table.shape[1]))  # (C, W)
    rows = (codewords - codewords.mean(dim=0)).float() @ turn
    rows *= WEIGHT_STD / rows.square().mean().sqrt().clamp_min(torch.finfo(rows.dtype).tiny)
    for weight in (table, out):
        weight.copy_(rows)
