"""Faults inside the processes of a job. Python imports this module first where its folder is on PYTHONPATH.

TATOK_FAULTS names a JSON file (`tests/faults/injector.py` writes it):

    {"state": FOLDER, "faults": [{"id": "0", "point": "decode", "shard": "000003", "action": "sigkill", "times": 1}]}

Functions of tatok_pipe are wrapped as their modules are imported, never before. At each point a fault fires
`times` times in all processes together (null: always); a marker file, created exclusively, takes each turn, and
tells what happened. Every passage of `begin`, `before_put` and `after_put` is logged, faults or not. A function that
is to be wrapped and is not there ends the process, and leaves a file `broken-<point>`.

    begin       the shard's bytes are asked for        encode      before a batch of images is encoded
    get         some of them were read                 parquet     before the local file gets its last rows and footer
    tar         some members were parsed               before_put  the local file is complete
    decode      before an image is decoded             inside_put  local output: written, not yet under its name
                                                       after_put   published, nobody was told yet
Points of the driver, which are about no shard ("run"):
    list        before image shards are listed         start       before Ray is started, or joined
    plan        before those to do are found           finish      all are done, and nothing of it is told

This runs in every process, before anything of it: the standard library only, and nothing heavy of that.
"""

from __future__ import annotations

import functools
import importlib.abc
import importlib.machinery
import json
import os
import re
import signal
import sys
import time
from collections.abc import Callable, Iterator
from types import ModuleType
from typing import Any

_LOGGED = ("begin", "before_put", "after_put")
# The name of a shard or a key begins with its number; pictures carry it as `shard=000003` in a comment.
_NUMBER = re.compile(r"^(\d{6})(?=[-.])")
_IN_PICTURE = re.compile(rb"shard=(\d{6})")
_HEADER_BYTES = 512
_LEADS_TO_NAME = ("url", "key", "name", "sample", "samples", "image", "images", "source", "_source")
_OOM_BYTES = 256 << 20
_MEETING_S = 30.0


class _Plan:
    def __init__(self, path: str) -> None:
        with open(path) as file:
            content = json.load(file)
        self.state: str = content["state"]
        self.faults: list[dict[str, Any]] = content["faults"]
        self.points = {fault["point"] for fault in self.faults}
        self.node = next(
            (word.removeprefix("--node-id=") for word in sys.orig_argv if word.startswith("--node-id=")), ""
        )

    def reach(self, point: str, shard: str | None, *, won: bool | None = None) -> None:
        """The current process is at `point` of `shard`; what was planned for it happens now."""
        if shard is None:
            return  # not about a shard of the tests; they check that what they planned happened
        if point in _LOGGED:
            note = {"point": point, "shard": shard, "action": "", "won": won}
            self._write(f"events-{os.getpid()}", "a", note)
        for fault in self.faults:
            if fault["point"] == point and fault["shard"] in (shard, "*") and self._take_turn(fault, shard):
                name, _, argument = fault["action"].partition(":")
                if name == "meet":
                    self._meet(f"met-{fault['id']}-{shard}", int(argument))
                else:
                    _act(name, argument)

    def give_up(self, point: str, why: str) -> None:
        """The plan cannot be carried out: end this process, however many handlers are around it."""
        with open(os.path.join(self.state, f"broken-{point}"), "a") as file:
            file.write(f"{why}\n")
        os.write(2, f"fault injection: {point}: {why}\n".encode())
        os._exit(99)

    def _meet(self, name: str, num_processes: int) -> None:
        """Wait until as many processes are here, or one has waited for too long."""
        folder = os.path.join(self.state, name)
        os.makedirs(folder, exist_ok=True)
        with open(os.path.join(folder, str(os.getpid())), "w"):
            pass
        deadline = time.monotonic() + _MEETING_S
        while len(os.listdir(folder)) < num_processes and time.monotonic() < deadline:
            time.sleep(0.001)

    def _take_turn(self, fault: dict[str, Any], shard: str) -> bool:
        note = {"point": fault["point"], "shard": shard, "action": fault["action"], "won": None}
        if fault["times"] is None:
            self._write(f"fired-{fault['id']}-{os.getpid()}", "a", note)
            return True
        for turn in range(fault["times"]):
            try:
                self._write(f"fired-{fault['id']}-{turn}", "x", note)
            except FileExistsError:
                continue
            return True
        return False

    def _write(self, name: str, mode: str, note: dict[str, Any]) -> None:
        line = json.dumps(note | {"time": time.time(), "pid": os.getpid(), "node": self.node}) + "\n"
        # One write() a line: threads and processes do not mix theirs.
        flags = os.O_WRONLY | os.O_CREAT | (os.O_EXCL if mode == "x" else os.O_APPEND)
        descriptor = os.open(os.path.join(self.state, name), flags, 0o600)
        try:
            os.write(descriptor, line.encode())
        finally:
            os.close(descriptor)


