"""What becomes of the parts of a sample, as tables of Markdown, made by giving examples to the real readers."""

from __future__ import annotations

import gzip
import json
import math
import tempfile
from collections.abc import Iterable, Sequence
from decimal import Decimal
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from tatok_pipe import storage
from tatok_pipe.errors import UserError
from tatok_pipe.images.fields import CAPTION_NAMES, LABEL_NAMES
from tatok_pipe.images.formats.table import IMAGE_EXTENSIONS
from tatok_pipe.images.limits import CAPTION_EXTENSIONS
from tatok_pipe.images.loose.folder import plan_folder
from tatok_pipe.images.loose.inner_tars import plan_inner_tars
from tatok_pipe.images.loose.manifest import plan_manifests
from tatok_pipe.images.loose.manifest_rows import ADDRESS_COLUMNS
from tatok_pipe.images.notices import Notices
from tatok_pipe.images.parquet.columns import IMAGE_COLUMNS, KEY_COLUMNS, META_COLUMNS
from tatok_pipe.images.shard_errors import ShardError
from tatok_pipe.images.shard_list import NoShards, expand_shards
from tatok_pipe.images.source import open_samples, shard_info
from tatok_pipe.records import ImageSample, Quarantined

from ..pictures import Member, write_shard

_IMAGE = b"\xff\xd8\xff\xe0 an image, as far as readers look at it"
_SHARD = "SHARD"  # in place of its path
_NOT_SHOWN = {IMAGE_COLUMNS.index(name) for name in IMAGE_EXTENSIONS if name in IMAGE_COLUMNS}


def section() -> str:
    """The part of docs/inputs.md on labels, captions, keys and JSON."""
    with tempfile.TemporaryDirectory(prefix="tatok-") as folder:
        path = Path(folder)
        return "\n".join(
            [
                "## Labels, captions, keys and JSON",
                "",
                "What is there and cannot be used is never taken for absent: it is a quarantine row, a refused shard, "
                "or a line of warning. `input.limits.ignore=[label,caption,meta]` leaves parts unread that are of "
                "another kind than these.",
                "",
                f"Labels are called {_names(LABEL_NAMES)}, in this order: as columns, as extensions of a tar's files "
                "(`cls` first; also with `.txt` behind it), and at the top of a sample's JSON where there is neither. "
                "Of columns one of numbers comes before one of text, and that before a list. What is called like a "
                "label otherwise (`coarse_label`, `category`, …) is not taken, and told. In an archive the name of "
                "a folder is no label.",
                "",
                "### Files of a tar",
                "",
                f"A key is a name up to its first dot. Images end in {_names(IMAGE_EXTENSIONS)}, captions in "
                f"{_names(CAPTION_EXTENSIONS)}; the first that is there counts.",
                "",
                *_table(("files", "what becomes of them"), _tar_rows(path)),
                "",
                "### A folder of images",
                "",
                "What belongs to an image is what has its name with another extension; its key is its path below the "
                "folder without the extension, other dots and all. Where every image is in a folder, the folders "
                "directly below the given one are the classes, in sorted order, and files say nothing of labels. Names "
                "that begin with a dot do not count, nor do files of no image.",
                "",
                *_table(("files", "what becomes of them"), _folder_rows(path)),
                "",
                "### A tar of tars",
                "",
                "A tar whose first tar or image is a tar, as ImageNet's training set is: every tar in it is a shard "
                "and a class, numbered by their names in sorted order, whatever is in them. A key is that name without "
                "its ending and its folders, a slash, and the key within it; files say nothing of labels. It is given "
                "alone. Its headers alone are read for the plan, the bytes of a tar for a shard.",
                "",
                *_table(("members", "what becomes of them"), _outer_rows(path)),
                "",
                "### A manifest",
                "",
                f"A Parquet file is one where no column holds images and one is called {_names(ADDRESS_COLUMNS)}, the "
                "first of which that is there has the addresses; a `.jsonl` file always is. Keys, labels and captions "
                "are in the columns that an image shard has them in, labels in `class_name` too; labels that are all "
                "text of no numbers are names of classes, numbered in sorted order, and numbers have the names that a "
                "`ClassLabel` in Parquet's key `huggingface` gives them. Without a key, that is the address "
                "below the folder of the manifest, elsewhere host and path, without the extension of an image. Other "
                "columns, and files beside the images, are not read. Several are read as one list; what contradicts in "
                "them, a key that comes twice, numbers and names, other names of a `ClassLabel`, is refused, and keys "
                "are relative to the folder that they have in common.",
                "",
                *_table(("rows", "what becomes of them"), _manifest_rows(path)),
                "",
                "### A label, in a file of a tar and in a column of Parquet",
                "",
                *_table(("written as", "in a tar's `.cls`", "in a column `label`"), _label_rows(path)),
                "",
                "### Columns of Parquet",
                "",
                "The image is a struct with a binary field `bytes`, or binary, or base64 as text, and is called "
                f"{_names([name for i, name in enumerate(IMAGE_COLUMNS) if i not in _NOT_SHOWN])} or an extension "
                f"above; or it is the only such struct. Captions are called {_names(CAPTION_NAMES)}, JSON "
                f"{_names(META_COLUMNS)}, keys {_names(KEY_COLUMNS)}; without a key the row number is one.",
                "",
                "A column that cannot be what it is called, by its type or by the first value in it, refuses the "
                "shard. A value that cannot, after one that could, is a quarantine row.",
                "",
                *_table(("column", "of type", "what becomes of it"), _column_rows(path)),
                "",
            ]
        )


