"""Names of classes: what tells them, how they are looked up, and where they come from on their way to the images."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pytest
from PIL import Image

from tatok_pipe import storage
from tatok_pipe.api import load_generator
from tatok_pipe.ar.generation.conditions import parse_classes
from tatok_pipe.ar.options import GeneratorConfig
from tatok_pipe.commands.tokenize_corpus import setup as tokenize_setup
from tatok_pipe.commands.tokenize_corpus.options import TokenizeCorpusConfig
from tatok_pipe.config.load import load_config
from tatok_pipe.encoding.image_input import class_names_of, read_class_names
from tatok_pipe.errors import UserError
from tatok_pipe.images.class_names import difference_of_names, find_class, names_of_metadata, parse_names
from tatok_pipe.images.limits import ShardLimits
from tatok_pipe.images.shard_errors import UnusableShard
from tatok_pipe.images.source import open_samples
from tatok_pipe.storage import ShardFile
from tatok_pipe.tokenizer.checkpoint import load_tokenizer
from tatok_pipe.tokens.dataset import TokenDataset
from tatok_pipe.tokens.dataset_file import create_or_check
from tatok_pipe.tokens.spec import TokenSpec
from tests.generation.models import save_models
from tests.token_datasets import TINY, make_rows, write_token_dataset

NAMES = ("tench, Tinca tinca", "tabby, tabby cat", "crane", "Egyptian cat", "crane")


def write_parquet(path: Path, label: Any, value: Any = 1) -> ShardFile:
    """One image with a label of a type of the package datasets, as that package writes it."""
    picture = Image.fromarray(np.zeros((16, 16, 3), np.uint8))
    features = datasets.Features({"image": datasets.Image(), "label": label})
    data = datasets.Dataset.from_dict({"image": [picture], "label": [value]}, features=features)
    data.to_parquet(str(path))
    return ShardFile(str(path), path.stat().st_size)


def test_datasets_of_hugging_face_tell_their_names(tmp_path: Path) -> None:
    names: list[str] = [*NAMES[:4]]
    label = datasets.ClassLabel(names=names)
    for kind, value in ((label, 1), (datasets.List(label), [1])):
        shard = write_parquet(tmp_path / "names.parquet", kind, value)
        assert class_names_of(shard, ShardLimits()) == tuple(names)
    assert class_names_of(shard, ShardLimits(ignore=["label"])) == ()
    assert (
        class_names_of(write_parquet(tmp_path / "none.parquet", datasets.Value("int64")), ShardLimits()) == ()
    )
    (tmp_path / "no.parquet").write_bytes(b"no Parquet")
    for name in ("no.parquet", "missing.parquet", "x.tar"):
        assert class_names_of(ShardFile(str(tmp_path / name), 10), ShardLimits()) == ()


@pytest.mark.parametrize(
    "content",
    [
        "[]", "{", "null", '{"info": {"features": []}}', '{"info": {"features": {"label": {"names": "ab"}}}}',
        '{"info": {"features": {"label": {"names": ["a", 2]}}}}',
        '{"info": {"features": {"label": {"names": ["a", ""]}}}}',
    ],
)  # fmt: skip
def test_other_metadata_tells_none(content: str) -> None:
    assert names_of_metadata({b"huggingface": content.encode()}, "label") == ()
    assert names_of_metadata(None, "label") == ()


def test_a_shard_of_other_classes_is_refused(tmp_path: Path) -> None:
    shard = write_parquet(tmp_path / "names.parquet", datasets.ClassLabel(names=["tench", "tabby"]))

    def read(*names: str) -> int | None:
        info = storage.file_info(shard.url)
        with open_samples(shard.url, info=info, class_names=names) as samples:
            (sample,) = samples
        return getattr(sample, "label", None)

    assert read("tench", "tabby") == read() == 1
    with pytest.raises(UnusableShard, match="class 1 is tabby, not beagle") as error:
        read("tench", "beagle")
    assert "input.class_names=none" in str(error.value)


def test_names_of_a_list_and_of_a_token_dataset(tmp_path: Path) -> None:
    listing = tmp_path / "names.txt"
    listing.write_text("tench\r\ntabby\nÄffin\n", encoding="utf-8")
    assert read_class_names(f"@{listing}", option="x") == ("tench", "tabby", "Äffin")
    named = replace(TINY, class_names=("a", "b"))
    write_token_dataset(str(tmp_path / "named"), [make_rows(2)], spec=named)
    assert read_class_names(str(tmp_path / "named"), option="x") == ("a", "b")
    assert TokenDataset(str(tmp_path / "named")).spec == named  # of the footers too
    write_token_dataset(str(tmp_path / "bare"), [make_rows(2)])
    listing.write_bytes(b"a\n\nb\n")
    for given, message in (
        (str(tmp_path / "bare"), "whose classes have no names"),
        (f"@{listing}", "line 2 is empty"),
        (f"@{tmp_path}/away.txt", "not found"),
        (str(tmp_path / "away"), "no token dataset"),
    ):
        with pytest.raises(UserError, match=message) as error:
            read_class_names(given, option="input.class_names")
        assert error.value.exit_code == 2 and "\n" not in str(error.value)
    with pytest.raises(ValueError, match="line 1 is empty"):
        parse_names("")


def test_a_dataset_keeps_its_names(tmp_path: Path) -> None:
    """Those it began with, those that are given, or none; others are refused with the first difference."""
    tokenizer = load_tokenizer()
    shard = write_parquet(tmp_path / "names.parquet", datasets.ClassLabel(names=["tench", "tabby"]))
    (tmp_path / "names.txt").write_text("tench\nbeagle\n")

    def spec(*argv: str) -> TokenSpec:
        config = load_config(
            TokenizeCorpusConfig, [f"output.url={tmp_path}/out", *argv], prog="x", description=""
        )
        return tokenize_setup.make_spec(config, tokenizer, [shard])

    began = spec()
    assert began.class_names == ("tench", "tabby")
    assert spec("input.class_names=none").class_names == ()
    create_or_check(f"{tmp_path}/out", began, {})
    shard = ShardFile(f"{tmp_path}/other.tar", 1)
    assert spec() == began
    other = spec(f"input.class_names=@{tmp_path}/names.txt")
    with pytest.raises(UserError, match=r"its class names: class 1 is tabby, not beagle\)") as error:
        create_or_check(f"{tmp_path}/out", other, {})
    assert error.value.exit_code == 3
    assert TokenSpec.from_json(json.loads(json.dumps(began.to_json()))) == began
    assert began.show_class(1) == "tabby (class 1)" and began.show_class(2) == "class 2"


def test_names_are_found() -> None:
    assert find_class("tabby", NAMES) == find_class(" TABBY CAT", NAMES) == find_class(NAMES[1], NAMES) == [1]
    assert find_class("crane", NAMES) == [2, 4]
    assert find_class("Crane", NAMES) == [2, 4]
    assert find_class("cat", NAMES) == [] and find_class("", NAMES) == []
    assert difference_of_names(("a",), ("a", "b")) == "class 1 is without a name, not b"


@pytest.mark.parametrize(
    ("text", "classes"),
    [
        ("tabby", (1,)), ("tench,3", (0, 3)), ("tench, Tinca tinca", (0,)),
        ("Egyptian cat,tabby cat,0-1", (3, 1, 0, 1)),
    ],
)  # fmt: skip
def test_classes_by_name(text: str, classes: tuple[int, ...]) -> None:
    assert parse_classes(text, num_classes=5, names=NAMES) == classes


def test_names_that_are_none_are_one_line() -> None:
    for text, message in (
        ("tabbi", r"'tabbi' is no class; .* names such as tabby"),
        ("crane", r"'crane' may be 2 \(crane\) or 4 \(crane\)"),
        ("tabby,,3", "'' is no class"),
    ):
        with pytest.raises(UserError, match=message) as error:
            parse_classes(text, num_classes=5, names=NAMES)
        assert error.value.exit_code == 2 and "\n" not in str(error.value)


def test_a_generator_draws_by_name(tmp_path: Path) -> None:
    config = GeneratorConfig(width=32, depth=1, heads=2, num_classes=5)
    models = save_models(tmp_path, config, class_names=NAMES)
    generator = load_generator(models.generator)
    drawn = generator.sample(4, classes=[1, 3])
    for classes in (["tabby", "Egyptian cat"], ("tabby cat", 3), "tabby,egyptian cat"):
        assert generator.sample(4, classes=classes) == drawn
    with pytest.raises(UserError, match="'dog' is no class"):
        generator.sample(1, classes=["dog"])
