"""What a user may ask for becomes a plan, and everything else one line that says what is wrong."""

from __future__ import annotations

import json
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from tatok_pipe import storage
from tatok_pipe.ar.batch import Vocabulary
from tatok_pipe.ar.checkpoint import LoadedGenerator
from tatok_pipe.ar.generation.conditions import asked_patches, check_pair, parse_classes
from tatok_pipe.ar.generation.job import GenerationPlan, StartPlan
from tatok_pipe.ar.generation.layout import PLAN_FILE
from tatok_pipe.ar.model import Generator
from tatok_pipe.ar.options import DrawConfig, GeneratorConfig, SamplingConfig
from tatok_pipe.commands.generate.options import GenerateConfig
from tatok_pipe.commands.generate.plan import create_or_check, describe_sources, make_plan, read_plan, to_json
from tatok_pipe.config.load import from_dict, load_config
from tatok_pipe.errors import RefusedError, UserError
from tatok_pipe.tokenizer.checkpoint import Tokenizer
from tatok_pipe.tokenizer.model import TaTok
from tatok_pipe.tokens.dataset import TokenDataset
from tests.generation.models import TOKENIZER
from tests.token_datasets import TINY, make_rows, write_token_dataset

GENERATORS = {
    "none": GeneratorConfig(width=16, depth=1, heads=2, condition="none"),
    "class": GeneratorConfig(width=16, depth=1, heads=2, num_classes=10),
    "embedding": GeneratorConfig(width=16, depth=1, heads=2, condition="embedding", embedding_dim=3),
    "budgets": GeneratorConfig(width=16, depth=1, heads=2, num_classes=10, num_budgets=4),
}


def make_generator(kind: str) -> LoadedGenerator:
    return LoadedGenerator(Generator(GENERATORS[kind], Vocabulary.from_spec(TINY)), "fe" * 32, TINY, {})


def read_config(*argv: str) -> GenerateConfig:
    return load_config(GenerateConfig, list(argv), prog="generate", description="")


