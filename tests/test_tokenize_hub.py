"""Datasets of the Hugging Face hub to tokens, and tokens to the hub, against a server that speaks like it."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import datasets
import pytest
from huggingface_hub import constants

from tatok_pipe import storage
from tatok_pipe.encoding.image_input import ListPlace, class_names_of, find_image_shards
from tatok_pipe.encoding.shard_tokenizer import ShardTokenizer
from tatok_pipe.errors import UserError
from tatok_pipe.images.limits import ShardLimits
from tatok_pipe.images.source import open_samples, shard_info
from tatok_pipe.tokens.dataset import TokenDataset
from tests.pictures import small_tokenizer, write_shard
from tests.storage.hub import TOKEN, HubServer
from tests.storage.servers import Store, clean_environment, hub_environment
from tests.test_shard_tokenizer import make_job
from tests.test_tokenize_folder import CLASSES, images, tokens, write_folder

NAMES = ["zebra", "tabby", "beagle"]  # not in the order of the alphabet


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> str:
    return small_tokenizer(tmp_path_factory.mktemp("tokenizer"))


@pytest.fixture
def num_images() -> int:
    return 12


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, num_images: int) -> Iterator[HubServer]:
    """With the same images as a dataset in each form that the hub's users know."""
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
    members = images(num_images)
    half = num_images // 2
    halves = [members[:half], members[half:]]
    tars = [Path(write_shard(tmp_path / f"{number}.tar", half)) for number, half in enumerate(halves)]
    folder = {f"train/{name}": data for name, data in members}
    folder |= {f"val/{name}": data for name, data in members[:3]}
    with HubServer(tmp_path / "hub") as server:
        server.create("me/tars", {f"data/{tar.name}": tar.read_bytes() for tar in tars})
        parquet = write_parquet(tmp_path / "train.parquet", members)
        server.create("me/parquet", {"data/train-00000-of-00001.parquet": parquet, "README.md": b"photos"})
        server.create("me/folders", folder | {"README.md": b"photos"})
        server.create("me/tokens")
        storage.configure(storage.StorageConfig(endpoints=[f"hf://={server.url}"]))
        yield server
    storage.configure(storage.StorageConfig())
    assert not server.unknown


def write_parquet(path: Path, members: list[tuple[str, bytes]]) -> bytes:
    """As `push_to_hub` writes it."""
    features = datasets.Features(
        {
            "image": datasets.Image(),
            "label": datasets.ClassLabel(names=NAMES),
            "id": datasets.Value("string"),
        }
    )
    rows = {
        "image": [{"bytes": data, "path": name.rpartition("/")[2]} for name, data in members],
        "label": [NAMES.index(name.partition("/")[0]) for name, _ in members],
        "id": [name.rpartition(".")[0] for name, _ in members],
    }
    datasets.Dataset.from_dict(rows, features=features).to_parquet(path)
    return path.read_bytes()


