"""The machinery that injects faults: every action is real, counts hold over processes, and a wrong name is loud."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.faults.injector import Fault, Injector

REPOSITORY = Path(__file__).parents[2]
READ = "import sys; from tatok_pipe.storage import open_stream; open_stream(sys.argv[1]).read()"


def start(code: str, *arguments: str, injector: Injector) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", code, *arguments],
        env={**os.environ, **injector.environment()}, cwd=REPOSITORY, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip


def end(process: subprocess.Popen[str]) -> tuple[int, str]:
    _, stderr = process.communicate(timeout=60)
    return process.returncode, stderr


@pytest.mark.parametrize(
    ("action", "code", "shown"),
    [
        ("sigkill", -signal.SIGKILL, ""),
        ("oom_kill", -signal.SIGKILL, ""),
        ("segv", -signal.SIGSEGV, ""),
        ("exit:0", 0, ""),
        ("exit:3", 3, ""),
        ("raise", 1, "RuntimeError: injected"),
        ("oom_error", 1, "MemoryError"),
    ],
)
def test_an_action_ends_the_process_once(tmp_path: Path, action: str, code: int, shown: str) -> None:
    fault = Fault("begin", action, "000001")
    injector = Injector(tmp_path, [fault])
    shard = tmp_path / "000001.tar"
    shard.write_bytes(b"x" * 100)
    with pytest.raises(AssertionError, match="never fired"):
        injector.check()
    found, stderr = end(start(READ, str(shard), injector=injector))
    assert (found, shown in stderr) == (code, True), stderr
    injector.check()
    (event,) = injector.fired(fault)
    assert (event.point, event.shard, event.action) == ("begin", "000001", action)
    # Its one time is over, and another shard never had one.
    assert end(start(READ, str(shard), injector=injector))[0] == 0
    assert len(injector.fired(fault)) == 1
    assert [event.shard for event in injector.events("begin")] == ["000001"] * 2


def test_a_hang_that_keeps_the_interpreter_stops_other_threads(tmp_path: Path) -> None:
    shard = tmp_path / "000001.tar"
    shard.write_bytes(b"x" * 100)
    beat = tmp_path / "beat"
    code = (
        "import sys, threading, time\n"
        "from tatok_pipe.storage import open_stream\n"
        "threading.Thread(target=lambda: open_stream(sys.argv[1]), daemon=True).start()\n"
        "while True:\n"
        "    open(sys.argv[2], 'w').write(str(time.time()))\n"
        "    time.sleep(0.05)\n"
    )
    for action, stops in (("hang", False), ("hang_gil", True)):
        injector = Injector(tmp_path, [Fault("begin", action, "000001")])
        process = start(code, str(shard), str(beat), injector=injector)
        try:
            deadline = time.monotonic() + 30
            while not injector.fired(injector.faults[0]) and time.monotonic() < deadline:
                time.sleep(0.05)
            time.sleep(1.0)
            before = beat.stat().st_mtime_ns
            time.sleep(0.5)
            assert (beat.stat().st_mtime_ns == before) is stops
            assert process.poll() is None
        finally:
            process.kill()
            process.communicate()
        injector.check()


def test_times_are_counted_over_processes(tmp_path: Path) -> None:
    once, always = Fault("begin", "sleep:0", "*", 2), Fault("begin", "sleep:0", "000003", None)
    injector = Injector(tmp_path, [once, always])
    shards = [tmp_path / f"{index:06d}.tar" for index in range(4)]
    for shard in shards:
        shard.write_bytes(b"x")
    running = [start(READ, str(shard), injector=injector) for shard in [*shards, shards[3]]]
    assert [end(process)[0] for process in running] == [0] * 5
    assert len(injector.fired(once)) == 2
    assert [event.shard for event in injector.fired(always)] == ["000003"] * 2
    assert len({event.pid for event in injector.events()}) == 5


def test_a_name_that_is_gone_is_loud(tmp_path: Path) -> None:
    injector = Injector(tmp_path, [Fault("tar", "raise")])
    code = (
        "import sys, types, importlib.machinery\n"
        "from tests.faults.inject import sitecustomize\n"
        "plan = sitecustomize._Plan(sys.argv[1])\n"
        "sitecustomize._Finder(plan)._wrap(types.ModuleType('tatok_pipe.images.webdataset.tar'))\n"
    )
    plan = injector.environment()["TATOK_FAULTS"]
    found, stderr = end(start(code, plan, injector=injector))
    assert found == 99 and "has no read_members" in stderr
    with pytest.raises(AssertionError, match="cannot inject"):
        injector.check()
