"""The demo corpus: real pictures, the same bytes every time, whole or not there at all."""

from __future__ import annotations

import hashlib
import importlib.util
import inspect
import json
import os
import socket
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from tatok_pipe.errors import UserError
from tatok_pipe.images import demo
from tatok_pipe.images.decode import decode_image
from tatok_pipe.images.demo import HELD_OUT, SOURCES, DemoCorpus, held_out_crops, write_demo_corpus
from tatok_pipe.images.options import PreprocessConfig
from tatok_pipe.images.webdataset.samples import read_samples
from tatok_pipe.records import ImageSample

for package in ("skimage", "sklearn", "webdataset"):
    if importlib.util.find_spec(package) is None:
        pytest.skip(f"{package} is not installed", allow_module_level=True)

SHOWN = [source for source in SOURCES if source.name not in HELD_OUT]
SMALL = {"num_shards": 3, "crops_per_source": 4}


@pytest.fixture(scope="module")
def corpus(tmp_path_factory) -> DemoCorpus:
    return write_demo_corpus(tmp_path_factory.mktemp("demo") / "corpus", **SMALL)


def read(corpus: DemoCorpus) -> list[list[ImageSample]]:
    shards = []
    for path in corpus.shards:
        with open(path, "rb") as stream:
            samples = list(read_samples(stream, shard=path))
        shards.append([sample for sample in samples if isinstance(sample, ImageSample)])
        assert len(shards[-1]) == len(samples)
    return shards


def digests(directory: str | Path) -> dict[str, str]:
    files = sorted(Path(directory).iterdir())
    return {file.name: hashlib.sha256(file.read_bytes()).hexdigest() for file in files}


def test_defaults_are_large_enough():
    parameters = inspect.signature(write_demo_corpus).parameters
    assert parameters["num_shards"].default >= 6
    assert parameters["crops_per_source"].default * len(SHOWN) >= 480


def test_samples(corpus):
    shards = read(corpus)
    samples = [sample for shard in shards for sample in shard]
    assert len(shards) == 3 and len(samples) == corpus.num_images == 4 * len(SHOWN)
    assert len({sample.key for sample in samples}) == len(samples)
    squares = 0
    for sample in samples:
        assert sample.label is not None and sample.meta is not None
        source, meta = SOURCES[sample.label], json.loads(sample.meta)
        assert (meta["source"], meta["kind"]) == (source.name, source.kind)
        left, top, right, bottom = meta["box"]
        assert 0 <= left < right and 0 <= top < bottom and min(right - left, bottom - top) >= 96
        assert sample.image.startswith(b"\x89PNG" if source.kind == "text" else b"\xff\xd8")
        pixels, width, height = decode_image(sample.image, PreprocessConfig(image_size=64))
        assert max(width, height) <= 320 and min(width, height) >= 96 * 0.6
        assert np.ptp(pixels) > 20  # a picture, not a blank
        squares += width == height
    assert 0.5 < squares / len(samples) < 1
    assert len({sample.image for sample in samples}) == len(samples)


def test_every_source_is_spread_over_the_shards(corpus):
    for shard in read(corpus):
        counts = Counter(sample.label for sample in shard)
        assert set(counts) == {SOURCES.index(source) for source in SHOWN}
        assert max(counts.values()) - min(counts.values()) <= 1
        assert [s.label for s in shard] != sorted(s.label or 0 for s in shard)


def test_held_out_pictures_are_only_held_out(corpus):
    assert len(HELD_OUT) >= 2 and {source.name for source in SOURCES} > set(HELD_OUT)
    shown = {sample.label for shard in read(corpus) for sample in shard}
    held_out = held_out_crops(crops_per_source=2)
    assert len(held_out) == 2 * len(HELD_OUT)
    assert shown.isdisjoint({sample.label for sample in held_out})
    assert {json.loads(sample.meta or "")["source"] for sample in held_out} == set(HELD_OUT)
    assert held_out == held_out_crops(crops_per_source=2) != held_out_crops(crops_per_source=2, seed=1)


