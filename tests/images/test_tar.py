"""Tar framing: whole archives give every member, whoever wrote them; damaged ones are not read past."""

from __future__ import annotations

import io
import shutil
import subprocess
import tarfile

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tatok_pipe.images.webdataset.tar import BrokenTar, Member, read_members

FORMATS = {"ustar": tarfile.USTAR_FORMAT, "gnu": tarfile.GNU_FORMAT, "pax": tarfile.PAX_FORMAT}


class Trickle(io.RawIOBase):
    """A stream like a socket: no seeking, and fewer bytes than asked for."""

    def __init__(self, data: bytes, most: int = 700) -> None:
        self.inner = io.BytesIO(data)
        self.most = most

    def read(self, size: int = -1) -> bytes:
        assert size > 0, "read(-1) would hold the whole shard"
        return self.inner.read(min(size, self.most))

    def seek(self, *_) -> int:
        raise io.UnsupportedOperation("seek")


def pack(files: list[tuple[str, bytes]], format: str = "ustar", **attributes) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=FORMATS[format]) as tar:
        for name, data in files:
            info = tarfile.TarInfo(name)
            info.size = len(data)
            for attribute, value in attributes.items():
                setattr(info, attribute, value)
            tar.addfile(info, io.BytesIO(data))
    return buffer.getvalue()


OPTIONS = {"wanted": lambda name, size: True, "max_members": 10_000, "max_shard_bytes": 1 << 62}


def read(data: bytes, **options) -> list[Member]:
    return list(read_members(Trickle(data), **OPTIONS | options))  # pyright: ignore[reportArgumentType]


def pairs(members: list[Member]) -> list[tuple[str, bytes | None]]:
    return [(member.name, member.data) for member in members]


def break_at(data: bytes, **options) -> tuple[int, str]:
    """How many members come before BrokenTar, and its message."""
    members = read_members(io.BytesIO(data), **OPTIONS | options)
    num_members = 0
    with pytest.raises(BrokenTar) as caught:
        for _ in members:
            num_members += 1
    return num_members, str(caught.value)


THREE = [("a.jpg", b"A" * 700), ("b.jpg", b"B" * 512), ("c.jpg", b"")]


@pytest.mark.parametrize("format", FORMATS)
@pytest.mark.parametrize(
    "name", ["a.jpg", "d/" * 40 + "long.jpg", "x" * 95 + ".jpg", "ä/ö.jpg", "../../etc/a.jpg"]
)
def test_members_of_every_format(format, name):
    files = [(name, b"first"), *THREE]
    assert pairs(read(pack(files, format))) == files


def test_very_long_names_need_an_extended_header():
    files = [("x" * 5000 + ".jpg", b"1"), ("y.jpg", b"2")]  # the long name must not stick to the next member
    assert pairs(read(pack(files, "gnu"))) == files
    assert pairs(read(pack(files, "pax"))) == files


def test_pax_size_overrides_the_header():
    info = tarfile.TarInfo("a.jpg")
    info.size = 0
    info.pax_headers = {"size": "3", "comment": "x=y\nz"}
    header = info.tobuf(tarfile.PAX_FORMAT)
    data = header + b"abc".ljust(512, b"\0") + bytes(1024)
    assert pairs(read(data)) == [("a.jpg", b"abc")]


def test_names_that_are_not_utf_8():
    raw = pack([("?.jpg", b"1")]).replace(b"?.jpg", b"\xff.jpg", 1)
    header = bytearray(raw[:512])
    header[148:156] = b" " * 8
    header[148:156] = b"%06o\0 " % sum(header)
    assert pairs(read(bytes(header) + raw[512:])) == [("\\xff.jpg", b"1")]


def test_only_wanted_small_plain_files_are_kept():
    files = [("a.pkl", b"cos\nsystem\n"), ("big.jpg", bytes(1001)), ("fits.jpg", bytes(1000))]
    members = read(pack(files), wanted=lambda name, size: name.endswith(".jpg") and size <= 1000)
    assert pairs(members) == [("a.pkl", None), ("big.jpg", None), ("fits.jpg", bytes(1000))]
    assert [member.size for member in members] == [11, 1001, 1000]


@pytest.mark.parametrize("type", [tarfile.LNKTYPE, tarfile.SYMTYPE, tarfile.FIFOTYPE, tarfile.CHRTYPE, b"V"])
def test_what_is_no_plain_file_has_no_data(type):
    data = pack([("a.jpg", b"")], type=type, linkname="/etc/passwd")
    assert read(data) == [Member("a.jpg", 0, False, None)]


def test_directories_are_passed_over():
    assert read(pack([("d", b"")], type=tarfile.DIRTYPE)) == []
    assert read(pack([])) == []


def test_gnu_tar(tmp_path):
    if shutil.which("tar") is None:
        pytest.skip("no tar command")
    for name, data in [("a.jpg", b"A" * 700), ("b" * 150 + ".jpg", b"B")]:
        (tmp_path / name).write_bytes(data)
    (tmp_path / "c.jpg").hardlink_to(tmp_path / "a.jpg")
    packed = subprocess.run(
        ["tar", "-cf", "-", "--sort=name", "."], cwd=tmp_path, capture_output=True, check=True
    ).stdout
    members = read(packed)
    assert pairs(members) == [("./a.jpg", b"A" * 700), (f"./{'b' * 150}.jpg", b"B"), ("./c.jpg", None)]
    assert not members[2].is_file


@given(cut=st.integers(0, 10239))
@settings(max_examples=300, deadline=None)
def test_a_cut_is_noticed_wherever_it_is(cut):
    data = pack(THREE)
    end = 512 + 1024 + 512 + 512 + 512  # header and body of each member; then the marker
    try:
        members = read(data[:cut])
    except BrokenTar:
        assert cut < end + 512
    else:
        assert cut >= end + 512 and pairs(members) == THREE


