"""Shards that end or hang their process whenever they are tried: given up after three attempts, the others done."""

from __future__ import annotations

from pathlib import Path

import pytest

from tatok_pipe.tokens.format import token_shard_name
from tests.faults import job
from tests.faults.injector import Fault, Injector
from tests.faults.world import World

pytestmark = [pytest.mark.ray, pytest.mark.s3, pytest.mark.slow]

MAX_ATTEMPTS = 3
# What ends or hangs the process. The tiny shards have one batch, so that each fault fires once in an attempt.
DEADLY = (
    Fault("encode", "segv", "000010", None),
    Fault("decode", "hang_gil", "000011", None),
    Fault("decode", "oom_kill", "000012", None),
    Fault("encode", "hang", "000013", None),
    # Goes forward all the time, a batch every 4 seconds, three in all: too slow for its deadline, but never stalled.
    Fault("encode", "sleep:4", "000009", None),
)
# What a process survives, and so tries again by itself.
MILD = (
    Fault("tar", "exit:0", "000014", None),
    Fault("encode", "exit:1", "000015", None),
    Fault("encode", "oom_error", "000016", None),
)
ONCE = (
    Fault("before_put", "raise", "000017"),
    Fault("inside_put", "sigkill", "000018"),
    Fault("after_put", "exit:0", "000019"),
)


def test_poison_is_given_up_and_its_neighbours_are_done(world: World, tmp_path: Path) -> None:
    # Two healthy shards that are there in any case, and the shards of the faults among them.
    urls = {f"{number:06d}": world.tiny_local.url(f"{number:06d}") for number in (20, 21)}
    for fault in (*ONCE, *MILD, *DEADLY):
        corpus = world.local if fault.shard == "000009" else world.tiny_local
        urls[fault.shard] = corpus.url(fault.shard)
    listing = tmp_path / "shards.txt"
    listing.write_text("\n".join(urls[shard] for shard in sorted(urls)))
    injector = Injector(tmp_path, [*DEADLY, *MILD, *ONCE])
    output = str(tmp_path / "out")
    done = job.run(
        [
            f"input.shards=@{listing}", f"output.url={output}", f"tokenizer.checkpoint={world.checkpoint}",
            "encode.batch_size=16", "actors.min=2", "actors.max=2", "actors.cpus=1",
            "failures.stall_s=6", "failures.shard_timeout_s=7",
        ],
        env=injector.environment(), folder=tmp_path,
    )  # fmt: skip
    fired = {fault: injector.fired(fault) for fault in injector.faults}
    processes = {fault.shard: len({event.pid for event in fired[fault]}) for fault in DEADLY}
    tries = {fault.shard: len(fired[fault]) for fault in MILD}
    print(f"{done.seconds:.1f} s, processes lost {processes}, tries {tries}, begun {injector.attempts()}")
    assert done.code == 1, done.stderr
    injector.check()
    # Bugs are shown with their traceback, deaths and deadlines are not.
    bugs = done.stderr.count("RuntimeError: injected") + done.stderr.count("MemoryError")
    assert done.stderr.count("Traceback") <= bugs

    poison = {fault.shard for fault in (*DEADLY, *MILD)}
    for shard in poison:
        assert f"failed {urls[shard]}: " in done.stderr
    assert set(job.summary(output)["failed_shards"]) == {urls[shard] for shard in poison}
    assert job.committed(output) == sorted(urls.keys() - poison)
    everything = world.expect(world.tiny_local) | world.expect(world.local)
    healthy = {token_shard_name(url) for shard, url in urls.items() if shard not in poison}
    assert job.digests(output) == {
        path: digest for path, digest in everything.items() if Path(path).stem in healthy
    }
    # One attempt may have been lost to a neighbour, before the shard came to its own fault.
    assert set(processes.values()) <= {MAX_ATTEMPTS - 1, MAX_ATTEMPTS}
    for fault in MILD:
        last = fired[fault][-1].pid
        assert sum(event.pid == last for event in fired[fault]) <= MAX_ATTEMPTS
    for fault in ONCE:
        assert len(fired[fault]) == 1
