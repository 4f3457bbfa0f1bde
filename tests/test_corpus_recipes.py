"""The recipes of the guide: the commands that stand there, on small corpora of the same layout."""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import tarfile
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from webdataset.writer import TarWriter

from tatok_pipe.tokens.dataset import TokenDataset
from tests.storage.hub import HubServer
from tests.storage.servers import hub_environment
from tests.storage.web import WebServer
from tests.test_tokenize_folder import CLASSES, images, write_folder, write_tar_of_tars
from tests.test_tokenize_hub import write_parquet

ROOT = Path(__file__).parents[1]
_GUIDE = (ROOT / "docs" / "guide.md").read_text("utf-8").partition("## Recipes")[2].partition("\n## ")[0]


def commands(first_words: str) -> list[list[str]]:
    """Those of the recipe that begins with these words."""
    (recipe,) = [each for each in re.split(r"\n\n(?=\*\*)", _GUIDE) if each.startswith(f"**{first_words}")]
    (block,) = re.findall(r"```sh\n(.*?)```", recipe, re.DOTALL)
    return [shlex.split(line) for line in block.splitlines()]


def run(words: list[str], folder: Path, environment: dict[str, str] | None = None) -> None:
    argv = [sys.executable, *words[1:]] if words[0] == "python" else words
    done = subprocess.run(
        argv,
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(ROOT), **(environment or {})},
        capture_output=True,
        text=True,
        timeout=400,
        check=False,
    )
    assert done.returncode == 0, done.stderr


def write_as_img2dataset_does(folder: Path, rows: list[tuple[str, str, bytes]]) -> None:
    """A shard of `(url, caption, image)`, of which one image was not there: the files of its `WebDatasetSampleWriter`
    and `LoggerProcess`, by the same writer of tars."""
    folder.mkdir()
    told = []
    with TarWriter(str(folder / "00000.tar")) as writer:
        for number, (url, caption, image) in enumerate(rows):
            key = f"{number:09d}"
            meta = {"url": url, "caption": caption, "key": key, "status": "success", "error_message": None}
            meta |= {"width": 256, "height": 256, "original_width": 32, "original_height": 32, "exif": "{}"}
            meta |= {"sha256": "00" * 32}
            if image:
                sample = {"__key__": key, "jpg": image, "txt": caption, "json": json.dumps(meta, indent=4)}
                writer.write(sample)
            else:
                meta |= {"status": "failed_to_download", "error_message": "HTTP Error 404: Not Found"}
            told.append(meta)
    pq.write_table(pa.Table.from_pylist(told), folder / "00000.parquet")
    (folder / "00000_stats.json").write_text(json.dumps({"count": len(rows), "successes": len(rows) - 1}))


@pytest.mark.slow
@pytest.mark.ray
@pytest.mark.timeout(900)
def test_imagenet(tmp_path: Path) -> None:
    steps = commands("ImageNet")
    assert len(steps) <= 3
    write_tar_of_tars(tmp_path / "ILSVRC2012_img_train.tar", images(9))
    for words in steps:
        run(words, tmp_path)
    dataset = TokenDataset(str(tmp_path / "imagenet_tokens"))
    assert dataset.spec.class_names == CLASSES
    assert {row.key: row.label for row in dataset.rows()} == {
        name.rpartition(".")[0]: CLASSES.index(name.partition("/")[0]) for name, _ in images(9)
    }
    assert (tmp_path / "imagenet_tokens/report.html").exists()


def _with_the_package(folder: Path, rows: list[tuple[str, str, bytes]]) -> None:
    sed, download, _ = commands("CC12M")
    with WebServer({f"/{number}": image for number, (*_, image) in enumerate(rows) if image}) as server:
        lines = [f"{server.url}/{number}\t{caption}\n" for number, (_, caption, _) in enumerate(rows)]
        (folder / "cc12m.tsv").write_text("".join(lines))
        run(sed, folder)
        run(download, folder, {"NO_ALBUMENTATIONS_UPDATE": "1"})


def _by_its_layout(folder: Path, rows: list[tuple[str, str, bytes]]) -> None:
    write_as_img2dataset_does(folder / "cc12m", rows)


@pytest.mark.ray
@pytest.mark.timeout(900)
@pytest.mark.parametrize(
    "download",
    [
        _by_its_layout,
        pytest.param(
            _with_the_package,
            marks=pytest.mark.skipif(not shutil.which("img2dataset"), reason="img2dataset is not installed"),
        ),
    ],
)
def test_cc12m(download: Callable[[Path, list[tuple[str, str, bytes]]], None], tmp_path: Path) -> None:
    steps = commands("CC12M")
    assert len(steps) <= 3
    rows = [(f"http://host/{name}", f"a photo of {name}", data) for name, data in images(6)]
    rows.insert(2, ("http://host/gone.jpg", "not there", b""))
    download(tmp_path, rows)
    with tarfile.open(tmp_path / "cc12m/00000.tar") as tar:
        endings = [name.rpartition(".")[2] for name in tar.getnames()]
    assert len(endings) == 18 and set(endings) == {"jpg", "txt", "json"}
    run(steps[-1], tmp_path)
    found = {
        row.caption: json.loads(row.meta or "") for row in TokenDataset(f"{tmp_path}/cc12m_tokens").rows()
    }
    assert set(found) == {caption for _, caption, image in rows if image}
    assert all(meta["status"] == "success" and meta["caption"] == caption for caption, meta in found.items())


@pytest.mark.slow
@pytest.mark.ray
@pytest.mark.timeout(900)
def test_a_dataset_of_the_hub(tmp_path: Path) -> None:
    (words,) = commands("A dataset of the hub")
    with HubServer(tmp_path / "hub") as server:
        parquet = write_parquet(tmp_path / "train.parquet", images(6))
        server.create("USER/NAME", {"data/train-00000-of-00001.parquet": parquet})
        run(words, tmp_path, hub_environment(server, tmp_path))
    rows = list(TokenDataset(f"{tmp_path}/hub_tokens").rows())
    assert {row.key for row in rows} == {name.rpartition(".")[0] for name, _ in images(6)}


@pytest.mark.ray
@pytest.mark.timeout(900)
def test_a_folder(tmp_path: Path) -> None:
    (words,) = commands("A folder of photographs")
    write_folder(tmp_path / "photos", images(6))
    run(words, tmp_path)
    dataset = TokenDataset(f"{tmp_path}/photo_tokens")
    assert dataset.spec.class_names == CLASSES and len(list(dataset.rows())) == 6
