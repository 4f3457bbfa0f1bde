"""Tars behind a compression, and zip archives: the same samples as of the tar, made with other tools than ours."""

from __future__ import annotations

import bz2
import gzip
import hashlib
import io
import lzma
import tarfile
import zipfile
from pathlib import Path

import pyarrow as pa
import pytest

from tatok_pipe.images.limits import ShardLimits
from tatok_pipe.images.notices import Notices
from tatok_pipe.images.shard_errors import LastingShardError, ShardError
from tatok_pipe.images.source import hash_shard, open_samples, shard_info
from tatok_pipe.images.webdataset.compressed import READERS, TAR_SUFFIXES, is_compressed_tar
from tatok_pipe.records import ImageSample, Quarantined
from tests.pictures import crop_members, write_shard
from tests.storage.web import WebServer


def arrow(codec: str, data: bytes) -> bytes:
    sink = pa.BufferOutputStream()
    with pa.CompressedOutputStream(sink, codec) as stream:
        stream.write(data)
    return sink.getvalue().to_pybytes()


COMPRESS = {
    "tar.gz": gzip.compress,
    "tgz": lambda data: (
        gzip.compress(data[:1000]) + gzip.compress(data[1000:])
    ),  # as parallel packers write it
    "tar.bz2": bz2.compress,
    "tbz2": bz2.compress,
    "tar.xz": lzma.compress,
    "txz": lzma.compress,
    "tar.zst": lambda data: arrow("zstd", data),
    "tzst": lambda data: arrow("zstd", data),
    "tar.lz4": lambda data: arrow("lz4", data),
}