def _tar_rows(folder: Path) -> Iterable[Sequence[str]]:
    image = ("a.jpg", _IMAGE)
    examples: list[list[Member]] = [
        [image, ("a.cls", b"3"), ("a.txt", b"a caption"), ("a.json", b'{"x": 1}')],
        [image, ("a.cls.txt", b"3"), ("a.text", b"a caption")],
        [image, ("a.json", b'{"label": 3, "caption": "c"}')],
        [image, ("a.json", b'{"label": "cat"}')],
        [image, ("a.json", b'{"aesthetic": NaN}')],
        [image, ("a.json", b"{'x': 1}")],
        [image, ("a.txt", b"caf\xe9")],
        [image, ("a.coarse_label", b"3")],
        [image, ("a.mask.png", b"")],
        [image, ("README", b"")],
        [("shot 10.11.png", _IMAGE), ("shot 10.11.cls", b"1")],
        [("n01440764.tar", b"")],
        [("0001", _IMAGE)],
        [("a.cls", b"1")],
        [image, ("a.png", _IMAGE)],
        [],
    ]
    for members in examples:
        shown = ", ".join(f"`{name}`" + _content(data) for name, data in members) or "none"
        yield shown, _outcome(write_shard(folder / "x.tar", members))


def _folder_rows(folder: Path) -> Iterable[Sequence[str]]:
    image = ("a.jpg", _IMAGE)
    examples: list[list[Member]] = [
        [image, ("a.cls", b"3"), ("a.txt", b"a caption"), ("readme.txt", b"")],
        [("shot 10.11.png", _IMAGE), ("shot 10.11.cls", b"1")],
        [("cat/1.jpg", _IMAGE), ("dog/2.jpg", _IMAGE), ("dog/2.cls", b"7")],
        [("cat/1.jpg", _IMAGE), ("2.jpg", _IMAGE)],
        [image, ("a.png", _IMAGE)],
        [("a.heic", b"")],
        [("train/1.jpg", _IMAGE), ("val/2.jpg", _IMAGE)],
    ]
    for number, members in enumerate(examples):
        root = folder / f"folder-{number}" / "photos"
        for name, data in members:
            (root / name).parent.mkdir(parents=True, exist_ok=True)
            (root / name).write_bytes(data)
        shown = ", ".join(f"`{name}`" + _content(data) for name, data in members)
        try:
            expand_shards(str(root))
        except NoShards as none:
            found = none.files
        try:
            plan = plan_folder(str(root), found, list_url=f"{root.parent}/list.parquet")
        except UserError as error:
            yield shown, f"**refused**: {str(error).replace(str(root), 'photos')}"
            continue
        (root.parent / "list.parquet").write_bytes(plan.list_bytes)
        (shard,) = plan.shards(str(root), f"{root.parent}/list.parquet")
        note = f"; warning: {plan.note}" if plan.note else ""
        yield shown, _outcome(shard.url) + note


