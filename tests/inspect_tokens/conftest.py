from __future__ import annotations

import io
import tarfile
from pathlib import Path

import pytest

from tatok_pipe.images.demo import write_demo_corpus
from tests.inspect_tokens.small import BAD_SAMPLES, Made, save_random_tokenizer, tokenize


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Made:
    """35 images and two bad ones in three shards; a fourth shard failed."""
    folder = tmp_path_factory.mktemp("inspect")
    shards = write_demo_corpus(folder / "images", num_shards=2, crops_per_source=2).shards
    for name, members in (("bad", BAD_SAMPLES), ("cut", {"a.jpg": b"x"})):
        path = folder / f"{name}.tar"
        with tarfile.open(path, "w") as tar:
            for member, data in members.items():
                header = tarfile.TarInfo(member)
                header.size = len(data)
                tar.addfile(header, io.BytesIO(data))
        shards.append(str(path))
    Path(shards[3]).write_bytes(Path(shards[3]).read_bytes()[:700])
    checkpoint = str(folder / "tokenizer")
    save_random_tokenizer(checkpoint, seed=0)
    tokenize(str(folder / "tokens"), checkpoint, shards)
    return Made(str(folder / "tokens"), checkpoint, shards)