def test_same_arguments_same_bytes_and_other_seed_other_bytes(corpus, tmp_path):
    made = digests(Path(corpus.shards[0]).parent)
    write_demo_corpus(tmp_path / "again", **SMALL)
    assert digests(tmp_path / "again") == made
    write_demo_corpus(tmp_path / "other", **SMALL, seed=1)
    assert set(digests(tmp_path / "other").values()).isdisjoint(made.values())


def test_a_complete_corpus_is_taken_as_it_is(corpus):
    directory = Path(corpus.shards[0]).parent
    before = {file: file.stat().st_mtime_ns for file in directory.iterdir()}
    assert write_demo_corpus(directory, **SMALL) == corpus
    assert {file: file.stat().st_mtime_ns for file in directory.iterdir()} == before


def test_nothing_but_the_corpus_is_left_and_others_may_read_it(corpus):
    directory = Path(corpus.shards[0]).parent
    assert [entry.name for entry in directory.parent.iterdir()] == ["corpus"]
    assert sorted(digests(directory)) == ["corpus.json", *(f"demo-00000{i}.tar" for i in range(3))]
    assert directory.stat().st_mode & 0o055 == 0o055


def test_a_relative_and_empty_directory(tmp_path, monkeypatch):
    (tmp_path / "empty").mkdir()
    monkeypatch.chdir(tmp_path)
    corpus = write_demo_corpus("empty", num_shards=1, crops_per_source=1)
    assert corpus.shards == [str(tmp_path / "empty" / "demo-000000.tar")]


def test_an_interrupted_run_leaves_nothing(tmp_path, monkeypatch):
    crop = demo._crop_source

    def interrupted(source, **options):
        if source.name == "page":
            raise KeyboardInterrupt
        return crop(source, **options)

    monkeypatch.setattr(demo, "_crop_source", interrupted)
    with pytest.raises(KeyboardInterrupt):
        write_demo_corpus(tmp_path / "corpus", **SMALL)
    assert list(tmp_path.iterdir()) == []


def test_what_lies_there_is_never_overwritten(corpus, tmp_path):
    directory = Path(corpus.shards[0]).parent
    with pytest.raises(UserError, match="'num_shards': 3.*'num_shards': 4.*give another directory"):
        write_demo_corpus(directory, num_shards=4, crops_per_source=4)
    (tmp_path / "thesis.txt").write_text("mine")
    for place in (tmp_path, tmp_path / "thesis.txt"):
        with pytest.raises(UserError, match="found other files"):
            write_demo_corpus(place)
    assert (tmp_path / "thesis.txt").read_text() == "mine"


def test_a_damaged_corpus_is_not_taken(tmp_path):
    corpus = write_demo_corpus(tmp_path / "corpus", num_shards=2, crops_per_source=1)
    os.truncate(corpus.shards[1], 1000)
    with pytest.raises(UserError, match="demo-000001.tar: missing, or not as it was written"):
        write_demo_corpus(tmp_path / "corpus", num_shards=2, crops_per_source=1)


def test_the_network_is_not_asked(tmp_path, monkeypatch):
    def refuse(*_):
        raise AssertionError("a connection was attempted")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    write_demo_corpus(tmp_path / "corpus", num_shards=1, crops_per_source=1)


@pytest.mark.parametrize("package", ["skimage", "sklearn"])
def test_a_missing_package_is_named_with_the_remedy(tmp_path, monkeypatch, package):
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == package else find(name))
    with pytest.raises(UserError, match=rf"{package}, which is missing; pip install \"tatok_pipe\[demo\]\""):
        write_demo_corpus(tmp_path / "corpus", **SMALL)
    assert list(tmp_path.iterdir()) == []


def test_counts_must_be_positive(tmp_path):
    with pytest.raises(UserError, match="num_shards=0"):
        write_demo_corpus(tmp_path, num_shards=0)