def plan_of(kind: str, *argv: str) -> GenerationPlan:
    return make_plan(read_config(*argv), make_generator(kind))


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working directory, with what options may name."""
    monkeypatch.chdir(tmp_path)
    write_token_dataset("tokens", [make_rows(3), make_rows(2, first=3)])
    write_token_dataset("rowless", [[]])
    write_token_dataset("shardless", [])
    other = replace(TINY, tokenizer_fingerprint="34" * 32)
    write_token_dataset("of_another", [make_rows(3, spec=other)], spec=other)
    for name, size in (("vectors", 3), ("longer", 4)):
        pq.write_table(pa.table({"embedding": list(np.ones((5, size), np.float32))}), f"{name}.parquet")
    return tmp_path


def test_the_plan_of_the_defaults() -> None:
    for kind, classes in (("none", ()), ("embedding", ()), ("class", tuple(range(10)))):
        plan = GenerationPlan(16, 500, 0, classes, SamplingConfig(), None, None, None)
        assert plan_of(kind) == plan


def test_the_plan_is_what_was_asked_for(folder: Path) -> None:
    plan = plan_of(
        "budgets",
        "num_images=12", "output.images_per_shard=5", "seed=3", "classes=7,2-4", "target_tokens=12",
        "sampling.codes.guidance=2.5", "sampling.positions.top_p=0.9", "sampling.max_patches=8",
        "start.url=tokens", "start.rows=1:3", "start.columns=:2", "start.keep_globals=false",
    )  # fmt: skip
    assert plan == GenerationPlan(
        num_images=12,
        images_per_shard=5,
        seed=3,
        classes=(7, 2, 3, 4),
        sampling=SamplingConfig(
            codes=DrawConfig(guidance=2.5), positions=DrawConfig(top_p=0.9), max_patches=8
        ),
        num_patches=10,
        embeddings_url=None,
        start=StartPlan(str(folder / "tokens"), False, (1, 3), (0, 2)),  # as other machines find it
    )
    assert plan.num_shards == 3
    assert plan_of("class", "classes=none").classes == ()
    assert plan_of("embedding", "embeddings=vectors.parquet").embeddings_url == str(
        folder / "vectors.parquet"
    )


@pytest.mark.parametrize(
    ("rows", "columns", "expected"),
    [
        ("", "", ((0, 0), (0, 0))),
        ("0:4", "", ((0, 4), (0, 4))),
        (":2", "", ((0, 2), (0, 4))),
        ("", "3:", ((0, 4), (3, 4))),
        ("3:4", "1:2", ((3, 4), (1, 2))),
        (" 1 : 3 ", ":", ((1, 3), (0, 4))),
    ],
)
def test_spans(folder: Path, rows: str, columns: str, expected: tuple[tuple[int, int], ...]) -> None:
    start = plan_of("none", "start.url=tokens", f"start.rows={rows}", f"start.columns={columns}").start
    assert start == StartPlan(str(folder / "tokens"), True, *expected)


def test_sources_tell_that_they_changed(folder: Path) -> None:
    assert describe_sources(plan_of("class")) == {}
    started = describe_sources(plan_of("class", "start.url=tokens", "start.rows=0:2"))
    assert started == {"start_version": TokenDataset("tokens").version.digest}
    vectors = describe_sources(plan_of("embedding", "embeddings=vectors.parquet"))
    assert vectors == {"embeddings_bytes": (folder / "vectors.parquet").stat().st_size}


@pytest.mark.parametrize(
    ("kind", "argv", "message"),
    [
        ("class", ["classes=10"], r"classes=10: expected 0 to 9"),
        ("class", ["classes=0-9,99"], r"classes=0-9,99: expected 0 to 9"),
        ("class", ["classes=0-99999999999999"], r"expected 0 to 9"),
        ("class", ["classes=3-1"], r"classes=3-1: 3-1 is empty; expected the smaller number first"),
        ("class", ["classes=0,3-2"], r"classes=0,3-2: 3-2 is empty"),
        ("class", ["classes=1,cat"], r"classes=1,cat: 'cat' is no class; expected all, none, or a list like"),
        ("class", ["classes=1,,2"], r"'' is no class"),
        ("class", ["classes="], r"'' is no class"),
        ("class", ["classes=-1"], r"'-1' is no class"),
        ("class", ["classes=1.5"], r"'1.5' is no class"),
        ("none", ["classes=3"], r"classes=3: the generator's condition is none"),
        ("embedding", ["classes=0-2"], r"classes=0-2: the generator's condition is embedding"),
        ("class", ["embeddings=vectors.parquet"], r"embeddings=vectors.parquet: the generator's condition is class"),
        ("embedding", ["embeddings=longer.parquet"], r"longer.parquet: .*lists of 3 numbers"),
        ("embedding", ["embeddings=nowhere.parquet"], r"nowhere.parquet: .*; expected a Parquet .*lists of 3 numbers"),
        ("class", ["target_tokens=5"], r"target_tokens=5: the generator knows no budgets; .*sampling.max_patches"),
        ("budgets", ["target_tokens=1"], r"target_tokens=1: expected 2 to 18"),
        ("budgets", ["target_tokens=19"], r"target_tokens=19: expected 2 to 18"),
        ("none", ["sampling.codes.guidance=2"], r"guidance: expected 1, the generator has no condition"),
        ("none", ["sampling.positions.guidance=0"], r"guidance: expected 1, the generator has no condition"),
        ("class", ["start.rows=0:2"], r"start.rows, start.columns, start.keep_globals: expected start.url"),
        ("class", ["start.columns=0:2"], r"start.rows, start.columns, start.keep_globals: expected start.url"),
        ("class", ["start.keep_globals=false"], r"start.keep_globals: expected start.url"),
        ("class", ["start.url=tokens", "start.keep_globals=false"], r"nothing of start.url is kept"),
        ("class", ["start.url=nowhere"], r"nowhere: no _dataset.json there"),
        ("class", ["start.url=rowless"], r"start.url=rowless: has no images to start from"),
        ("class", ["start.url=shardless"], r"start.url=shardless: has no images to start from"),
        *(
            ("class", ["start.url=tokens", f"start.{name}={text}"], rf"{name}={text}: expected FROM:TO within 0:4")
            for name in ("rows", "columns")
            for text in ("2", "0:5", "2:2", "3:1", "4:", "-1:2", "a:b", "0:2:1", "1-2")
        ),
        (
            "class",
            ["start.url=tokens", "start.rows=0:2", "start.columns=1:4", "sampling.max_patches=5"],
            r"sampling.max_patches=5: start.rows and start.columns may keep 6; give at least as many",
        ),
    ],
)  # fmt: skip
def test_what_cannot_be_is_one_line(folder: Path, kind: str, argv: list[str], message: str) -> None:
    with pytest.raises(UserError, match=message) as caught:
        plan_of(kind, *argv)
    assert "\n" not in str(caught.value) and not isinstance(caught.value, RefusedError)


def test_tokens_of_another_tokenizer_are_refused(folder: Path) -> None:
    message = (
        "start.url=of_another: its tokens are of tokenizer 343434343434, the generator's of 121212121212"
    )
    with pytest.raises(RefusedError, match=message):
        plan_of("class", "start.url=of_another")


def test_room_for_as_much_as_is_kept(folder: Path) -> None:
    argv = ["start.url=tokens", "start.rows=0:2", "start.columns=1:4"]
    assert plan_of("class", *argv, "sampling.max_patches=6").start == plan_of("class", *argv).start
    assert plan_of("class", "start.url=tokens", "sampling.max_patches=0").start is not None


def test_budgets_count_globals() -> None:
    generator = make_generator("budgets")
    asked = {tokens: asked_patches(tokens, generator) for tokens in (None, 2, 3, 18)}
    assert asked == {None: None, 2: 0, 3: 1, 18: 16}


@pytest.mark.parametrize(
    ("text", "classes"),
    [
        ("3", (3,)),
        ("0-9", tuple(range(10))),
        ("7,7,2-3", (7, 7, 2, 3)),
        (" 1 , 4-5 ", (1, 4, 5)),
        ("9-9", (9,)),
        ("008", (8,)),
    ],
)
def test_lists_of_classes(text: str, classes: tuple[int, ...]) -> None:
    assert parse_classes(text, num_classes=10) == classes


def test_generator_and_tokenizer_belong_together() -> None:
    torch.manual_seed(0)
    generator, model = make_generator("none"), TaTok(TOKENIZER)
    check_pair(generator, Tokenizer(model, "12" * 32, {}, {}), checkpoint="a", tokenizer_url="b")
    with pytest.raises(RefusedError) as caught:
        check_pair(
            generator,
            Tokenizer(model, "56" * 32, {}, {}),
            checkpoint="s3://b/g",
            tokenizer_url="s3://me:pw@b/t",
        )
    message = str(caught.value)
    assert (
        message.startswith("tokenizer=s3://***@b/t: has fingerprint 565656565656, ") and "\n" not in message
    )
    assert "checkpoint=s3://b/g was trained on tokens of 121212121212" in message


def as_content(plan: GenerationPlan, **settings: Any) -> dict[str, Any]:
    return {"generator_fingerprint": "fe" * 32, "plan": to_json(plan), "layout": "files", **settings}


def test_a_plan_is_json_and_back(folder: Path) -> None:
    plan = plan_of(
        "budgets", "classes=1-3", "target_tokens=9", "start.url=tokens", "start.rows=0:2", "sampling.codes.top_k=5"
    )  # fmt: skip
    found = to_json(plan)
    assert json.loads(json.dumps(found)) == found
    start = found.pop("start")
    again = GenerationPlan(
        start=StartPlan(start["url"], start["keep_globals"], tuple(start["rows"]), tuple(start["columns"])),
        sampling=from_dict(SamplingConfig, found.pop("sampling")),
        classes=tuple(found.pop("classes")),
        **found,
    )
    assert again == plan


def test_an_output_goes_on_with_the_same_settings(tmp_path: Path) -> None:
    url = str(tmp_path / "out")
    content = as_content(plan_of("class"), slots=32)
    create_or_check(url, content, {"version": 1})
    begun = (tmp_path / "out" / PLAN_FILE).read_bytes()
    assert read_plan(url) == {"format": 2, **content, "description": {"version": 1}}
    create_or_check(url, content, {"version": 2})  # for people, not compared
    assert (tmp_path / "out" / PLAN_FILE).read_bytes() == begun


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        (["seed=1"], ["its plan.seed: 0, not 1"]),
        (["num_images=17"], ["its plan.num_images: 16, not 17"]),
        (["classes=1,2"], ["its plan.classes: [0, 1, 2, 3, 4, 5, 6, 7, 8, 9], not [1, 2]"]),
        (["sampling.codes.top_p=0.5"], ["its plan.sampling.codes.top_p: 1.0, not 0.5"]),
        (
            ["output.images_per_shard=4", "target_tokens=7"],
            ["its plan.images_per_shard: 500, not 4", "its plan.num_patches: None, not 5"],
        ),
        (
            ["start.url=tokens", "start.rows=1:2"],
            ["its plan.start.keep_globals: None, not True", "its plan.start.rows: None, not [1, 2]"],
        ),
    ],
)
def test_an_output_of_other_settings_is_refused_with_what_differs(
    folder: Path, changes: list[str], told: list[str]
) -> None:
    create_or_check("out", as_content(plan_of("budgets"), slots=32), {})
    begun = (folder / "out" / PLAN_FILE).read_bytes()
    with pytest.raises(RefusedError) as caught:
        create_or_check("out", as_content(plan_of("budgets", *changes), slots=32), {})
    message = str(caught.value)
    assert message.startswith("out: holds images of another run (its plan.") and "\n" not in message
    assert all(each in message for each in told)
    if len(told) == 1:
        assert message.count("; its ") == 0  # and of nothing else
    assert message.endswith("give another output.url, or the same settings")
    assert (folder / "out" / PLAN_FILE).read_bytes() == begun
    with pytest.raises(RefusedError, match=r"\(its layout: files, not webdataset; its slots: 32, not 8\)"):
        create_or_check("out", as_content(plan_of("budgets"), slots=8, layout="webdataset"), {})
    with pytest.raises(RefusedError, match=r"\(its slots: 32, not None\)"):
        create_or_check("out", as_content(plan_of("budgets")), {})


def test_of_two_runs_that_begin_at_once_one_is_refused(tmp_path: Path) -> None:
    plans = [plan_of("class", f"seed={seed}") for seed in range(6)]

    def begin(plan: GenerationPlan) -> str:
        try:
            create_or_check(str(tmp_path), as_content(plan), {})
        except RefusedError as error:
            return str(error)
        return ""

    with ThreadPoolExecutor(len(plans)) as pool:
        messages = list(pool.map(begin, plans))
    winner = messages.index("")
    assert messages.count("") == 1 and read_plan(str(tmp_path))["plan"]["seed"] == winner
    assert all(f"plan.seed: {winner}, not {seed}" in messages[seed] for seed in range(6) if seed != winner)


@pytest.mark.parametrize(
    ("text", "message"),
    [("{", "is not JSON"), ("[]", "expected format 2"), ("{}", "expected format 2"), ('{"format": 1}', "format 2")],
)  # fmt: skip
def test_what_is_no_output_of_ours_is_left_alone(tmp_path: Path, text: str, message: str) -> None:
    url = str(tmp_path)
    storage.publish_bytes(text.encode(), storage.join(url, PLAN_FILE), exclusive=True)
    for act in (read_plan, lambda url: create_or_check(url, as_content(plan_of("none")), {})):
        with pytest.raises(
            UserError, match=rf"{PLAN_FILE}: .*{message}.*; give another output.url"
        ) as caught:
            act(url)
        assert "\n" not in str(caught.value)
    assert (tmp_path / PLAN_FILE).read_text() == text


@pytest.mark.parametrize(
    ("argument", "message"),
    [
        ("num_images=0", "num_images=0: expected at least 1"),
        ("seed=-1", "seed=-1: expected at least 0"),
        ("device.slots=0", "device.slots=0: expected at least 1"),
        ("device.steps=c device.precision=bf16", "steps=c with precision=bf16: expected fp32"),
        ("device.precision=fp16", "device.precision=fp16: expected one of auto, fp32, bf16"),
        ("output.layout=zip", "output.layout=zip: expected one of files, webdataset"),
        ("output.image_format=jpeg", "output.image_format=jpeg: expected one of png, webp"),
        ("output.images_per_shard=0", "output.images_per_shard=0: expected at least 1"),
        ("output.contact_sheet=-1", "output.contact_sheet=-1: expected at least 0"),
        ("output.gallery=-1", "output.gallery=-1: expected at least 0"),
    ],
)
def test_options_out_of_range_are_one_line(argument: str, message: str) -> None:
    with pytest.raises(UserError) as caught:
        read_config(*argument.split())
    assert message in str(caught.value) and "\n" not in str(caught.value)


def trained(kind: str, **training: Any) -> LoadedGenerator:
    return replace(make_generator(kind), training=training)


@pytest.mark.parametrize(
    ("kind", "argv", "message"),
    [
        ("class", ["sampling.codes.guidance=2"], r"guidance: expected 1, .*drop_condition=0.1"),
        ("class", ["sampling.positions.guidance=0"], r"guidance: expected 1, .*drop_condition=0.1"),
        ("class", ["classes=none"], r"classes: none are given, .*drop_condition=0.1, or give classes"),
        ("embedding", [], r"embeddings: none are given, .*or give embeddings"),
    ],
)
def test_what_was_never_trained_is_not_drawn(kind: str, argv: list[str], message: str) -> None:
    config = read_config(*argv)
    with pytest.raises(UserError, match=message) as caught:
        make_plan(config, trained(kind, config={"drop_condition": 0.0}))
    assert caught.value.exit_code == 2
    make_plan(config, trained(kind, config={"drop_condition": 0.1}))


def test_classes_without_an_image_are_not_drawn(caplog: pytest.LogCaptureFixture) -> None:
    generator = trained("class", untrained_classes=[0, 1, 2, 9])
    message = r"classes=2-4: no image of 2 was in the training; expected classes among 3-8$"
    with pytest.raises(UserError, match=message) as caught:
        make_plan(read_config("classes=2-4"), generator)
    assert caught.value.exit_code == 2
    assert make_plan(read_config("classes=3-8"), generator).classes == (3, 4, 5, 6, 7, 8)
    assert make_plan(read_config("classes=none"), generator).classes == ()
    assert not caplog.messages
    assert make_plan(read_config("classes=all"), generator).classes == (3, 4, 5, 6, 7, 8)
    assert caplog.messages == ["classes=all: no image of 0-2,9 was in the training; they are left out"]
    with pytest.raises(UserError, match="classes=all: no image of 0-9 .* it was trained without labels"):
        make_plan(read_config("classes=all"), trained("class", untrained_classes=list(range(10))))


def test_a_budget_that_is_not_told_is_warned_of(caplog: pytest.LogCaptureFixture) -> None:
    make_plan(read_config(), trained("budgets", config={"drop_condition": 0.1}))
    make_plan(read_config("target_tokens=5"), trained("budgets", config={"drop_condition": 0}))
    assert not caplog.messages
    make_plan(read_config(), trained("budgets", config={"drop_condition": 0}))
    assert len(caplog.messages) == 1 and "target_tokens=null" in caplog.messages[0]
