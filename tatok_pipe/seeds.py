"""Seeds made of what a draw depends on: run, rank, step, …"""

from __future__ import annotations

import numpy as np


def hash_seed(*parts: int) -> int:
    """One 63-bit seed from several numbers of 0 or more, by numpy's SeedSequence."""
    return int(np.random.SeedSequence(parts).generate_state(1, np.uint64)[0] >> 1)