def _outer_rows(folder: Path) -> Iterable[Sequence[str]]:
    def pack(*members: Member) -> bytes:
        return Path(write_shard(folder / "inner.tar", list(members))).read_bytes()

    cat, dog = pack(("1.JPEG", _IMAGE), ("1.cls", b"7")), pack(("2.JPEG", _IMAGE))
    deep = pack(("n01.tar", cat))
    examples: list[list[tuple[str, bytes, str]]] = [
        [("n02.tar", dog, "`2.JPEG`"), ("n01.tar", cat, "`1.JPEG` and `1.cls` = `7`")],
        [("x/n01.tar.gz", gzip.compress(cat), "`1.JPEG`"), ("readme.txt", b"", "")],
        [("n01.tar", pack(), "nothing"), ("n02.tar", dog, "`2.JPEG`")],
        [("n01.tar", cat, "`1.JPEG`"), ("n02.tar", b"", "no byte")],
        [("n01.tar", cat, "`1.JPEG`"), ("3.jpg", _IMAGE, "")],
        [("a/n01.tar", cat, "`1.JPEG`"), ("b/n01.tar", cat, "`1.JPEG`")],
        [("a.tar", deep, "`n01.tar`")],
    ]
    for number, members in enumerate(examples):
        outer = write_shard(folder / f"outer-{number}.tar", [(name, data) for name, data, _ in members])
        shown = ", ".join(f"`{name}`" + (f" of {inside}" if inside else "") for name, _, inside in members)
        list_url = f"{folder}/outer-{number}.parquet"
        try:
            plan = plan_inner_tars(outer, storage.file_info(outer), list_url=list_url)
        except UserError as error:
            yield shown, f"**refused**: {str(error).replace(outer, 'train.tar')}"
            continue
        Path(list_url).write_bytes(plan.list_bytes)
        note = f"; warning: {plan.note}" if plan.note else ""
        outcomes = [_outcome(shard.url) for shard in plan.shards(outer, list_url)]
        yield shown, "; ".join(outcomes) + note


def _manifest_rows(folder: Path) -> Iterable[Sequence[str]]:
    examples: list[list[dict[str, Any]]] = [
        [{"url": "a.jpg", "label": 3, "caption": "a caption"}],
        [{"file_name": "cat/1.jpg", "text": "a caption"}],
        [{"URL": "https://example.org/page", "image_url": "a.jpg", "key": "k1"}],
        [{"url": "cat/1.jpg", "label": "zebra"}, {"url": "dog/2.jpg", "label": "ape"}],
        [{"url": "a.jpg", "label": "3"}],
        [{"url": "a.jpg", "category": "cat"}],
        [{"url": "a.jpg", "label": "3"}, {"url": "dog/2.jpg", "label": "cat"}],
        [{"url": "a.jpg"}, {"url": "./a.jpg"}],
        [{"url": "a.jpg"}, {"url": None}],
        [{"url": 1}],
        [{"path": "a.jpg", "label": 3}],
        [{"url": "gone.jpg"}],
        [{"url": "https://example.org/a.jpg"}],
        [],
    ]
    for number, rows in enumerate(examples):
        root = folder / f"manifest-{number}"
        for name in ("a.jpg", "cat/1.jpg", "dog/2.jpg"):
            (root / name).parent.mkdir(parents=True, exist_ok=True)
            (root / name).write_bytes(_IMAGE)
        manifest = root / "list.jsonl"
        manifest.write_text("".join(json.dumps(row) + "\n" for row in rows))
        shown = ", ".join(f"`{json.dumps(row)}`" for row in rows) or "none"
        try:
            plan = plan_manifests([str(manifest)], list_url=f"{root}/list.parquet")
        except UserError as error:
            yield shown, f"**refused**: {str(error).replace(f'{root}/', '')}"
            continue
        (root / "list.parquet").write_bytes(plan.list_bytes)
        (shard,) = plan.shards(str(manifest), f"{root}/list.parquet")
        note = f"; warning: {plan.note}" if plan.note else ""
        yield shown, _outcome(shard.url).replace(f"{root}/", "") + note


def _content(data: bytes) -> str:
    shown = repr(data)[2:-1]
    return "" if data in (b"", _IMAGE) else f" = `{shown}`"


