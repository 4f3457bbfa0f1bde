"""An in-memory remote filesystem, `probe://`, that counts requests and misbehaves when told to."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any, ClassVar

import fsspec
import pytest
from fsspec.implementations.memory import MemoryFileSystem

from tatok_pipe.storage import retry


class ProbeFileSystem(MemoryFileSystem):
    """A MemoryFileSystem of its own that passes every `cat_file` through `tamper`."""

    protocol = "probe"
    store: ClassVar[dict[str, Any]] = {}
    pseudo_dirs: ClassVar[list[str]] = [""]
    calls: ClassVar[Counter[str]] = Counter()
    lock: ClassVar[threading.Lock] = threading.Lock()
    tamper: ClassVar[Callable[[int, bytes], bytes] | None] = (
        None  # (number of the call, data) -> data, or raises
    )

    def _count(self, name: str) -> int:
        with self.lock:
            self.calls[name] += 1
            return self.calls[name]

    def cat_file(self, path: str, start: int | None = None, end: int | None = None, **options: Any) -> bytes:
        number = self._count("cat_file")
        data = super().cat_file(path, start=start, end=end, **options)
        return type(self).tamper(number, data) if type(self).tamper else data  # pyright: ignore

    def ls(self, path: str, detail: bool = True, **options: Any) -> Any:
        self._count("ls")
        return super().ls(path, detail=detail, **options)

    def info(self, path: str, **options: Any) -> dict[str, Any]:
        self._count("info")
        return super().info(path, **options)

    def exists(self, path: str, **options: Any) -> bool:
        self._count("exists")
        return super().exists(path, **options)


@pytest.fixture
def probe(monkeypatch: pytest.MonkeyPatch) -> Iterator[type[ProbeFileSystem]]:
    """The filesystem class behind `probe://`, empty; retries wait a thousandth of their time."""
    fsspec.register_implementation("probe", ProbeFileSystem, clobber=True)
    monkeypatch.setattr(retry, "FIRST_DELAY_S", retry.FIRST_DELAY_S / 1000)
    yield ProbeFileSystem
    ProbeFileSystem.store.clear()
    ProbeFileSystem.pseudo_dirs[:] = [""]
    ProbeFileSystem.calls.clear()
    ProbeFileSystem.tamper = None
