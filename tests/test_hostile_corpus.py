"""A corpus of everything that may lie in a bucket, through the real chain in a process of its own: every sample
is counted, every broken shard is named, memory is bounded, and nothing is written but the output.
"""

from __future__ import annotations

import gzip
import io
import random
import struct
import tarfile
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import accumulate, groupby
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from tatok_pipe.tokens.format import token_shard_name

from .measured import Outcome, tokenize_measured
from .pictures import Member, encode, png_bomb, small_tokenizer, write_shard

pytestmark = pytest.mark.slow

MAX_PEAK_BYTES = 3_000_000_000
IMAGE = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
GOOD = encode(Image.effect_mandelbrot((40, 30), (-2, -1, 1, 1), 40).convert("RGB"))
PIXEL = encode(Image.new("RGB", (1, 1), "red"))


@dataclass(frozen=True)
class Expected:
    """What must become of a shard: so many images and samples in all, or an error with this text."""

    num_images: int = 0
    num_samples: int = 0
    error: str = ""


@dataclass(frozen=True)
class Corpus:
    """The shards with what is expected of them, and what became of them."""

    expected: dict[str, Expected]  # by path
    outcomes: dict[str, Outcome]
    output: Path
    peak_bytes: int
    before: dict[str, bytes]  # every file around the process but the output
    after: dict[str, bytes]

    def written(self, path: str) -> tuple[Path, Path]:
        """Where rows and refusals of a shard are, if there are any."""
        name = f"{token_shard_name(path)}.parquet"
        return self.output / "data" / name, self.output / "quarantine" / name


