"""Drawing from logits, so that what an image becomes depends on its own seed and nothing else.

The uniform numbers are a hash of (seed of the image, number of the draw). Probabilities are turned into integers
before they are summed up: integer sums are exact, whatever the order, device or batch.

Letters: B images, V outcomes.
"""

from __future__ import annotations

import torch
from torch import Tensor

from tatok_pipe.ar.options import DrawConfig

# The likeliest outcome weighs so much; what is less than a 2^30th as likely is never drawn.
_UNIT = float(1 << 30)
# Below it quotients may overflow float32, and no two logits that differ are near enough to both be drawn.
_SMALLEST_TEMPERATURE = 1e-30


def draw(logits: Tensor, uniforms: Tensor, config: DrawConfig) -> Tensor:
    """Logits (B, V), -inf for what cannot be, and uniform numbers (B,) float64 in [0, 1) to outcomes (B,) int64.

    Every row needs one finite logit. `config.guidance` is not looked at: it is about two sets of logits.
    """
    logits = logits.float()
    if config.temperature < _SMALLEST_TEMPERATURE:
        return logits.argmax(dim=-1)
    if config.temperature != 1:
        logits = logits / config.temperature
    logits = truncate(logits, top_k=config.top_k, top_p=config.top_p)
    weights = (logits - logits.amax(dim=-1, keepdim=True)).exp_().mul_(_UNIT).to(torch.int32)
    cumulative = weights.cumsum(dim=-1, dtype=torch.int64)  # (B, V), below 2^53 as V < 2^23
    total = cumulative[:, -1]
    at = torch.minimum(
        (uniforms * total).to(torch.int64), total - 1
    )  # a product close to the sum may be rounded to it
    return torch.searchsorted(cumulative, at[:, None], right=True)[:, 0]


def truncate(logits: Tensor, *, top_k: int, top_p: float) -> Tensor:
    """(B, V) with -inf for all but the `top_k` likeliest (0: all), and of these for all but the likeliest that together
    reach the probability `top_p`. Outcomes as likely as the last one that is kept are kept too."""
    if 0 < top_k < logits.shape[-1]:
        least = logits.topk(top_k, dim=-1).values[:, -1:]
        logits = logits.masked_fill(logits < least, float("-inf"))
    if top_p < 1:
        ordered, _ = logits.sort(dim=-1, descending=True)
        # Each one's probability goes on top of those before it: it is kept while these alone do not suffice.
        before = ordered.softmax(dim=-1).double().cumsum(dim=-1)
        before = before.roll(1, dims=-1)
        before[:, 0] = 0
        least = ordered.masked_fill(before >= top_p, float("inf")).amin(dim=-1, keepdim=True)
        logits = logits.masked_fill(logits < least, float("-inf"))
    return logits


def uniforms(seeds: Tensor, counters: Tensor) -> Tensor:
    """Seeds and numbers of draws, (...) int64 each, to (...) float64 in [0, 1): SplitMix64's mixing function (Steele,
    Lea & Flood 2014), once over the seed and once over seed and counter."""
    mixed = _mix(_mix(seeds) + (counters + 1) * _GOLDEN)
    return _shift(mixed, 11).double() * 2.0**-53


def _signed(value: int) -> int:
    """64 bits as torch holds them."""
    return value - (1 << 64) if value >> 63 else value


_GOLDEN = _signed(0x9E3779B97F4A7C15)
_FACTORS = _signed(0xBF58476D1CE4E5B9), _signed(0x94D049BB133111EB)


def _mix(x: Tensor) -> Tensor:
    x = (x ^ _shift(x, 30)) * _FACTORS[0]
    x = (x ^ _shift(x, 27)) * _FACTORS[1]
    return x ^ _shift(x, 31)


def _shift(x: Tensor, bits: int) -> Tensor:
    """To the right, with zeros coming in."""
    return (x >> bits) & ((1 << (64 - bits)) - 1)
