"""Errors reach the driver from other processes: pickled and back, they say the same."""

from __future__ import annotations

import pickle

from tatok_pipe.images.decode import DecodeError
from tatok_pipe.images.shard_errors import InterleavedShard, ShardError


def test_errors_survive_the_way_between_processes() -> None:
    shard = ShardError("a.tar", 3, "the archive ends inside a member")
    again = pickle.loads(pickle.dumps(shard))
    assert (type(again), str(again), again.num_samples) == (ShardError, str(shard), 3)
    apart = pickle.loads(pickle.dumps(InterleavedShard("a.tar", 3, "apart", "read it again")))
    assert (type(apart), str(apart)) == (InterleavedShard, "a.tar: apart, after 3 samples; read it again")
    decode = pickle.loads(pickle.dumps(DecodeError("Truncated", "12 bytes missing")))
    assert (type(decode), str(decode), decode.error) == (DecodeError, "12 bytes missing", "Truncated")