def _label_rows(folder: Path) -> Iterable[Sequence[str]]:
    for value in ("3", " 3\\n", "3.0", "007", "true", "nan", "None", "", "cat", "0.5", "1e3", "99999999999"):
        text = value.replace("\\n", "\n")
        tar = write_shard(folder / "x.tar", [("a.jpg", _IMAGE), ("a.cls", text.encode())])
        shown = f"text `{value}`" if value else "empty text"
        yield shown, _outcome(tar), _outcome(_parquet(folder, label=pa.array([text])))
    examples = [
        ("integer", pa.array([3])), ("null", pa.array([None], pa.int64())), ("float 3.0", pa.array([3.0])),
        ("float NaN", pa.array([math.nan])), ("float 0.5", pa.array([0.5])), ("decimal 3.00",
            pa.array([Decimal("3.00")])),
        ("bool true", pa.array([True])), ("category of integers", pa.array([3]).dictionary_encode()),
        ("category of names", pa.array(["cat"]).dictionary_encode()), ("list [3]", pa.array([[3]])),
        ("list []", pa.array([[]], pa.list_(pa.int64()))), ("list [3, 4]", pa.array([[3, 4]])),
        ("struct", pa.array([{"id": 3}])), ("integer 2^40", pa.array([2**40])),
    ]  # fmt: skip
    for shown, column in examples:
        yield shown, "", _outcome(_parquet(folder, label=column))


def _column_rows(folder: Path) -> Iterable[Sequence[str]]:
    examples: list[dict[str, Any]] = [
        {"label": pa.array(["cat"]), "class_id": pa.array([3])},
        {"fine_label": pa.array([3]), "coarse_label": pa.array([0])},
        {"category": pa.array([3])},
        {"label": pa.array([None], pa.float64())},
        {"caption": pa.array(["c"])}, {"caption": pa.array([b"c"])}, {"caption": pa.array([["c"]])},
        {"caption": pa.array([["c", "d"]])}, {"caption": pa.array([1])},
        {"id": pa.array([7])}, {"id": pa.array([7.0])}, {"id": pa.array([bytes(range(4))], pa.binary(4))},
        {"id": pa.array([0.5])}, {"id": pa.array([[1]])},
        {"json": pa.array(['{"label": 3}'])}, {"json": pa.array([{"label": 3, "x": math.nan}])},
        {"json": pa.array(["free text"])}, {"meta": pa.array(["free text"])},
    ]  # fmt: skip
    for columns in examples:
        names = ", ".join(f"`{name}`" for name in columns)
        types = ", ".join(f"`{column.type}`" for column in columns.values())
        yield names, types, _outcome(_parquet(folder, **columns))
    for name, column in (("image", pa.array(["https://example.org/a.jpg"])), ("photo_url", pa.array(["x"]))):
        path = folder / "x.parquet"
        pq.write_table(pa.table({name: column}), path)
        yield f"`{name}`, no other", f"`{column.type}`", _outcome(str(path))


def _parquet(folder: Path, **columns: pa.Array) -> str:
    path = folder / "x.parquet"
    pq.write_table(pa.table({"image": pa.array([_IMAGE]), **columns}), path)
    return str(path)


def _outcome(shard: str) -> str:
    """What the one sample of a shard became, and what was told of it."""
    notices = Notices()
    try:
        with open_samples(shard, info=shard_info(shard), notices=notices) as samples:
            told = [_show(sample) for sample in samples]
    except ShardError as error:
        told = [f"**refused**: {str(error).replace(f'{shard}: ', '')}"]
    told += [f"warning: {notice.text}" for notice in notices.all]
    return "; ".join(told).replace("|", "\\|").replace(shard, _SHARD)


def _show(sample: ImageSample | Quarantined) -> str:
    if isinstance(sample, Quarantined):
        return f"**{sample.error}**: {sample.message}"
    parts = [f"label {'null' if sample.label is None else sample.label}"]
    parts += [f"caption `{sample.caption}`"] if sample.caption is not None else []
    parts += [f"meta `{sample.meta}`"] if sample.meta is not None else []
    parts += [f"key `{sample.key}`"] if sample.key not in ("a", "00000000") else []
    return ", ".join(parts)


def _names(names: Iterable[str]) -> str:
    return ", ".join(f"`{name}`" for name in names)


def _table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> list[str]:
    lines = [head, ["---"] * len(head), *rows]
    return [f"| {' | '.join(line)} |" for line in lines]