@pytest.mark.parametrize("num_images", [12, pytest.param(300, marks=pytest.mark.slow)])
def test_a_dataset_of_the_hub_gives_the_tokens_of_a_folder(
    hub: HubServer, checkpoint: str, tmp_path: Path, num_images: int
) -> None:
    here = write_folder(tmp_path / "photos", images(num_images))
    found = {}
    for name, spec in {
        "here": str(here),
        "tars": "hf://datasets/me/tars/data/*.tar",
        "parquet": "hf://datasets/me/parquet/data/*.parquet",
        "folders": "hf://datasets/me/folders/train",
    }.items():
        output = tmp_path / name
        tokenize = ShardTokenizer(make_job(checkpoint, output), device="cpu", num_threads=1)
        place = ListPlace(f"{output}/_input.parquet", images_per_part=num_images * 5 // 12)
        for shard in find_image_shards(spec, option="input.shards", place=place):
            result = tokenize(shard.url)
            assert result.error == "" and result.num_images
        tokenize.close()
        found[name] = tokens(output)
    assert len(found["here"]) == num_images
    assert all(each == found["here"] for each in found.values())


def test_the_door(hub: HubServer, tmp_path: Path) -> None:
    """What train_tokenizer, evaluate and pack_images read: class names from the schema, or from the folders; a
    revision; a token dataset is told."""
    place = ListPlace(str(tmp_path / "_input.parquet"))
    (shard,) = find_image_shards("hf://datasets/me/parquet/data", option="input.shards", place=place)
    assert class_names_of(shard, ShardLimits()) == tuple(NAMES)
    (part,) = find_image_shards("hf://datasets/me/folders/train/", option="input.shards", place=place)
    assert class_names_of(part, ShardLimits()) == CLASSES
    with open_samples(part.url, info=shard_info(part.url)) as samples:
        assert sorted(sample.key for sample in samples) == sorted(
            name.rpartition(".")[0] for name, _ in images(12)
        )
    with pytest.raises(
        UserError, match="has the folders train, val; give one of them, as in hf://datasets/me/folders/train"
    ):
        find_image_shards("hf://datasets/me/folders", option="input.shards", place=place)
    before = hub.repositories["me/tars"].head.oid
    hub.put("me/tars", {"data/2.tar": b"later"})
    spec = f"hf://datasets/me/tars@{before}/data/*.tar"
    shards = find_image_shards(spec, option="input.shards")
    assert [shard.url.rpartition("/")[2] for shard in shards] == ["0.tar", "1.tar"]
    assert len(find_image_shards("hf://datasets/me/tars/data/*.tar", option="input.shards")) == 3


def test_an_image_that_changed_on_the_hub(hub: HubServer, tmp_path: Path) -> None:
    """Of the same size, so that the hub's tag alone tells."""
    place = ListPlace(str(tmp_path / "_input.parquet"))
    spec = "hf://datasets/me/folders/train"
    (before,) = find_image_shards(spec, option="input.shards", place=place)
    name, data = images(12)[0]
    hub.put("me/folders", {f"train/{name}": data[:-1] + b"\0"})
    (after,) = find_image_shards(spec, option="input.shards", place=place)
    assert (before.url, before.size_bytes) == (after.url, after.size_bytes) and before.etag != after.etag


@pytest.mark.ray
@pytest.mark.slow
@pytest.mark.timeout(600)
def test_from_the_hub_to_the_hub(hub: HubServer, checkpoint: str, tmp_path: Path) -> None:
    """By the commands: the dataset card is read where the output is the root of a repository."""
    environment = clean_environment(Store("", hub_environment(hub, tmp_path)))

    def run(*arguments: str) -> str:
        done = subprocess.run(
            [sys.executable, *arguments],
            env=environment,
            capture_output=True,
            text=True,
            timeout=240,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        return done.stdout + done.stderr

    def tokenize(spec: str, output: str) -> str:
        settings = (f"tokenizer.checkpoint={checkpoint}", "actors.max=1", "actors.cpus=1")
        return run(
            "-m", "tatok_pipe.tokenize_corpus", f"input.shards={spec}", f"output.url={output}", *settings
        )

    told = tokenize("hf://datasets/me/parquet/data/*.parquet", "hf://datasets/me/tokens")
    assert "not promised" not in told and "%|" not in told  # no bars of progress
    assert json.loads(hub.content("me/tokens", "_dataset.json"))["spec"]["class_names"] == NAMES
    titles = [commit.title.partition(" [")[0] for commit in hub.repositories["me/tokens"].commits]
    told = tokenize("hf://datasets/me/parquet/data/*.parquet", "hf://datasets/me/tokens")
    assert "1 image shards, 1 done before, 0 to do" in told
    run("-m", "tatok_pipe.inspect_tokens", "input.url=hf://datasets/me/tokens", "--verify")
    assert sum(title.endswith(".parquet") and "_index" not in title for title in titles) == 1

    rows = {row.key: row for row in TokenDataset("hf://datasets/me/tokens").rows()}
    (label,) = {row.label for key, row in rows.items() if key.startswith("tabby/")}
    assert label == NAMES.index("tabby") and len(rows) == 12
    # Below the root of a repository nobody reads the card, so that one has to say where the rows are.
    files = {path: hub.content("me/tokens", path) for path in hub.repositories["me/tokens"].head.tree}
    hub.put("me/tars", {f"tokens/{path}": data for path, data in files.items()})
    for given in ("'me/tokens'", "'me/tars', data_dir='tokens/data'"):
        program = f"import datasets; print(sorted(datasets.load_dataset({given}, split='train')['key']))"
        assert run("-c", program).splitlines()[0] == str(sorted(rows))