def test_what_comes_before_a_cut_is_given():
    data = pack(THREE)
    assert break_at(data[: 512 + 1024 + 200]) == (1, "cut off at byte 1736, within a member header")
    assert break_at(data[: 512 + 700]) == (0, "cut off at byte 1212, 324 bytes before the end of a member")
    assert break_at(data[: 512 + 600]) == (0, "cut off at byte 1112, 424 bytes before the end of a member")
    number, message = break_at(data[: 512 + 1024])
    assert number == 1 and message.startswith("cut off at byte 1536: there is no end-of-archive marker")
    assert break_at(b"") == (0, "the file has 0 bytes")


def test_missing_marker_can_be_allowed_but_not_a_cut():
    data = pack(THREE)
    assert pairs(read(data[:3072], require_end_marker=False)) == THREE
    assert break_at(data[:2000], require_end_marker=False)[0] == 1
    long_name = pack([("x" * 300 + ".jpg", b"1")], "gnu")
    assert "behind an extended header" in break_at(long_name[:1024], require_end_marker=False)[1]


def test_damaged_header_is_not_the_end():
    data = bytearray(pack(THREE))
    data[1536 + 3] ^= 1
    with tarfile.open(fileobj=io.BytesIO(bytes(data)), mode="r|") as tar:
        assert tar.getnames() == ["a.jpg"]  # which is why the standard library's reader is not used
    assert break_at(bytes(data)) == (1, "byte 1536: a damaged member header (bad checksum)")


def test_hole_of_zeros_is_not_the_end():
    data = bytearray(pack(THREE))
    data[1536:2048] = bytes(512)
    number, message = break_at(bytes(data))
    assert number == 1 and "data follows the end-of-archive marker" in message
    assert "data follows" in break_at(pack(THREE) + pack(THREE))[1]  # cat a.tar b.tar
    number, message = break_at(pack(THREE)[:1536] + bytes(3 << 20))
    assert number == 1 and message.endswith("the file has a hole")


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"<html>404</html>" * 100, "not a tar archive: it begins with b'<html>404</html>'"),
        (b"\x1f\x8b\x08" + bytes(range(256)) * 8, "not a tar archive but a compressed file"),
        (b"PK\x03\x04" + bytes(600), "a zip archive"),
        (b"7z\xbc\xaf\x27\x1c" + bytes(600), "not a tar archive but a 7z archive"),
        (b"\xff\xd8\xff" + bytes(600), "not a tar archive but a loose image"),
        (b"PAR1" + bytes(600), "a Parquet file"),
        (b"short", "cut off at byte 5"),
    ],
)
def test_what_is_no_tar(data, message):
    number, found = break_at(data)
    assert number == 0 and found.startswith(message)


def forged(**fields: int | str | bytes) -> bytes:
    info = tarfile.TarInfo("a.jpg")
    for field, value in fields.items():
        setattr(info, field, value)
    return info.tobuf(tarfile.GNU_FORMAT)


def test_extended_headers_do_not_fill_the_memory():
    for type in (tarfile.GNUTYPE_LONGNAME, tarfile.XHDTYPE, tarfile.XGLTYPE):
        assert (
            "an extended header of 8589934592 bytes"
            in break_at(forged(type=type, size=1 << 33) + bytes(512))[1]
        )
    many = forged(type=tarfile.GNUTYPE_LONGNAME, size=4) + b"name".ljust(512, b"\0")
    assert pairs(read(many * 5000 + forged() + bytes(1024))) == [("name", b"")]  # no recursion


@pytest.mark.parametrize(
    "payload",
    [b"garbage", b"99 path=a\n", b"0 path=a\n", b"10 path=abc", b"12 size=-34\n", b"13 size=0x10\n"],
)
def test_damaged_pax_headers(payload):
    header = forged(type=tarfile.XHDTYPE, size=len(payload)) + payload.ljust(512, b"\0")
    assert "extended header" in break_at(header + forged() + bytes(1024))[1]


def test_impossible_sizes():
    assert "a member of -512 bytes" in break_at(forged(size=-512) + bytes(1024))[1]
    assert "before the end of a member" in break_at(forged(size=1 << 60) + bytes(1024))[1]


def test_limits_of_the_archive():
    data = pack([*THREE, ("d", b"")])
    assert len(read(data, max_members=4)) == 4
    number, message = break_at(data, max_members=3)
    assert (number, message) == (3, "more than max_members=3 members")
    assert len(read(data, max_shard_bytes=512 * 4 + 700 + 324 + 512)) == 4
    number, message = break_at(data, max_shard_bytes=512 * 4 + 700 + 324 + 511)
    assert number == 3 and message.endswith("beyond max_shard_bytes=3583")
    # By what a header declares, before the bytes are waited for.
    assert "beyond max_shard_bytes" in break_at(forged(size=1 << 60), max_shard_bytes=1 << 40)[1]
    many = forged(type=tarfile.XGLTYPE, size=512) + bytes(512)
    assert "max_shard_bytes=10000 of extended headers" in break_at(many * 100, max_shard_bytes=10_000)[1]


def test_sparse_members_are_refused():
    assert "--sparse" in break_at(forged(type=tarfile.GNUTYPE_SPARSE) + bytes(1024))[1]


@given(data=st.binary(max_size=3000), start=st.integers(0, 3000))
@settings(max_examples=200, deadline=None)
def test_damage_anywhere_ends_in_members_or_brokentar(data, start):
    archive = pack(THREE, "pax")
    damaged = archive[:start] + data + archive[start + len(data) :]
    try:
        for member in read(damaged):
            assert member.data is None or len(member.data) == member.size
    except BrokenTar as error:
        assert str(error)
