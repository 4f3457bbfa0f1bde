"""A token dataset in the formats of other loaders, read back by those loaders."""

from __future__ import annotations

import io
import json
import os
import site
import subprocess
import tarfile
import textwrap
import venv
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tatok_pipe import storage
from tatok_pipe.edit_tokens import main
from tatok_pipe.errors import EXIT_DONE, EXIT_REFUSED
from tatok_pipe.tokens.dataset import TokenDataset
from tests.entries import assert_told
from tests.test_edit_tokens import content, write_dataset
from tests.token_datasets import make_rows

FORMATS = ("webdataset", "mds", "litdata", "megatron")
# Of the loaders, and what they import; torch and the like are those of this environment.
READERS = {
    "mds": ("mosaicml-streaming", "transformers", "regex", "tokenizers", "catalogue", "python-snappy",
            "cramjam", "zstd", "brotli", "xxhash"),
    "litdata": ("litdata",),
    "megatron": ("megatron-core",),
}  # fmt: skip


@pytest.fixture(scope="module")
def url(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Two shards, one of them without a row, and a row without patches or a label and with a caption."""
    folder = tmp_path_factory.mktemp("dataset")
    rows = make_rows(7)
    rows[2] = replace(
        rows[2], label=None, caption="a cat, «sitting»", patch_codes=rows[2].patch_codes[:0],
        patch_positions=rows[2].patch_positions[:0], entropy_dropped=rows[2].entropy_total,
    )  # fmt: skip
    return write_dataset(str(folder / "tokens"), folder, [rows, [], make_rows(5, first=7)])


def export(url: str, format: str, output: str | Path, *more: str) -> int | None:
    return main([f"input.url={url}", f"export={format}", f"output.url={output}", *more])


def expected(url: str) -> list[dict[str, Any]]:
    return [
        {
            "key": row.key, "label": -1 if row.label is None else row.label, "global_codes": row.global_codes.tolist(),
            "patch_codes": row.patch_codes.tolist(), "patch_positions": row.patch_positions.tolist(),
        }
        for row in TokenDataset(url).rows()
    ]  # fmt: skip


def test_webdataset_reads_its_tars(url: str, tmp_path: Path) -> None:
    from webdataset.compat import WebDataset

    assert export(url, "webdataset", tmp_path / "out") == EXIT_DONE
    tars = [str(tmp_path / "out" / name) for name in (tmp_path / "out/shards.txt").read_text().split()]
    found = []
    samples: Any = WebDataset(tars, shardshuffle=False, empty_check=False).decode()
    for sample in samples:
        meta = sample["json"]
        found.append({"key": meta["key"], "label": sample.get("cls", -1)} | {
            name: sample[f"{name}.npy"].tolist() for name in ("global_codes", "patch_codes", "patch_positions")
        })  # fmt: skip
        assert sample["global_codes.npy"].dtype == np.uint16
        assert meta.get("caption") == (None if "cls" in sample else "a cat, «sitting»")
    assert found == expected(url) and len(tars) == 2


READ_MDS = """
    import types
    import numpy as np
    # Its sets of pictures need torchvision, which does not import beside torch for CPUs.
    sys.modules["streaming.vision"] = types.ModuleType("streaming.vision")
    from streaming import StreamingDataset
    rows = list(StreamingDataset(local=sys.argv[1], shuffle=False, batch_size=1))
"""
READ_LITDATA = """
    import numpy as np
    from litdata import StreamingDataset
    rows = [row for row in StreamingDataset(sys.argv[1], shuffle=False)]
"""
TELL_ROWS = """
    codes = ("global_codes", "patch_codes", "patch_positions")
    print(json.dumps([
        {"key": row["key"], "label": int(row["label"])} | {n: np.frombuffer(row[n], "<u2").tolist() for n in codes}
        for row in rows
    ]))
"""
READ_MEGATRON = """
    from megatron.core.datasets.indexed_dataset import IndexedDataset
    found = []
    for prefix in open(f"{sys.argv[1]}/prefixes.txt").read().split():
        dataset = IndexedDataset(f"{sys.argv[1]}/{prefix}")
        keys = [json.loads(line)["key"] for line in open(f"{sys.argv[1]}/{prefix}.keys.jsonl")]
        assert len(keys) == len(dataset) == len(dataset.document_indices) - 1
        found += [[key, dataset[number].tolist()] for number, key in enumerate(keys)]
    print(json.dumps(found))
"""


def read_elsewhere(format: str, script: str, folder: Path, work: Path) -> Any:
    """What the script prints, in an environment of its own in which the format's reader is installed."""
    home = work / "environment"
    venv.create(home, with_pip=True)
    (packages,) = home.glob("lib/python*/site-packages")
    (packages / "outer.pth").write_text(site.getsitepackages()[0] + "\n")
    python = str(home / "bin" / "python")
    install = [python, "-m", "pip", "install", "--quiet", "--no-deps", *READERS[format]]
    done = subprocess.run(install, capture_output=True, text=True, timeout=400, check=False)
    if done.returncode:
        pytest.skip(f"{READERS[format][0]} cannot be installed here: {done.stderr.strip().splitlines()[-1]}")
    code = "import json, sys\n" + textwrap.dedent(script)
    told = subprocess.run(
        [python, "-W", "ignore", "-c", code, str(folder)], capture_output=True, text=True, timeout=300, check=False,
        env={**os.environ, "PYTHONPATH": ""}, cwd=work,
    )  # fmt: skip
    assert told.returncode == 0, told.stderr
    return json.loads(told.stdout.strip().splitlines()[-1])


@pytest.mark.slow
@pytest.mark.parametrize(("format", "script"), [("mds", READ_MDS), ("litdata", READ_LITDATA)])
def test_other_loaders_read_their_files(format: str, script: str, url: str, tmp_path: Path) -> None:
    assert export(url, format, tmp_path / "out") == EXIT_DONE
    assert read_elsewhere(format, script + TELL_ROWS, tmp_path / "out", tmp_path) == expected(url)


def ids_of(row: dict[str, Any]) -> list[int]:
    """By hand for TINY: 8 global codes, 16 places, 12 patch codes, the end, no class, classes."""
    ids = [37 if row["label"] < 0 else 38 + row["label"], *row["global_codes"]]
    for position, code in zip(row["patch_positions"], row["patch_codes"], strict=True):
        ids += [8 + position, 24 + code]
    return [*ids, 36]


@pytest.mark.slow
def test_megatron_reads_its_sequences(url: str, tmp_path: Path) -> None:
    assert export(url, "megatron", tmp_path / "out") == EXIT_DONE
    found = read_elsewhere("megatron", READ_MEGATRON, tmp_path / "out", tmp_path)
    assert found == [[row["key"], ids_of(row)] for row in expected(url)]
    told = json.loads((tmp_path / "out/_export.json").read_text())["vocabulary"]
    assert told == {
        "global_codes": 0, "patch_positions": 8, "patch_codes": 24, "end": 36, "no_class": 37, "classes": 38
    }  # fmt: skip


def samples(data: bytes) -> list[bytes]:
    """Of a file that begins with the number and the places of its samples."""
    (number,) = np.frombuffer(data[:4], "<u4")
    places = np.frombuffer(data[4 : 4 * (number + 2)], "<u4").tolist()
    assert places[-1] == len(data)
    return [data[begin:end] for begin, end in zip(places[:-1], places[1:], strict=True)]


def test_the_bytes_of_samples(url: str, tmp_path: Path) -> None:
    """By the layouts that the loaders document, without them: the fast siblings of the slow tests."""
    for format in ("mds", "litdata", "megatron"):
        assert export(url, format, tmp_path / format) == EXIT_DONE
    rows = expected(url)
    index = json.loads((tmp_path / "mds/index.json").read_text())
    files = [(tmp_path / "mds" / shard["raw_data"]["basename"]).read_bytes() for shard in index["shards"]]
    assert [shard["samples"] for shard in index["shards"]] == [7, 5]
    first = samples(files[0])[0]
    sizes = np.frombuffer(first[:16], "<u4").tolist()  # global_codes, key, patch_codes, patch_positions
    assert sizes == [4, len(rows[0]["key"]), *[2 * len(rows[0]["patch_codes"])] * 2]
    assert np.frombuffer(first[24:28], "<u2").tolist() == rows[0]["global_codes"]
    chunks = json.loads((tmp_path / "litdata/index.json").read_text())["chunks"]
    assert [(chunk["chunk_size"], chunk["chunk_bytes"]) for chunk in chunks] == [
        (number, (tmp_path / "litdata" / chunk["filename"]).stat().st_size)
        for number, chunk in zip((7, 5), chunks, strict=True)
    ]
    last = samples((tmp_path / "litdata" / chunks[-1]["filename"]).read_bytes())[-1]
    assert last.endswith(np.array(rows[-1]["patch_positions"], "<u2").tobytes())
    prefix = (tmp_path / "megatron/prefixes.txt").read_text().split()[0]
    ids = np.frombuffer((tmp_path / f"megatron/{prefix}.bin").read_bytes(), "<i4").tolist()
    assert ids == sum(map(ids_of, rows[:7]), [])
    head = (tmp_path / f"megatron/{prefix}.idx").read_bytes()
    assert head[:9] == b"MMIDIDX\x00\x00" and len(head) == 34 + 7 * 4 + 7 * 8 + 8 * 8


@pytest.mark.parametrize("format", FORMATS)
def test_killed_it_goes_on_to_the_same_bytes(format: str, url: str, tmp_path: Path) -> None:
    assert export(url, format, tmp_path / "whole") == EXIT_DONE
    assert export(url, format, tmp_path / "killed") == EXIT_DONE
    gone = [name for name in os.listdir(tmp_path / "killed") if name.startswith("000002-") or "index" in name]
    assert gone
    for name in gone:
        (tmp_path / "killed" / name).unlink()
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "killed").glob("000000-*")}
    assert export(url, format, tmp_path / "killed") == EXIT_DONE
    assert content(tmp_path / "killed") == content(tmp_path / "whole")
    assert before == {path: path.stat().st_mtime_ns for path in before}