def _act(name: str, argument: str) -> None:
    if name == "sleep":
        time.sleep(float(argument))
    elif name == "sigkill":
        os.kill(os.getpid(), signal.SIGKILL)
    elif name == "segv":
        import ctypes

        ctypes.string_at(0)
    elif name == "hang":
        while True:
            time.sleep(1)
    elif name == "hang_gil":
        import ctypes

        ctypes.PyDLL(None).pause.restype = None
        while True:
            ctypes.PyDLL(None).pause()  # PyDLL: the interpreter stays locked, no other thread runs
    elif name == "exit":
        sys.exit(int(argument))
    elif name == "raise":
        raise RuntimeError("injected")
    elif name == "oom_error":
        _allocate_beyond_limit()
    elif name == "oom_kill":
        # What the kernel does to the process that grew too large, without growing so far that it picks another.
        grown = bytearray(_OOM_BYTES)
        grown[::4096] = b"x" * len(grown[::4096])
        os.kill(os.getpid(), signal.SIGKILL)
    else:
        raise ValueError(f"action {name!r}")


def _allocate_beyond_limit() -> None:
    """A MemoryError from an allocation that the process's address space has no room for."""
    import resource

    with open("/proc/self/statm") as file:
        used = int(file.read().split()[0]) * resource.getpagesize()
    before = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (used + _OOM_BYTES, before[1]))
    try:
        held = []
        while True:
            held.append(bytearray(16 << 20))
    finally:
        resource.setrlimit(resource.RLIMIT_AS, before)


def _shard_of(value: Any, depth: int = 6) -> str | None:
    """The shard's number in a URL, name, key or picture, or in what leads to one."""
    if isinstance(value, str):
        match = _NUMBER.match(value.rsplit("/", 1)[-1])
        return match[1] if match else None
    if isinstance(value, (bytes, memoryview)):
        found = _IN_PICTURE.search(bytes(value[:_HEADER_BYTES]))
        return found[1].decode() if found else None
    if depth == 0 or value is None:
        return None
    inner = value if isinstance(value, (list, tuple)) else ()
    for item in (*inner[:64], *(getattr(value, name, None) for name in _LEADS_TO_NAME)):
        if item is not None and (shard := _shard_of(item, depth - 1)):
            return shard
    return None


class _Stream:
    """A stream of a shard's bytes that reaches `get` when some of them were read."""

    _READS_BEFORE = 4

    def __init__(self, plan: _Plan, stream: Any, shard: str) -> None:
        self._plan, self._stream, self._shard = plan, stream, shard
        self._num_reads = 0

    def _count(self) -> None:
        self._num_reads += 1
        if self._num_reads == self._READS_BEFORE:
            self._plan.reach("get", self._shard)

    def read(self, *arguments: Any) -> Any:
        self._count()
        return self._stream.read(*arguments)

    def readinto(self, buffer: Any) -> Any:
        self._count()
        return self._stream.readinto(buffer)

    def __enter__(self) -> _Stream:
        self._stream.__enter__()
        return self

    def __exit__(self, *error: Any) -> Any:
        return self._stream.__exit__(*error)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