def real_png(side: int, bits: int, colour: int, channels: int) -> bytes:
    """A whole PNG of zeros, compressed row by row."""
    packer = zlib.compressobj(9)
    row = bytes(1 + side * bits * channels // 8)
    data = b"".join(packer.compress(row * 64) for _ in range(side // 64)) + packer.flush()

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", side, side, bits, colour, 0, 0, 0)
    palette = chunk(b"PLTE", bytes(6)) if colour == 3 else b""
    return (
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + palette + chunk(b"IDAT", data) + chunk(b"IEND", b"")
    )


def bombs() -> list[Member]:
    """Few bytes that declare, or are, very many pixels."""
    palette = real_png(16384, 1, 3, 1)
    assert len(palette) < 40_000  # 805 MB as RGB
    jpeg = encode(Image.new("RGB", (16, 16)), "JPEG")
    sof = jpeg.index(b"\xff\xc0")
    gif = encode(Image.new("P", (16, 16)), "GIF")
    tiff = bytearray(encode(Image.new("L", (16, 16)), "TIFF"))
    for tag in (256, 257):  # width, height
        at = tiff.index(
            struct.pack("<HH", tag, 4) if struct.pack("<HH", tag, 4) in tiff else struct.pack("<HH", tag, 3)
        )
        tiff[at + 2 : at + 12] = struct.pack("<HII", 4, 1, 60_000)
    webp = encode(Image.new("RGBA", (16, 16), (1, 2, 3, 4)), "WEBP", lossless=True)
    at = webp.index(b"\x2f", 12)
    bmp = encode(Image.new("RGB", (16, 16)), "BMP")
    return [
        ("palette.png", palette),
        ("grey.png", real_png(16384, 8, 0, 1)),
        ("declared.png", png_bomb(60_000)),
        ("jpeg.jpg", jpeg[: sof + 5] + struct.pack(">HH", 65_500, 65_500) + jpeg[sof + 9 :]),
        ("gif.gif", gif[:6] + struct.pack("<HH", 65_535, 65_535) + gif[10:]),
        ("tiff.tif", bytes(tiff)),
        ("webp.webp", webp[: at + 1] + b"\xff\xff\xff\x0f" + webp[at + 5 :]),
        ("bmp.bmp", bmp[:18] + struct.pack("<ii", 60_000, 60_000) + bmp[26:]),
        ("ppm.ppm", b"P6 60000 60000 255\n" + bytes(100)),
    ]


def many_members(path: Path, num_members: int) -> None:
    """Tiny files, every fifth sample a picture; each has a label."""
    with tarfile.open(path, "w") as tar:
        for i in range(num_members // 2):
            data = PIXEL if i % 500 == 0 else b"x"
            for name, content in ((f"{i:06d}.png", data), (f"{i:06d}.cls", b"1")):
                info = tarfile.TarInfo(name)
                info.size = len(content)
                tar.addfile(info, io.BytesIO(content))


def special_members(path: Path, outside: Path) -> None:
    """Names that point elsewhere and members that are no files, with pictures between them."""
    names = [
        "../../escaped.png", "/../../../escaped.png", f"{outside}/escaped.png", "a/../../escaped.png", "~/home.png",
        "C:\\windows.png", "con.png", "a\nb.png", "ü/ö.png", "-rf.png", "$(touch escaped).png", "|touch escaped|.png",
    ]  # fmt: skip
    with tarfile.open(path, "w", format=tarfile.GNU_FORMAT, encoding="utf-8") as tar:
        for name in [*names, "bytes-\udcff\udcfe.png", "k" * 5000 + ".png", "n" * 300 + ".png"]:
            info = tarfile.TarInfo(name)
            info.size = len(PIXEL)
            tar.addfile(info, io.BytesIO(PIXEL))
        for i, kind in enumerate([tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.CHRTYPE, tarfile.FIFOTYPE]):
            info = tarfile.TarInfo(f"special{i}.png")
            info.type, info.linkname, info.devmajor, info.devminor = kind, "/etc/passwd", 1, 5
            tar.addfile(info)
        folder = tarfile.TarInfo("folder.png")
        folder.type = tarfile.DIRTYPE
        tar.addfile(folder)


def count_samples(path: Path, *, is_interleaved: bool) -> int:
    """How many samples a tar has, by the standard library: its keys, or the runs of one key."""
    keys = []
    with tarfile.open(path, "r:", encoding="utf-8") as tar:
        for info in tar:
            base = info.name.split("/")[-1]
            if not info.isdir() and not base.startswith(".") and "." in base:
                keys.append(info.name[: len(info.name) - len(base)] + base.split(".")[0])
    return len(set(keys)) if is_interleaved else sum(1 for _ in groupby(keys))


def write_readable(folder: Path, outside: Path) -> Iterator[tuple[Path, Expected]]:
    """Shards that are tar or Parquet to their end, whatever lies in them."""

    def tar(name: str, members: list[Member], num_images: int, *, is_interleaved: bool = False):
        path = Path(write_shard(folder / name, members))
        return path, Expected(num_images, count_samples(path, is_interleaved=is_interleaved))

    yield tar("empty.tar", [], 0)
    yield tar("bombs.tar", [("first.png", GOOD), *bombs(), ("last.png", GOOD)], 2)
    yield tar(
        "rubbish.tar",
        [
            ("a.jpg", b"<!DOCTYPE html><html>404</html>"), ("b.png", b""), ("c.cls", b"1"), ("d.jpg", GOOD),
            ("d.cls", b""), ("e.png", GOOD), ("e.json", b"[" * 200_000), ("f.png", GOOD), ("f.txt", b"\xff\xfe"),
            ("g.png", GOOD[: len(GOOD) // 2]), ("h.png", GOOD), ("h.pkl", b"cos\nsystem\n(S'touch escaped'\ntR."),
            ("i.jpg", random.Random(0).randbytes(3000)), ("j.gif", b"GIF89a"), ("k.png", b"\x89PNG\r\n\x1a\n"),
            ("README", b"of no sample"), ("._l.png", b"of no sample"),
        ],
        1,
    )  # fmt: skip
    pairs = [
        ("a.png", GOOD),
        ("a.cls", b"1"),
        ("b.png", GOOD),
        ("a.png", GOOD),
        ("b.png", b"x"),
        ("c.png", GOOD),
    ]
    yield tar("duplicate.tar", pairs, 3)
    apart = [(f"{i}.{kind}", GOOD if kind == "png" else b"5") for kind in ("png", "cls") for i in range(9)]
    yield tar("interleaved.tar", apart, 9, is_interleaved=True)
    mixed = [*apart, ("3.jpg", GOOD), ("4.cls", b"5"), ("10.cls", b"1"), ("0.npy", b""), ("5.json", b"{")]
    # Two images of 3, two labels of 4, no image of 10, broken JSON of 5.
    yield tar("mixed.tar", mixed, 6, is_interleaved=True)
    special_members(folder / "special.tar", outside)
    yield folder / "special.tar", Expected(14, count_samples(folder / "special.tar", is_interleaved=False))
    many_members(folder / "many.tar", 100_000)
    yield folder / "many.tar", Expected(100, 50_000)
    header = tarfile.TarInfo("a.jpg")
    (folder / "same.tar").write_bytes(header.tobuf() * 100_000 + bytes(1024))
    yield (
        folder / "same.tar",
        Expected(error="none of 1 samples gives a row (1 AmbiguousImage, first 'a': 100000 im"),
    )

    rows = [GOOD, b"", None, b"<html>", PIXEL, GOOD[: len(GOOD) // 2], palette_bomb(), GOOD]
    images = [None if row is None else {"bytes": row, "path": "../../escaped.png"} for row in rows]
    images += [{"bytes": None, "path": "/etc/passwd"}]
    keys = ["a", "b", "c", "d", "../../escaped", "f", "g", "a", None]
    labels = [2**40, 1, 1, 1, -5, 1, 1, 1, 1]
    table = pa.table({"image": pa.array(images, IMAGE), "key": keys, "label": labels})
    pq.write_table(table, folder / "rows.parquet", row_group_size=4)
    yield folder / "rows.parquet", Expected(1, 9)
    pq.write_table(table.slice(0, 0), folder / "norows.parquet")
    yield folder / "norows.parquet", Expected(0, 0)
    # Within the limit of a page, beyond that of a member.
    (folder / "zeros.parquet").write_bytes(_zeros(280_000_000, GOOD))
    yield folder / "zeros.parquet", Expected(1, 2)
    # As many pixels as are allowed: these are decoded, side by side.
    allowed = real_png(8000, 8, 6, 4)
    yield tar("allowed.tar", [(f"{i}.png", allowed) for i in range(4)], 4)


def palette_bomb() -> bytes:
    return bombs()[0][1]


def write_unreadable(folder: Path) -> Iterator[tuple[Path, Expected]]:
    """Shards that cannot be read to their end."""
    whole = folder / "whole"
    members = [(f"{i}.{kind}", GOOD if kind == "png" else b"5") for i in range(5) for kind in ("png", "cls")]
    tar = Path(write_shard(whole, members)).read_bytes()
    whole.unlink()
    step = 512 + -(-len(GOOD) // 512) * 512 + 1024

    def header(**fields: object) -> bytes:
        info = tarfile.TarInfo("a.png")
        for name, value in fields.items():
            setattr(info, name, value)
        return info.tobuf(tarfile.GNU_FORMAT)

    damaged = bytearray(tar)
    damaged[2 * step + 3] ^= 1
    hole = tar[: 2 * step] + bytes(step) + tar[3 * step :]
    yield folder / "zero-bytes.tar", _write(folder / "zero-bytes.tar", b"", "the file has 0 bytes")
    for name, data, error in [
        ("cut-header.tar", tar[: 2 * step + 100], "cut off"),
        ("cut-data.tar", tar[: 2 * step + 700], "cut off"),
        ("cut-between.tar", tar[: 2 * step], "no end-of-archive marker"),
        ("cut-pax.tar", header(type=tarfile.XHDTYPE, size=600) + b"30 path=abc", "cut off"),
        ("damaged.tar", bytes(damaged), "damaged member header"),
        ("hole.tar", hole, "data follows the end-of-archive marker"),
        ("joined.tar", tar + tar, "data follows the end-of-archive marker"),
        ("html.tar", b"<html>404</html>" * 100, "not a tar archive"),
        ("compressed.tar", gzip.compress(tar), "not a tar archive but a compressed file"),
        ("sparse.tar", header(type=tarfile.GNUTYPE_SPARSE) + bytes(1024), "--sparse"),
        ("huge-pax.tar", header(type=tarfile.XHDTYPE, size=1 << 33) + bytes(9000), "extended header of 8589934592"),
        ("huge-member.tar", header(size=1 << 60) + bytes(9000), "max_shard_bytes"),
        ("negative.tar", header(size=-512) + bytes(9000), "a member of -512 bytes"),
        ("rows.tar", _parquet({"image": pa.array([{"bytes": GOOD}])}), "a Parquet file"),
        ("tar.parquet", tar, "not a Parquet file"),
        ("zero-bytes.parquet", b"", "the file has 0 bytes"),
        ("cut.parquet", _parquet({"image": pa.array([{"bytes": GOOD}])})[:-50], "cut off"),
        ("noimage.parquet", _parquet({"url": ["http://a"], "x": [1]}), "no column of images among 2 columns"),
        ("footer.parquet", b"PAR1" + bytes(90) + (1 << 30).to_bytes(4, "little") + b"PAR1", "footer of 1073741824"),
        ("nofooter.parquet", b"PAR1" + bytes(90) + (80).to_bytes(4, "little") + b"PAR1", "damaged Parquet"),
        ("pages.parquet", _overwrite_pages(_parquet({"image": pa.array([{"bytes": GOOD}] * 9)})), "damaged"),
        ("bomb.parquet", _zeros(600_000_000), "more than max_page_bytes"),
    ]:  # fmt: skip
        yield folder / name, _write(folder / name, data, error)


def _write(path: Path, data: bytes, error: str) -> Expected:
    path.write_bytes(data)
    return Expected(error=error)


def _parquet(columns: dict[str, Any], **options: Any) -> bytes:
    buffer = io.BytesIO()
    pq.write_table(pa.table(columns), buffer, **options)
    return buffer.getvalue()


def _zeros(num_bytes: int, *others: bytes) -> bytes:
    """Images in one page: one of nothing but zeros, that takes a ten-thousandth of its size, and the others."""
    zeros = pa.py_buffer(bytes(num_bytes) + b"".join(others))
    offsets = list(accumulate((len(image) for image in others), initial=num_bytes))
    bounds = pa.array([0, *offsets], pa.int32()).buffers()[1]
    images = pa.Array.from_buffers(pa.binary(), len(offsets), [None, bounds, zeros])
    columns = {"image": pa.StructArray.from_arrays([images], ["bytes"])}
    return _parquet(columns, compression="zstd", use_dictionary=False, write_statistics=False)


def _overwrite_pages(data: bytes) -> bytes:
    return data[:4] + b"\xff" * 200 + data[204:]


def snapshot(folder: Path) -> dict[str, bytes]:
    """Every file below, with its content unless it is large; folders and links as well."""
    found = {}
    for path in folder.rglob("*"):
        is_small = path.is_file() and path.stat().st_size < 1 << 20
        found[str(path.relative_to(folder))] = path.read_bytes() if is_small else b"%d" % path.lstat().st_size
    return found


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Corpus:
    """Written, tokenized and measured once; all around the process lies in one folder."""
    base = tmp_path_factory.mktemp("hostile")
    checkpoint = small_tokenizer(base / "tokenizer")
    folder, output = base / "sandbox", tmp_path_factory.mktemp("output")
    places = {name: folder / name for name in ("cwd/deep/deeper", "home", "tmp", "shards", "outside")}
    for place in places.values():
        place.mkdir(parents=True)
    shards = places["shards"]
    expected = {
        str(path): want
        for source in (write_unreadable(shards), write_readable(shards, places["outside"]))
        for path, want in source
    }
    before = snapshot(folder)
    _, *outcomes = tokenize_measured(
        list(expected),
        checkpoint=checkpoint,
        output=output,
        cwd=places["cwd/deep/deeper"],
        environment={"HOME": str(places["home"]), "TMPDIR": str(places["tmp"])},
    )
    return Corpus(
        expected=expected,
        outcomes=dict(zip(expected, outcomes, strict=True)),
        output=output,
        peak_bytes=outcomes[-1].peak_bytes,
        before=before,
        after=snapshot(folder),
    )


def test_every_sample_of_a_readable_shard_is_a_row_or_a_quarantine_row(corpus: Corpus) -> None:
    problems = []
    for path, want in corpus.expected.items():
        if want.error:
            continue
        got = corpus.outcomes[path]
        data, quarantine = corpus.written(path)
        rows = pq.read_metadata(data).num_rows if data.exists() else None
        refused = pq.read_metadata(quarantine).num_rows if quarantine.exists() else 0
        found = (got.error, rows, refused)
        if found != ("", want.num_images, want.num_samples - want.num_images):
            problems.append(f"{Path(path).name}: {want}, found {found}")
        if rows is not None and (rows, refused) != (got.num_images, got.num_quarantined):
            problems.append(f"{Path(path).name}: told {got}, wrote {rows} and {refused}")
    assert not problems, "\n".join(problems)
    assert sum(want.num_samples for want in corpus.expected.values()) > 50_000


def test_a_shard_that_cannot_be_read_is_one_line_and_no_output(corpus: Corpus) -> None:
    problems = []
    for path, want in corpus.expected.items():
        if not want.error:
            continue
        error = corpus.outcomes[path].error
        if want.error not in error or path not in error or "\n" in error or error.count(path) > 1:
            problems.append(f"{Path(path).name}: expected {want.error!r}, found {error!r}")
        problems += [f"{Path(path).name}: left {file}" for file in corpus.written(path) if file.exists()]
    assert not problems, "\n".join(problems)


def test_no_key_is_both_a_row_and_refused(corpus: Corpus) -> None:
    """But where a key is used twice, which the refusal says."""
    for path in corpus.expected:
        data, quarantine = corpus.written(path)
        if quarantine.exists():
            rows = set(pq.read_table(data, columns=["key"])["key"].to_pylist())
            refused = pq.read_table(quarantine).to_pylist()
            assert refused
            assert not rows & {row["key"] for row in refused if row["error"] != "DuplicateKey"}, path


def test_memory_is_bounded(corpus: Corpus) -> None:
    for path, outcome in corpus.outcomes.items():
        print(f"{Path(path).name}: peak {outcome.peak_bytes >> 20} MiB")
    assert corpus.peak_bytes < MAX_PEAK_BYTES


def test_nothing_is_written_but_the_output(corpus: Corpus) -> None:
    assert corpus.after == corpus.before
    assert "outside" in corpus.after  # the places were looked at
    names = {path.name for path in corpus.output.iterdir() if not path.name.startswith("_")}
    assert names == {"data", "quarantine", "first.tar"}
