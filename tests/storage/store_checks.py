"""What every store has to do, checked against one at a URL, in a process of its own: clients read the environment when
they are imported.

    python -m tests.storage.store_checks az://bucket/prefix [NAME_TO_LEAVE_OUT ...]
"""

from __future__ import annotations

import random
import sys
from typing import Any

import fsspec

from tatok_pipe import storage
from tatok_pipe.errors import UserError
from tatok_pipe.images.shard_list import expand_shards

from .servers import make_bucket

ODD_NAMES = (
    "a b.tar",
    "a+b.tar",
    "a#b.tar",
    "a%20b.tar",
    "a%b.tar",
    "ünï-日本.tar",
    "a=b&c.tar",
    "a?b.tar",
    "a;b.tar",
)
ODD_NAMES += ("a[1].tar", "a{1,2}.tar", "a*b.tar", "a'b.tar", "a~.tar", " lead.tar", "trail .tar", "a..b.tar")


def check(base: str, left_out: tuple[str, ...] = ()) -> None:
    protocol = base.partition("://")[0]
    make_bucket(base)
    check_content(f"{base}/content")
    check_names(f"{base}/odd", [name for name in ODD_NAMES if name not in left_out])
    check_shards(f"{base}/shards")
    for name in ("0.tar", "*.tar", "", "{0..50}.tar"):
        if protocol == "hf":
            told = raised(UserError, expand_shards, f"hf://datasets/no-such/place/{name}")
            assert "has no such repository" in told and "hf://datasets/no-such/place" in told, told
            continue
        told = raised(UserError, expand_shards, f"{protocol}://no-such-place/{name}")
        kind = "container" if protocol == "az" else "bucket"
        assert f"{kind} no-such-place does not exist" in told and f"{protocol}://no-such-place" in told, told


def check_content(base: str) -> None:
    data = random.Random(0).randbytes(100_000)
    for size in (0, 1, 10, 100_000):
        url = f"{base}/{size}.bin"
        put(data[:size], url)
        assert storage.exists(url) and storage.file_info(url).size_bytes == size
        assert storage.read_bytes(url) == data[:size]
        for tail in (1, 10, 100):
            assert storage.read_tail(url, tail) == data[:size][-tail:], (size, tail)
        with storage.open_stream(url, part_bytes=1000, num_parallel=3) as stream:
            assert stream.read() == data[:size]
        # By the driver's own file object.
        filesystem, path = storage.open_filesystem(url)
        with filesystem.open(path, "rb") as file:
            assert file.read() == data[:size]
    url = f"{base}/published"
    assert storage.publish_bytes(data, url, exclusive=True)
    assert not storage.publish_bytes(b"other", url, exclusive=True)
    file: Any = storage.open_random_access(url, info=storage.file_info(url), block_bytes=999)
    with file:
        file.seek(-7, 2)
        assert file.read(50) == data[-7:]
        file.seek(500)
        assert file.read(1000) == data[500:1500]
    sizes = {"0.bin": 0, "1.bin": 1, "10.bin": 10, "100000.bin": 100_000, "published": 100_000}
    assert storage.list_files(base) == sizes
    raised(FileNotFoundError, storage.file_info, f"{base}/nothing")
    raised(FileNotFoundError, storage.read_bytes, f"{base}/nothing")
    assert not storage.exists(f"{base}/nothing") and storage.list_files(f"{base}/nothing") == {}
    storage.remove(f"{base}/1.bin")
    storage.remove(f"{base}/1.bin")
    assert storage.list_files(base) == {name: size for name, size in sizes.items() if size != 1}


def put(data: bytes, url: str) -> None:
    filesystem, path = storage.open_filesystem(url)
    filesystem.makedirs(path.rpartition("/")[0], exist_ok=True)
    filesystem.pipe_file(path, data)


def check_names(base: str, names: list[str]) -> None:
    for name in names:
        put(name.encode(), f"{base}/{name}")
    urls = sorted(f"{base}/{name}" for name in names)
    for spec in (base, f"{base}/*.tar"):
        assert sorted(shard.url for shard in expand_shards(spec)) == urls, spec
    for url in urls:
        (shard,) = expand_shards(url)
        assert shard.url == url and storage.read_bytes(url) == url.rpartition("/")[2].encode()


def check_shards(base: str) -> None:
    for index in range(40):
        put(bytes(index), f"{base}/part-{index % 2}/{index:02d}.tar")
    even = [f"{base}/part-0/{index:02d}.tar" for index in range(0, 40, 2)]
    for spec in (
        f"{base}/part-0",
        f"{base}/part-0/*.tar",
        f"{base}/*0/??.tar",
        f"{base}/part-0/{{00..38..2}}.tar",
    ):
        if base.startswith("sftp://") and "?" in spec:
            assert "takes no '?' in names and patterns" in raised(UserError, expand_shards, spec)
            continue
        shards = expand_shards(spec)
        assert [shard.url for shard in shards] == even, spec
        assert [shard.size_bytes for shard in shards] == list(range(0, 40, 2))
    assert len(expand_shards(base)) == len(expand_shards(f"{base}/**/*.tar")) == 40
    assert storage.list_folders(base) == ["part-0", "part-1"]
    storage.remove_folder(f"{base}/part-0")
    assert storage.list_folders(base) == ["part-1"]
    told = raised(UserError, expand_shards, f"{base}/part-1/{{01..41..2}}.tar")
    assert "1 of 21 image shards do not exist" in told


def raised(kind: type[Exception], action: Any, url: str) -> str:
    try:
        action(url)
    except kind as error:
        return str(error)
    raise AssertionError(f"{action.__name__}({url!r}) raised no {kind.__name__}")


if __name__ == "__main__":
    check(sys.argv[1], tuple(sys.argv[2:]))
    print("fsspec", fsspec.__version__, "ok")
