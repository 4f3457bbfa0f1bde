"""Tokens filtered again by the scores that they hold are those that would have been written at once."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from tatok_pipe import storage
from tatok_pipe.commands.edit_tokens import filter
from tatok_pipe.commands.edit_tokens.filter import filter_table
from tatok_pipe.edit_tokens import main
from tatok_pipe.encoding.shard_tokenizer import ShardTokenizer, TokenizeJob, token_spec
from tatok_pipe.errors import EXIT_DONE
from tatok_pipe.images.limits import ShardLimits
from tatok_pipe.images.options import PreprocessConfig
from tatok_pipe.tokenizer.checkpoint import load_tokenizer
from tatok_pipe.tokenizer.dtf import Filter, keep_mask, round_cost
from tatok_pipe.tokenizer.options import DTFConfig
from tatok_pipe.tokenizer.rules import RULES
from tatok_pipe.tokenizer.scores.table import SCORES
from tatok_pipe.tokens.checking.verify import verify_dataset
from tatok_pipe.tokens.dataset import TokenDataset
from tatok_pipe.tokens.dataset_file import create_or_check
from tatok_pipe.tokens.format import to_records, to_table, token_shard_name
from tatok_pipe.tokens.joined import Joined
from tatok_pipe.tokens.spec import token_schema
from tatok_pipe.tokens.statistics import float32_toward_zero
from tatok_pipe.tokens.summary import write_summary
from tests.entries import assert_told
from tests.pictures import crop_members, hostile_members, small_tokenizer, write_shard


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> str:
    return small_tokenizer(tmp_path_factory.mktemp("tokenizer"))


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    folder = tmp_path_factory.mktemp("shards")
    return [
        write_shard(folder / "0.tar", crop_members(9)),
        write_shard(folder / "1.tar", [*crop_members(3, first=9), *hostile_members()[0]]),
    ]


def tokenize(
    url: str,
    checkpoint: str,
    shards: list[str],
    dtf: DTFConfig,
    *,
    scores: bool = True,
    information: bool = True,
) -> str:
    """What tokenize_corpus does with record.scores, in this process."""
    tokenizer = load_tokenizer(checkpoint)
    kept = tokenizer.filter(dtf)
    spec = token_spec(tokenizer, kept, encoding={"scores": True} if scores else {})
    create_or_check(url, spec, {"tokenizer": {"checkpoint": checkpoint}})
    job = TokenizeJob(
        checkpoint, url, spec, kept, PreprocessConfig(spec.image_size), ShardLimits(), "fp32", 4, information, False
    )  # fmt: skip
    worker = ShardTokenizer(job, device="cpu", num_threads=1)
    assert [result.error for result in map(worker, shards)] == [""] * len(shards)
    write_summary(url, planned=[token_shard_name(shard) for shard in shards], failed={})
    return url


def files(url: str) -> dict[str, bytes]:
    return {
        f"{part}/{name}": storage.read_bytes(f"{url}/{part}/{name}")
        for part in ("data", "quarantine")
        for name in storage.list_files(f"{url}/{part}")
    }


@pytest.fixture(scope="module")
def whole(checkpoint: str, shards: list[str], tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """A dataset of all patches for each score."""
    folder = tmp_path_factory.mktemp("whole")
    return {
        score: tokenize(str(folder / score), checkpoint, shards, DTFConfig(rule="none", score=score))
        for score in SCORES
    }


@pytest.mark.parametrize("score", SCORES)
@pytest.mark.parametrize("rule", RULES)
def test_every_rule_on_every_score_gives_the_same_bytes(
    checkpoint: str, shards: list[str], whole: dict[str, str], tmp_path: Path, rule: str, score: str
) -> None:
    model = load_tokenizer(checkpoint).model.config
    target = None if rule == "none" else model.num_globals + round(0.4 * model.num_patches)
    dtf = DTFConfig(rule=rule, score=score, target_tokens=target)
    at_once = tokenize(str(tmp_path / "at-once"), checkpoint, shards, dtf)
    given = [f"filter.rule={rule}", f"filter.score={score}"]
    given += [] if target is None else [f"filter.target_tokens={target}"]
    again = f"{tmp_path}/again"
    assert (
        main(
            [f"input.url={whole[score]}", f"output.url={again}", *given, f"tokenizer.checkpoint={checkpoint}"]
        )
        == EXIT_DONE
    )
    assert files(again) == files(at_once)
    assert TokenDataset(again).spec == TokenDataset(at_once).spec
    assert TokenDataset(again).statistics.to_json() == TokenDataset(at_once).statistics.to_json()
    kept = [len(row.patch_codes) for row in TokenDataset(again).rows()]
    assert rule == "none" or 0 < sum(kept) < len(kept) * model.num_patches  # else nothing was filtered
    assert verify_dataset(again) == []
    assert (summary := TokenDataset(again).summary) is not None and summary["missing_shards"] == []
    assert TokenDataset(again).version.number == 1


def test_from_looser_to_tighter_and_not_back(
    checkpoint: str, shards: list[str], whole: dict[str, str], tmp_path: Path
) -> None:
    model = load_tokenizer(checkpoint).model.config
    most, least = (model.num_globals + round(share * model.num_patches) for share in (0.6, 0.3))
    given = [f"tokenizer.checkpoint={checkpoint}"]
    for source, target, tokens in ((whole["gain"], "loose", most), (f"{tmp_path}/loose", "tight", least)):
        argv = [
            f"input.url={source}",
            f"output.url={tmp_path}/{target}",
            f"filter.target_tokens={tokens}",
            *given,
        ]
        assert main(argv) == EXIT_DONE
    at_once = tokenize(str(tmp_path / "at-once"), checkpoint, shards, DTFConfig(target_tokens=least))
    assert files(f"{tmp_path}/tight") == files(at_once)
    argv = [
        f"input.url={tmp_path}/tight",
        f"output.url={tmp_path}/back",
        f"filter.target_tokens={most}",
        *given,
    ]
    assert_told(
        main, argv, r"row '.*' would keep patches that were dropped .*; give a filter that keeps fewer"
    )


def test_of_a_dataset_whose_rows_are_all_removed(
    checkpoint: str, whole: dict[str, str], tmp_path: Path
) -> None:
    argv = [f"output.url={tmp_path}/source", "filter.rule=none", f"tokenizer.checkpoint={checkpoint}"]
    assert main([f"input.url={whole['gain']}", *argv]) == EXIT_DONE
    assert main([f"input.url={tmp_path}/source", "remove.where=width > 0"]) == EXIT_DONE
    argv = [f"input.url={tmp_path}/source", f"output.url={tmp_path}/again", "filter.target_tokens=9"]
    assert main([*argv, f"tokenizer.checkpoint={checkpoint}"]) == EXIT_DONE
    again = TokenDataset(f"{tmp_path}/again")
    assert len(again) == 0 and len(again.shards) == 2 and verify_dataset(again.url) == []
    assert again.version.number == 1 and again.statistics.num_images == 0


def test_what_was_removed_stays_out_and_the_same_command_does_the_rest(
    checkpoint: str, whole: dict[str, str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = load_tokenizer(checkpoint).model.config
    source = f"{tmp_path}/source"
    argv = [f"output.url={source}", "filter.rule=none", f"tokenizer.checkpoint={checkpoint}"]
    assert main([f"input.url={whole['gain']}", *argv]) == EXIT_DONE
    key = next(TokenDataset(source).rows()).key
    assert main([f"input.url={source}", f"remove.keys={key}"]) == EXIT_DONE
    argv = [
        f"input.url={source}",
        f"output.url={tmp_path}/out",
        f"filter.target_tokens={model.num_globals + 9}",
    ]
    argv += [f"tokenizer.checkpoint={checkpoint}"]
    assert main([*argv, "--dry-run"]) == EXIT_DONE
    assert "2 token shards to be written, threshold on gain" in capsys.readouterr().out
    assert not Path(tmp_path, "out").exists()
    assert main(argv) == EXIT_DONE
    expected = files(f"{tmp_path}/out")
    assert key not in [row.key for row in TokenDataset(f"{tmp_path}/out").rows()]
    assert storage.read_bytes(f"{tmp_path}/out/_removed.parquet") == storage.read_bytes(
        f"{source}/_removed.parquet"
    )
    for path in (tmp_path / "out/data").iterdir():  # as if killed before it was there
        path.unlink()
        assert main(argv) == EXIT_DONE
        assert files(f"{tmp_path}/out") == expected
    # Into an output of another filter nothing goes, nor into one of another version of the same dataset.
    assert_told(main, [*argv, "filter.rule=coverage"], "holds tokens of tokenizer .* with DTF", code=3)
    other = [row.key for row in TokenDataset(source).rows()][3]
    assert main([f"input.url={source}", f"remove.keys={other}"]) == EXIT_DONE
    assert_told(main, argv, r"out: was not begun on version 3 \(\w+\) of .*, which is there now", code=3)
    assert files(f"{tmp_path}/out") == expected


def test_joined_columns_are_taken_along(
    checkpoint: str, whole: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They stay beside their rows, but for those that were removed; damage is told, and a kill is made up for."""
    source, again = str(shutil.copytree(whole["gain"], tmp_path / "source")), f"{tmp_path}/again"
    keys = [row.key for row in TokenDataset(source).rows()]
    scores = {key: 5 * number % len(keys) for number, key in enumerate(keys)}
    table = {
        "key": keys[::-1],
        "score": [scores[key] for key in keys[::-1]],
        "vector": [[0.5, 1.5]] * len(keys),
    }
    pq.write_table(pa.table(table), tmp_path / "table.parquet")
    assert main([f"input.url={source}", f"join.table={tmp_path}/table.parquet"]) == EXIT_DONE
    assert main([f"input.url={source}", "remove.where=score < 2"]) == EXIT_DONE
    argv = [f"input.url={source}", f"output.url={again}", f"tokenizer.checkpoint={checkpoint}"]

    def dies(url: str, joined: Joined) -> None:
        raise RuntimeError("killed")

    with monkeypatch.context() as patch:
        patch.setattr(filter, "write_joined", dies)
        with pytest.raises(RuntimeError):
            main(argv)
    assert main(argv) == EXIT_DONE
    assert verify_dataset(again) == []
    dataset = TokenDataset(again)
    expected = [{"score": scores[key], "vector": [0.5, 1.5]} for key in keys if scores[key] >= 2]
    found = [row for name in dataset.shards for row in dataset.joined(name).to_pylist()]
    assert found == expected and len(expected) == len(keys) - 2
    chosen = [row.key for row in dataset.rows(where="score > 5")]
    assert chosen == [key for key in keys if scores[key] > 5] and 0 < len(chosen) < len(keys)
    assert dataset.version.columns == TokenDataset(source).version.columns != ""
    for name in ("_columns.json", *(f"columns/{path.name}" for path in Path(source, "columns").iterdir())):
        assert Path(again, name).read_bytes() == Path(source, name).read_bytes()
    # What is broken is not copied.
    broken = next(Path(source, "columns").iterdir())
    broken.write_bytes(broken.read_bytes()[:-1] + b"?")
    argv[1] = f"output.url={tmp_path}/other"
    assert_told(main, argv, rf"{broken}: is not what was written, by its SHA-256; once it and columns/ are")


