"""Seeds made of what a draw depends on: run, rank, step, …"""

from __future__ import annotations

import hashlib
import json
import struct

import numpy as np


def hash_seed(*parts: int) -> int:
    """One 63-bit seed from several numbers of 0 or more, by numpy's SeedSequence."""
    return int(np.random.SeedSequence(parts).generate_state(1, np.uint64)[0] >> 1)


def hash_words(*parts: int | str) -> tuple[int, int, int, int]:
    """Four random numbers of 64 bits from numbers and texts, by SHA-256: the same on every machine, in every version
    of everything."""
    return struct.unpack("<4Q", hashlib.sha256(json.dumps(parts).encode()).digest())


MAX_SEED = (1 << 32) - 1
