"""What is given where image shards are expected."""

from __future__ import annotations

import shutil
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tatok_pipe import storage
from tatok_pipe.encoding.image_input import find_image_shards, tell_output_inside
from tatok_pipe.errors import UserError
from tests.pictures import crop_members, write_shard
from tests.token_datasets import make_rows, write_token_dataset


def names(spec: str) -> list[str]:
    return [Path(shard.url).name for shard in find_image_shards(spec, option="input.shards")]


def refusal(spec: str) -> str:
    with pytest.raises(UserError) as caught:
        find_image_shards(spec, option="input.shards")
    message = str(caught.value)
    assert caught.value.exit_code == 2 and message.startswith("input.shards") and message.isprintable()
    return message


@pytest.fixture
def tokens(tmp_path: Path) -> Path:
    folder = tmp_path / "tokens"
    write_token_dataset(str(folder), [make_rows(3), make_rows(2, first=3)])
    return folder


def write_images(path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.table({"image": [b"\xff\xd8\xff"]}), path)


def test_image_shards_are_found(tmp_path: Path) -> None:
    write_shard(tmp_path / "0.tar", crop_members(1))
    write_images(tmp_path / "data" / "0.parquet")
    assert names(str(tmp_path)) == ["0.tar"]
    assert names(str(tmp_path / "data")) == names(f"{tmp_path}/data/*.parquet") == ["0.parquet"]


def test_nothing_given_names_the_option() -> None:
    assert refusal(" ").startswith("input.shards: ' ': names no image shard; give .tar files")


@pytest.mark.parametrize(
    "spec", ["", "/", "/data", "/data/*.parquet", "/*/*.parquet", "/data/000000-{0..1}*"]
)
def test_a_token_dataset_is_no_images(tokens: Path, spec: str) -> None:
    told = f"input.shards: {tokens}: a token dataset (it has _dataset.json), expected image shards; "
    if spec == "/data/000000-{0..1}*":
        spec = "/data/{" + ",".join(path.name for path in (tokens / "data").iterdir()) + "}"
    assert refusal(f"{tokens}{spec}") == told + (
        "give the image shards that it was made from, or give it to train_ar as input.url"
    )


def test_a_token_dataset_without_shards_is_no_images(tmp_path: Path) -> None:
    write_token_dataset(str(tmp_path / "tokens"), [])
    for spec in ("tokens", "tokens/", "tokens/*.tar", "tokens/{a,b}*"):
        spec = str(tmp_path / spec)
        assert refusal(spec).startswith(
            f"input.shards={spec}: a token dataset (it has _dataset.json), expected image"
        )


def test_a_token_dataset_among_images(tokens: Path) -> None:
    write_images(tokens.parent / "images" / "0.parquet")
    assert f"{tokens}: a token dataset" in refusal(str(tokens.parent))
    listed = tokens.parent / "list.txt"
    listed.write_text(f"{tokens.parent}/images\n{tokens}\n")
    assert f"{tokens}: a token dataset" in refusal(f"@{listed}")
    # Where there are tar files they are the shards, and nothing else is.
    write_shard(tokens.parent / "0.tar", crop_members(1))
    assert names(str(tokens.parent)) == ["0.tar"]


def test_token_shards_by_themselves(tokens: Path, tmp_path: Path) -> None:
    shutil.copytree(tokens / "data", tmp_path / "copy")
    (first, second) = sorted((tmp_path / "copy").iterdir())
    told = "a token shard (it has columns of codes), expected image shards; give the image shards"
    assert refusal(str(tmp_path / "copy")).startswith(f"input.shards: {first}: {told}")
    assert refusal(str(second)).startswith(f"input.shards: {second}: {told}")


def test_a_damaged_parquet_file_is_told_in_its_turn(tmp_path: Path) -> None:
    (tmp_path / "0.parquet").write_bytes(b"PAR1 and then nothing of the kind")
    write_images(tmp_path / "1.parquet")
    assert names(str(tmp_path)) == ["0.parquet", "1.parquet"]