def test_a_mistake_is_one_line(
    checkpoint: str, shards: list[str], whole: dict[str, str], tmp_path: Path
) -> None:
    plain = tokenize(f"{tmp_path}/plain", checkpoint, shards[:1], DTFConfig(), scores=False)
    made_by = f"tokenizer.checkpoint={checkpoint}"
    out = f"output.url={tmp_path}/out"
    for given, told in (
        (
            [f"input.url={plain}", out],
            "its rows hold no scores of their patches; tokenize with record.scores=true",
        ),
        (["filter.target_tokens=20"], "^filter: expected output.url with it"),
        ([out, "remove.keys=a"], "is for filter and export; remove changes input.url itself"),
        (
            [out, "filter.score=entropy"],
            "filter.score=entropy: .* holds scores by gain; give filter.score=gain",
        ),
        ([out, "filter.target_tokens=9999"], "filter.target_tokens=9999.0: kept patches on average"),
        ([out, "filter.rule=top_k", "filter.value=2.5"], "filter.value=2.5: top_k expects a whole number"),
        ([f"output.url={whole['gain']}"], r"is input.url; give another one"),
        ([f"output.url={whole['gain']}/80"], r"/80: is inside input.url=.*, a dataset"),
        ([out, "tokenizer.checkpoint=packaged"], "tokens were made by tokenizer"),
    ):
        argv = [f"input.url={whole['gain']}", made_by, *given]
        assert_told(main, argv, told)
    assert not Path(tmp_path, "out").exists()


