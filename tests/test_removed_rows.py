"""Rows that were removed do not come back: not by the next run, not by a repair, not in a report."""

from __future__ import annotations

import io
import re
import shutil
import tarfile
from pathlib import Path
from typing import Any

import pytest

from tatok_pipe import edit_tokens, inspect_tokens, storage
from tatok_pipe.encoding.shard_tokenizer import ShardTokenizer, TokenizeJob
from tatok_pipe.errors import EXIT_DONE
from tatok_pipe.images.demo import write_demo_corpus
from tatok_pipe.images.limits import ShardLimits
from tatok_pipe.images.options import PreprocessConfig
from tatok_pipe.tokenizer.checkpoint import load_tokenizer
from tatok_pipe.tokenizer.options import DTFConfig
from tatok_pipe.tokens.checking.remedies import Remedy
from tatok_pipe.tokens.checking.verify import verify_dataset
from tatok_pipe.tokens.dataset import TokenDataset
from tatok_pipe.tokens.layout import data_url, quarantine_url
from tatok_pipe.tokens.removed import Removed, hash_key, write_removed
from tests.inspect_tokens.small import BAD_SAMPLES, Made, save_random_tokenizer, tokenize
from tests.tokens.damage import flip


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Made:
    """Three shards of real images; the last one has one image and two samples that are none."""
    folder = tmp_path_factory.mktemp("whole")
    shards = write_demo_corpus(folder / "images", num_shards=2, crops_per_source=1).shards
    shards.append(str(folder / "bad.tar"))
    with tarfile.open(shards[-1], "w") as tar:
        for member, data in BAD_SAMPLES.items():
            header = tarfile.TarInfo(member)
            header.size = len(data)
            tar.addfile(header, io.BytesIO(data))
    checkpoint = str(folder / "tokenizer")
    save_random_tokenizer(checkpoint, seed=0)
    tokenize(str(folder / "tokens"), checkpoint, shards)
    return Made(str(folder / "tokens"), checkpoint, shards)


@pytest.fixture
def made(whole: Made, tmp_path: Path) -> Made:
    return Made(str(shutil.copytree(whole.url, tmp_path / "tokens")), whole.checkpoint, whole.shards)


def run(made: Made) -> None:
    tokenize(made.url, made.checkpoint, made.shards)


def edit(made: Made, *keys: str) -> None:
    path = Path(made.url).parent / "keys.txt"
    path.write_text("\n".join(keys))
    assert edit_tokens.main([f"input.url={made.url}", f"remove.keys=@{path}"]) == EXIT_DONE


def files(made: Made) -> dict[str, bytes]:
    paths = (path for part in ("data", "quarantine") for path in Path(made.url, part).glob("*"))
    return {f"{path.parent.name}/{path.name}": path.read_bytes() for path in sorted(paths)}


def test_a_run_makes_them_again_without_what_was_removed(made: Made) -> None:
    dataset = TokenDataset(made.url)
    first = next(dataset.rows(dataset.shards[0])).key
    before = [row.key for row in dataset.rows()]
    edit(made, first, "good", "bad_1")  # all images of a shard, and one that was quarantined
    edited = files(made)
    assert [row.key for row in TokenDataset(made.url).rows()] == [
        key for key in before if key not in (first, "good")
    ]
    for name in TokenDataset(made.url).shards:  # as if they were lost
        storage.remove(data_url(made.url, name))
        storage.remove(quarantine_url(made.url, name))
    run(made)
    assert files(made) == edited
    assert verify_dataset(made.url) == []


def test_a_repair_and_the_run_after_it_make_them_again_without(made: Made) -> None:
    dataset = TokenDataset(made.url)
    edit(made, *(next(dataset.rows(name)).key for name in dataset.shards))
    edited = files(made)
    for name in dataset.shards[:2]:
        content = storage.read_bytes(data_url(made.url, name))
        storage.publish_bytes(flip(content, len(content) // 2), data_url(made.url, name), exclusive=False)
    found = [each for each in verify_dataset(made.url) if each.remedy == Remedy.MAKE_AGAIN]
    assert len(found) == 2
    given = [f"input.url={made.url}", "--repair", f"tokenizer.checkpoint={made.checkpoint}"]
    assert inspect_tokens.main(given) == EXIT_DONE
    assert len(TokenDataset(made.url).shards) == 1
    run(made)
    assert files(made) == edited
    assert verify_dataset(made.url) == []


def test_a_key_that_was_removed_stays_out_of_shards_that_come_later(made: Made, tmp_path: Path) -> None:
    keys = [row.key for row in TokenDataset(made.url).rows()]
    edit(made, "good")
    shutil.copy(made.shards[-1], tmp_path / "later.tar")
    shutil.copy(made.shards[0], tmp_path / "other.tar")
    tokenize(
        made.url, made.checkpoint, [*made.shards, str(tmp_path / "later.tar"), str(tmp_path / "other.tar")]
    )
    found = [row.key for row in TokenDataset(made.url).rows()]
    assert "good" in keys and "good" not in found and len(found) > len(keys)
    assert verify_dataset(made.url) == []


def test_what_is_removed_while_a_shard_is_read_stays_out_of_it(made: Made) -> None:
    """By an edit beside a run: the shard is not among those that it looks at."""
    dataset = TokenDataset(made.url)
    name = dataset.shards[0]
    source, key = dataset.shard_metadata(name).source.url, next(dataset.rows(name)).key
    storage.remove(data_url(made.url, name))

    class Beside(ShardTokenizer):
        def _decode(self, sample: Any) -> Any:
            write_removed(made.url, Removed().add([hash_key(key)], []))
            return super()._decode(sample)

    tokenizer = load_tokenizer(made.checkpoint)
    filter = tokenizer.filter(DTFConfig(target_tokens=10))
    job = TokenizeJob(
        made.checkpoint, made.url, dataset.spec, filter, PreprocessConfig(32), ShardLimits(), "fp32", 4, True, False
    )  # fmt: skip
    worker = Beside(job, device="cpu", num_threads=1)
    first = worker(source, max_tries=1)
    assert first.error.endswith("rows of the dataset were removed while it was read")
    assert not storage.exists(data_url(made.url, name))
    assert worker(source).error == ""
    assert key not in [row.key for row in TokenDataset(made.url).rows(name)]


def test_no_picture_of_a_removed_row_is_in_a_report(made: Made, capsys: pytest.CaptureFixture[str]) -> None:
    report = Path(made.url, "report.html")
    given = [f"input.url={made.url}", f"tokenizer.checkpoint={made.checkpoint}", "gallery.images=2"]
    assert inspect_tokens.main(given) == EXIT_DONE
    cards = re.findall(
        r'<figure class="card">(?:(?!</figure>).)*data:image.*?</figure>', report.read_text(), re.DOTALL
    )
    keys = {row.key for row in TokenDataset(made.url).rows()}
    (shown, *_) = [key for key in sorted(keys) if any(f">{key}<" in card for card in cards)]
    pictures = {
        picture for card in cards if f">{shown}<" in card for picture in re.findall(r"data:image[^\"]+", card)
    }
    assert pictures
    edit(made, shown)
    assert not report.exists()
    assert inspect_tokens.main(given) == EXIT_DONE
    page = report.read_text()
    assert f">{shown}<" not in page and not any(picture in page for picture in pictures)
    assert "data:image" in page