def _wrap_open_stream(plan: _Plan, original: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(original)
    def open_stream(url: str, *arguments: Any, **options: Any) -> Any:
        shard = _shard_of(url)
        plan.reach("begin", shard)
        stream = original(url, *arguments, **options)
        return _Stream(plan, stream, shard) if shard else stream

    return open_stream


def _wrap_read_members(plan: _Plan, original: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(original)
    def read_members(*arguments: Any, **options: Any) -> Iterator[Any]:
        for number, member in enumerate(original(*arguments, **options)):
            if number == 3:
                plan.reach("tar", _shard_of(member))
            yield member

    return read_members


def _wrap_before(point: str) -> Callable[[_Plan, Callable[..., Any]], Callable[..., Any]]:
    def wrap(plan: _Plan, original: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(original)
        def wrapped(*arguments: Any, **options: Any) -> Any:
            plan.reach(point, _shard_of([*arguments, *options.values()]))
            return original(*arguments, **options)

        return wrapped

    return wrap


def _wrap_stage(point: str) -> Callable[[_Plan, Callable[..., Any]], Callable[..., Any]]:
    def wrap(plan: _Plan, original: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(original)
        def wrapped(*arguments: Any, **options: Any) -> Any:
            plan.reach(point, "run")
            return original(*arguments, **options)

        return wrapped

    return wrap


def _wrap_commit(plan: _Plan, original: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(original)
    def commit_shard(*arguments: Any, **options: Any) -> Any:
        shard = _shard_of([*arguments, *options.values()])
        plan.reach("before_put", shard)
        result = original(*arguments, **options)
        plan.reach("after_put", shard, won=result)
        return result

    return commit_shard


# Where a function is defined, so that whoever imports it by name gets the wrapped one.
_WRAPPED: dict[
    str, tuple[str, tuple[str, ...], Callable[[_Plan, Callable[..., Any]], Callable[..., Any]]]
] = {
    "tatok_pipe.storage.reader": ("open_stream", ("begin", "get"), _wrap_open_stream),
    "tatok_pipe.images.webdataset.tar": ("read_members", ("tar",), _wrap_read_members),
    "tatok_pipe.images.decode": ("decode_crops", ("decode",), _wrap_before("decode")),
    "tatok_pipe.encoding.shard_tokenizer": ("ShardTokenizer._encode", ("encode",), _wrap_before("encode")),
    "tatok_pipe.tokens.format": ("ShardWriter.close", ("parquet",), _wrap_before("parquet")),
    "tatok_pipe.tokens.commit": ("commit_shard", ("before_put", "after_put"), _wrap_commit),
    "tatok_pipe.commands.tokenize_corpus.setup": ("expand_input", ("list",), _wrap_stage("list")),
    "tatok_pipe.commands.tokenize_corpus.plan": ("make_plan", ("plan",), _wrap_stage("plan")),
    "tatok_pipe.ray_runtime.cluster": ("_init", ("start",), _wrap_stage("start")),
    "tatok_pipe.commands.tokenize_corpus.outcome": ("finish", ("finish",), _wrap_stage("finish")),
}


class _Finder(importlib.abc.MetaPathFinder):
    """Finds the modules of _WRAPPED as usual and wraps their function when they have run."""

    def __init__(self, plan: _Plan) -> None:
        self._plan = plan

    def find_spec(
        self, fullname: str, path: Any, target: ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        if fullname not in _WRAPPED:
            return None
        spec = importlib.machinery.PathFinder.find_spec(fullname, path, target)
        if spec is None or spec.loader is None:
            return None
        run = spec.loader.exec_module

        def exec_module(module: ModuleType) -> None:
            run(module)
            self._wrap(module)

        spec.loader.exec_module = exec_module  # type: ignore[method-assign]
        return spec

    def _wrap(self, module: ModuleType) -> None:
        path, points, wrap = _WRAPPED[module.__name__]
        *owners, name = path.split(".")
        holder: Any = module
        for owner in owners:
            holder = getattr(holder, owner, None)
        original = getattr(holder, name, None)
        if original is not None:
            setattr(holder, name, wrap(self._plan, original))
        elif any(point in _LOGGED or point in self._plan.points for point in points):
            self._plan.give_up(points[0], f"{module.__name__} has no {path}")


def _install(path: str) -> None:
    plan = _Plan(path)
    sys.meta_path.insert(0, _Finder(plan))
    if "inside_put" in plan.points:
        link = os.link

        @functools.wraps(link)
        def reaching_link(source: Any, target: Any, *arguments: Any, **options: Any) -> None:
            plan.reach("inside_put", _shard_of(os.fspath(target)))
            link(source, target, *arguments, **options)

        os.link = reaching_link


if "TATOK_FAULTS" in os.environ:
    _install(os.environ["TATOK_FAULTS"])