def test_filtering_goes_by_what_is_recorded(whole: dict[str, str]) -> None:
    dataset = TokenDataset(whole["gain"])
    spec, rows = dataset.spec, list(dataset.rows())
    table = to_table(rows, token_schema(spec))
    costs = torch.from_numpy(np.stack([row.patch_score for row in rows if row.patch_score is not None]))
    assert costs.dtype == torch.float16 and torch.equal(round_cost(costs.float()), costs)
    half = Filter("top_k", spec.num_patches // 2, min_patches=0)
    filtered = filter_table(table, half, spec)
    for row, before, kept in zip(to_records(filtered), rows, keep_mask(costs, half).numpy(), strict=True):
        assert before.patch_entropy is not None
        dropped = float32_toward_zero([before.patch_entropy.astype(np.float64)[~kept].sum()])
        assert row.patch_positions.tolist() == np.flatnonzero(kept).tolist()
        assert row.patch_codes.tolist() == before.patch_codes[kept].tolist()
        assert row.entropy_dropped == dropped[0] > 0
    changed = ("patch_codes", "patch_positions", "num_tokens", "entropy_dropped")
    assert filtered.drop(changed).equals(table.drop(changed))
    assert filtered["num_tokens"].to_pylist() == [spec.num_globals + spec.num_patches // 2] * len(rows)
    assert filter_table(filtered, half, spec).equals(filtered)
    assert filter_table(table.slice(0, 0), half, spec).num_rows == 0
    one, other = filter_table(table, Filter("top_k", 1.0), spec), table.slice(1, 1)
    with pytest.raises(ValueError, match=f"row '{rows[0].key}' would keep patches that were dropped"):
        filter_table(pa.concat_tables([other, one]), half, spec)
    huge = round_cost(torch.tensor([[1e9, -1e9, 1.0]]))
    assert torch.isfinite(huge).all()


@pytest.mark.s3
def test_on_s3(checkpoint: str, whole: dict[str, str], tmp_path: Path, s3_url: str) -> None:
    argv = [f"input.url={whole['gain']}", f"tokenizer.checkpoint={checkpoint}"]
    for url in (s3_url, str(tmp_path / "local")):
        assert main([*argv, f"output.url={url}/out"]) == EXIT_DONE
        assert verify_dataset(f"{url}/out") == []
    assert files(f"{s3_url}/out") == files(f"{tmp_path}/local/out")