def test_what_is_refused(url: str, tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine/thesis.tex").write_text("")
    asked = [f"input.url={url}", "export=mds"]
    assert_told(
        main, [*asked, f"output.url={tmp_path}/mine"], r"holds other files \(first thesis.tex\)", code=3
    )
    assert_told(main, [*asked, f"output.url={url}"], "is input.url")
    assert_told(main, [*asked, f"output.url={url}/data"], "/data: is inside input.url=")
    assert_told(
        main, [*asked, f"output.url={tmp_path}/x", "remove.keys=a"], "is for filter and export; remove"
    )
    assert_told(main, asked, "export=mds: expected output.url with it")
    assert_told(main, [*asked, f"output.url={tmp_path}/x", "filter.rule=none"], "and no filter")
    assert export(url, "mds", tmp_path / "out") == EXIT_DONE
    other = [f"input.url={url}", "export=litdata", f"output.url={tmp_path}/out"]
    assert_told(main, other, "holds an export as mds of version", code=EXIT_REFUSED)
    assert os.listdir(tmp_path / "mine") == ["thesis.tex"]


def test_a_dry_run_writes_nothing(url: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert export(url, "mds", tmp_path / "out", "dry_run=true") == EXIT_DONE
    assert "3 token shards" in capsys.readouterr().out and not (tmp_path / "out").exists()


@pytest.mark.s3
def test_on_a_store(url: str, s3_url: str, tmp_path: Path) -> None:
    assert export(url, "webdataset", f"{s3_url}/out") == EXIT_DONE
    names = storage.read_bytes(f"{s3_url}/out/shards.txt").decode().split()
    with tarfile.open(fileobj=io.BytesIO(storage.read_bytes(f"{s3_url}/out/{names[0]}"))) as tar:
        assert len([name for name in tar.getnames() if name.endswith(".json")]) == 7