@pytest.fixture(scope="module")
def tar(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return Path(write_shard(tmp_path_factory.mktemp("tar") / "a.tar", crop_members(6)))


def read(url: str, **options: object) -> list[ImageSample | Quarantined]:
    with open_samples(url, info=shard_info(url), **options) as samples:  # type: ignore[arg-type]
        return list(samples)


def write_zip(path: Path, members: list[tuple[str, bytes]], compression: int = zipfile.ZIP_DEFLATED) -> str:
    with zipfile.ZipFile(path, "w", compression) as archive:
        for name, data in members:
            archive.writestr(name, data)
    return str(path)


def test_every_suffix_of_a_tar_is_tried_here() -> None:
    known = {suffix for suffixes in READERS for suffix in suffixes}
    assert known == {f".{name}" for name in COMPRESS} == {*TAR_SUFFIXES} - {".tar"}
    assert is_compressed_tar("s3://b/A.TAR.GZ") and is_compressed_tar("http://h/a.tgz?sig=x")
    assert not is_compressed_tar("a.tar") and not is_compressed_tar("a.gz")


@pytest.mark.parametrize("name", COMPRESS)
def test_a_compressed_tar_has_the_samples_of_the_tar(tmp_path: Path, tar: Path, name: str) -> None:
    path = tmp_path / f"a.{name}"
    path.write_bytes(COMPRESS[name](tar.read_bytes()))
    hasher = hashlib.sha256()
    assert read(str(path), hasher=hasher) == read(str(tar)) != []
    assert hasher.hexdigest() == hashlib.sha256(path.read_bytes()).hexdigest() == hash_shard(str(path))


@pytest.mark.parametrize("name", COMPRESS)
@pytest.mark.parametrize("share", [0.0, 0.001, 0.5, 0.9999])
def test_a_compressed_tar_that_is_cut_off_is_refused(
    tmp_path: Path, tar: Path, name: str, share: float
) -> None:
    data = COMPRESS[name](tar.read_bytes())
    path = tmp_path / f"a.{name}"
    path.write_bytes(data[: int(len(data) * share)])
    with pytest.raises(ShardError, match="cut off|0 bytes"):
        read(str(path))


@pytest.mark.parametrize("name", ["tar.gz", "tar.bz2", "tar.xz"])  # the others may carry no checksum
def test_a_flipped_bit_of_a_compressed_tar_is_found(tmp_path: Path, tar: Path, name: str) -> None:
    data = bytearray(COMPRESS[name](tar.read_bytes()))
    data[len(data) // 2] ^= 1
    (tmp_path / f"a.{name}").write_bytes(data)
    with pytest.raises(ShardError):
        read(str(tmp_path / f"a.{name}"))


def test_what_is_behind_a_compressed_name_and_is_none(tmp_path: Path) -> None:
    (tmp_path / "a.tar.gz").write_bytes(b"<html>404</html>" * 100)
    with pytest.raises(ShardError, match="damaged or cut off in its compression, behind byte 0"):
        read(str(tmp_path / "a.tar.gz"))
    (tmp_path / "b.tar.gz").write_bytes(gzip.compress(b"<html>404</html>" * 100))
    with pytest.raises(LastingShardError, match="not a tar archive: it begins with b'<html>"):
        read(str(tmp_path / "b.tar.gz"))


def test_the_stores_own_error_is_no_damage(tar: Path) -> None:
    data = gzip.compress(tar.read_bytes())
    with WebServer({"/a.tgz": data}) as server:
        url = f"{server.url}/a.tgz"
        info = shard_info(url)
        server.statuses = [403] * 50
        with pytest.raises(PermissionError), open_samples(url, info=info) as samples:
            list(samples)
    with WebServer({"/a.tgz": data}, ranges=False) as server:
        assert read(f"{server.url}/a.tgz") == read(str(tar))


def test_files_of_a_sample_apart_are_brought_together(tmp_path: Path) -> None:
    members = crop_members(4)
    apart = write_shard(tmp_path / "apart.tar", members[::2] + members[1::2])
    (tmp_path / "apart.tgz").write_bytes(gzip.compress(Path(apart).read_bytes()))
    expected = read(write_shard(tmp_path / "a.tar", members))
    assert read(str(tmp_path / "apart.tgz"), regroup=True) == expected
    assert read(write_zip(tmp_path / "apart.zip", members[::2] + members[1::2])) == expected


@pytest.mark.parametrize(
    "compression", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA]
)
def test_a_zip_has_the_samples_of_the_tar(tmp_path: Path, tar: Path, compression: int) -> None:
    path = write_zip(tmp_path / "a.zip", crop_members(6), compression)
    hasher = hashlib.sha256()
    assert read(path, hasher=hasher) == read(str(tar))
    assert hasher.hexdigest() == hashlib.sha256(Path(path).read_bytes()).hexdigest()
    with WebServer({"/a.zip": Path(path).read_bytes()}) as server:
        assert read(f"{server.url}/a.zip") == read(str(tar))


def test_what_a_zip_has_besides_samples(tmp_path: Path) -> None:
    members = [
        ("__MACOSX/._a.jpg", b"x"),
        (".DS_Store", b"x"),
        ("d/", b""),
        ("README", b"x"),
        *crop_members(1),
    ]
    notices = Notices()
    (sample,) = read(write_zip(tmp_path / "a.zip", members), notices=notices)
    assert isinstance(sample, ImageSample)
    assert [notice.example for notice in notices.all] == ["README"]


def test_broken_zips(tmp_path: Path) -> None:
    path = Path(write_zip(tmp_path / "a.zip", crop_members(2)))
    data = path.read_bytes()
    for content in (b"", data[: len(data) // 2], data[:-4], b"<html>404</html>" * 100):
        path.write_bytes(content)
        with pytest.raises(ShardError, match="no zip archive, or not the whole of one"):
            read(str(path))
    flipped = bytearray(data)
    flipped[data.index(crop_members(1)[0][0].encode()) + 200] ^= 1  # within the first image
    path.write_bytes(flipped)
    with pytest.raises(ShardError, match="damaged"):
        read(str(path))
    path = Path(write_zip(tmp_path / "b.zip", [("a.jpg", bytes(100_000)), ("a.cls", b"1")]))
    with pytest.raises(LastingShardError, match="more than max_members=1 members, after 0 samples; split"):
        read(str(path), limits=ShardLimits(max_members=1))
    with pytest.raises(LastingShardError, match="members of 100001 bytes, more than max_shard_bytes=100000"):
        read(str(path), limits=ShardLimits(max_shard_bytes=100_000))
    (sample,) = read(str(path), limits=ShardLimits(max_member_bytes=99_999))
    assert isinstance(sample, Quarantined) and sample.error == "TooManyBytes"


def test_an_encrypted_zip(tmp_path: Path) -> None:
    """The flag alone is what an archive with a password has; nothing is decrypted before it is looked at."""
    path = Path(write_zip(tmp_path / "a.zip", [("a.jpg", b"x" * 100)], zipfile.ZIP_STORED))
    data = bytearray(path.read_bytes())
    data[6] |= 1
    data[data.index(b"PK\x01\x02") + 8] |= 1
    path.write_bytes(data)
    with pytest.raises(LastingShardError, match=r"a\.jpg is encrypted.*pack it again without a password"):
        read(str(path))


def test_tar_made_by_tarfile_itself(tmp_path: Path, tar: Path) -> None:
    with tarfile.open(tmp_path / "b.tar.gz", "w:gz") as packed:
        for name, data in crop_members(6):
            info = tarfile.TarInfo(name)
            info.size = len(data)
            packed.addfile(info, io.BytesIO(data))
    assert read(str(tmp_path / "b.tar.gz")) == read(str(tar))
