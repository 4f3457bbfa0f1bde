"""What entries leave behind is recognised, and named where something else is expected."""

from __future__ import annotations

from pathlib import Path

import pytest

from tatok_pipe import storage
from tatok_pipe.ar import checkpoint as generators
from tatok_pipe.ar.checkpoint import load_generator
from tatok_pipe.ar.generation.layout import PLAN_FILE
from tatok_pipe.errors import UserError
from tatok_pipe.storage.outputs import OUTPUTS, recognise
from tatok_pipe.tokenizer import checkpoint as tokenizers
from tatok_pipe.tokenizer.checkpoint import load_tokenizer, packaged_folder
from tatok_pipe.tokens.dataset import TokenDataset
from tatok_pipe.tokens.layout import DATASET_FILE
from tests.token_datasets import make_rows, write_token_dataset


def test_marks_are_those_that_entries_write() -> None:
    marks = [each.mark for each in OUTPUTS]
    generator, tokenizer = generators.FOLDER.description, tokenizers.FOLDER.description
    assert marks[:4] == [DATASET_FILE, PLAN_FILE, generator, tokenizer]
    assert marks[4:] == [f"generator/{generator}", f"tokenizer/{tokenizer}"]


def test_each_is_named(tmp_path: Path) -> None:
    for number, output in enumerate(OUTPUTS):
        url = str(tmp_path / str(number))
        assert recognise(url) == ""
        storage.publish_bytes(b"{}", storage.join(url, output.mark), exclusive=True)
        assert recognise(url) == recognise(url + "/") == f"{output.name} (it has {output.mark})"


def place(tmp_path: Path, what: str) -> str:
    """A place with `what`."""
    url = str(tmp_path / what)
    if what == "tokens":
        write_token_dataset(url, [make_rows(2)])
    elif what == "images":
        storage.publish_bytes(b"", storage.join(url, "0.tar"), exclusive=True)
    elif what.startswith("file."):
        storage.publish_bytes(b"", url, exclusive=True)
    elif what == "generator":
        storage.publish_bytes(b"{}", storage.join(url, "generator.json"), exclusive=True)
    elif what == "training":
        for name in ("tokenizer/tokenizer.json", "tokenizer/model.safetensors"):
            storage.publish_bytes(b"{}", storage.join(url, name), exclusive=True)
    return url


@pytest.mark.parametrize(
    ("what", "told"),
    [
        ("images", "image shards, expected a token dataset, which has _dataset.json"),
        ("file.tar", "image shards, expected a token dataset, which has _dataset.json"),
        ("file.txt", "no _dataset.json there, so it is no token dataset"),
        ("nowhere", "no _dataset.json there, so it is no token dataset"),
        ("generator", r"a generator \(it has generator.json\), expected a token dataset"),
        (
            "training",
            r"an output of train_tokenizer \(it has tokenizer/tokenizer.json\), expected a token dataset",
        ),
    ],
)
def test_where_a_token_dataset_is_expected(tmp_path: Path, what: str, told: str) -> None:
    url = place(tmp_path, what)
    with pytest.raises(UserError, match=f"^{url}: {told}; give the output.url of a tokenize_corpus run$"):
        TokenDataset(url)


def test_a_part_of_a_token_dataset_is_not_all_of_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    url = place(tmp_path, "tokens")
    with pytest.raises(
        UserError, match=f"^{url}/data/: a part of the token dataset {url}, expected all of it"
    ):
        TokenDataset(f"{url}/data/")
    monkeypatch.chdir(url)
    with pytest.raises(UserError, match="^data: a part of the token dataset ., expected all of it"):
        TokenDataset("data")


def test_where_a_tokenizer_is_expected(tmp_path: Path) -> None:
    wanted = "expected a folder with tokenizer.json and model.safetensors"
    for what, told in (
        ("images", f"{wanted}; give the output.url of a finished train_tokenizer run"),
        ("file.tar", f"{wanted}; give the output.url of a finished train_tokenizer run"),
        ("tokens", rf"a token dataset \(it has _dataset.json\), {wanted}; give the output.url"),
        ("generator", rf"a generator \(it has generator.json\), {wanted}; give the output.url"),
    ):
        url = place(tmp_path, what)
        with pytest.raises(UserError, match=f"^tokenizer.checkpoint={url}: {told}"):
            load_tokenizer(url)
    url = place(tmp_path, "training")  # in whose tokenizer/ are damaged files
    with pytest.raises(
        UserError, match=f"^tokenizer.checkpoint={url}/tokenizer: expected format 3 in tokenizer.json$"
    ):
        load_tokenizer(url)


def test_where_a_generator_is_expected() -> None:
    url = packaged_folder()
    wanted = "expected a folder with generator.json and generator.safetensors"
    with pytest.raises(
        UserError, match=rf"^checkpoint={url}: a tokenizer \(it has tokenizer.json\), {wanted}"
    ):
        load_generator(url)