@pytest.mark.parametrize(
    "mark", ["generator.json", "tokenizer.json", "_generation.json", "generator/generator.json"]
)
def test_other_outputs_are_no_images(tmp_path: Path, mark: str) -> None:
    storage.publish_bytes(b"{}", storage.join(str(tmp_path), mark), exclusive=True)
    message = refusal(str(tmp_path))
    assert f"(it has {mark}), expected image shards: .tar files, or Parquet" in message


def test_drawn_images_in_shards_are_images(tmp_path: Path) -> None:
    storage.publish_bytes(b"{}", str(tmp_path / "_generation.json"), exclusive=True)
    (tmp_path / "shards").mkdir()
    write_shard(tmp_path / "shards" / "000000.tar", crop_members(1))
    assert names(str(tmp_path)) == ["000000.tar"]


@pytest.mark.parametrize(
    ("name", "told"),
    [
        ("photos.7z", "a 7z archive"),
        ("photos.gz", "a compressed file"),
        ("photo.jpg", "a loose image"),
        ("photo.PNG", "a loose image"),
        ("photo.heic", "a loose image"),
        ("train.tfrecord", "a table of records of another format"),
        ("labels.csv", "a list or text"),
    ],
)
def test_files_of_another_kind(tmp_path: Path, name: str, told: str) -> None:
    (tmp_path / name).write_bytes(b"whatever it holds")
    for spec in (name, f"{name[:-2]}*"):
        assert refusal(str(tmp_path / spec)).startswith(
            f"input.shards: expected image shards, .tar or .parquet, given 1 × {told}, first: {tmp_path / name} ("
        )


def test_files_of_other_kinds_in_a_folder_are_told_by_kind(tmp_path: Path) -> None:
    for name in ("0.rar", *(f"{number}.jpg" for number in range(60))):
        (tmp_path / name).write_bytes(b"whatever it holds")
    message = refusal(str(tmp_path))
    assert message.startswith(
        f"input.shards: {tmp_path}: no .tar, .zip or .parquet file there; correct the pattern or the directory: "
        f"60 × a loose image, first: {tmp_path}/0.jpg (give the folder"
    )
    assert f"; 1 × a rar archive, first: {tmp_path}/0.rar (" in message


def test_files_whose_names_say_nothing_are_read(tmp_path: Path) -> None:
    (tmp_path / "shard").write_bytes(b"whatever it holds")
    assert names(str(tmp_path / "shard")) == ["shard"]


def test_what_is_not_there_names_the_option(tmp_path: Path) -> None:
    assert refusal(f"{tmp_path}/no.tar").startswith(
        f"input.shards: {tmp_path}/no.tar: 1 of 1 image shards do not"
    )
    (tmp_path / "empty").mkdir()
    assert "no .tar, .zip or .parquet file there" in refusal(f"{tmp_path}/empty")


@pytest.mark.parametrize(
    ("spec", "output", "told"),
    [
        ("/d", "/d/tokens", "where a later run would find token shards"),
        ("/d/", "/d/x/tokens", "where a later run would find token shards"),
        ("/d/**/*.parquet", "/d/tokens", "where a later run would find token shards"),
        ("/d/*/*/*.parquet", "/d/tokens", "where a later run would find token shards"),
        ("/d/*/*.parquet", "/d", "which lie where the token shards go"),
        ("/d/data/{0,1}.parquet", "/d", "which lie where the token shards go"),
        ("/d/*.parquet", "/d/tokens", ""),
        ("/d/*/*.parquet", "/d/tokens", ""),
        ("/d/data/*.parquet", "/d/data/tokens", ""),
        ("/d", "/d-tokens", ""),
        ("/d/data", "/e", ""),
    ],
)
def test_an_output_inside_the_input(spec: str, output: str, told: str) -> None:
    shards = [storage.ShardFile("/d/data/0.parquet", 1)]
    found = tell_output_inside(spec, shards, output)
    assert found.startswith(told) and bool(found) == bool(told)


@pytest.mark.s3
def test_on_a_store(s3_url: str) -> None:
    write_token_dataset(s3_url, [make_rows(2)])
    for spec in (s3_url, f"{s3_url}/data/*.parquet"):
        assert f"{s3_url}: a token dataset (it has _dataset.json)" in refusal(spec)
