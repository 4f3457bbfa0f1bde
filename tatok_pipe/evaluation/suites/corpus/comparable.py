"""Which comparisons two token datasets allow."""

from __future__ import annotations

from tatok_pipe.tokens.spec import TokenSpec

KEPT = "Kolmogorov-Smirnov distance of kept patches"
GLOBAL_CODES = "Jensen-Shannon divergence of global codes"
PATCH_CODES = "Jensen-Shannon divergence of patch codes"
PAIRS = "same images in both"
EQUAL_GLOBALS = "share of equal global codes"
EQUAL_PATCHES = "share of equal patch codes where both keep"
OVERLAP = "overlap of kept positions (Jaccard)"

_WHAT_IT_NEEDS = {
    KEPT: ("num_patches",),
    GLOBAL_CODES: ("global_vocab",),
    PATCH_CODES: ("patch_vocab",),
    EQUAL_GLOBALS: ("num_globals", "global_vocab"),
    EQUAL_PATCHES: ("num_patches", "patch_vocab"),
    OVERLAP: ("num_patches",),
}


def left_out(first: TokenSpec, other: TokenSpec) -> dict[str, str]:
    """By comparison that has no meaning for these two: why."""
    reasons = {}
    for comparison, names in _WHAT_IT_NEEDS.items():
        differing = [
            f"{name} {getattr(first, name):,} and {getattr(other, name):,}"
            for name in names
            if getattr(first, name) != getattr(other, name)
        ]
        if differing:
            reasons[comparison] = ", ".join(differing)
    if first.encoding.get("crops") != other.encoding.get("crops"):
        reasons[PAIRS] = "the datasets hold different crops of an image"
    return reasons
