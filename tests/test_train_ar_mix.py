"""train_ar on several token datasets: what is refused, what is written down, and that a stop changes nothing."""

from __future__ import annotations

import re
import signal
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from tatok_pipe import train_ar
from tatok_pipe.ar.checkpoint import load_generator
from tatok_pipe.commands.train_ar.dataset_version import check_mix, choose_datasets
from tatok_pipe.commands.train_ar.options import InputConfig, TrainArConfig
from tatok_pipe.config.load import load_config, to_yaml
from tatok_pipe.errors import UserError
from tatok_pipe.tokens.index import refresh_index
from tatok_pipe.tokens.loading.sources import join_sets
from tatok_pipe.tokens.loading.training_set import read_training_set
from tatok_pipe.tokens.versions import record_version
from tests.entries import assert_told
from tests.jobs import running, wait_for
from tests.test_train_ar import CONFIG, command, prepare, run
from tests.token_datasets import TINY, make_rows, write_token_dataset


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Of `prepare`, with another dataset, and one of another tokenizer."""
    folder = prepare(tmp_path_factory.mktemp("train-ar-mix"), CONFIG.replace("steps: 200", "steps: 30"))
    write_token_dataset(str(folder / "others"), [make_rows(60, seed=1, first=500)])
    strange = replace(TINY, tokenizer_fingerprint="34" * 32)
    write_token_dataset(str(folder / "strange"), [make_rows(9, spec=strange)], spec=strange)
    return folder


def mixed(folder: Path, *names: str) -> str:
    return f"input.urls=[{','.join(str(folder / name) for name in names)}]"


def given(folder: Path, *arguments: str) -> list[str]:
    return [str(folder / "config.yaml"), f"output.url={folder}/none", *arguments]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["input.weights=[3,0]"], r"weights=\[3\.0, 0\.0\]: expected more than 0 each"),
        (["input.weights=[3,-1]"], "expected more than 0 each"),
        (["input.weights=[3]"], r"input.weights=\[3\]: expected 2 weights, one for each dataset"),
        (["input.weight_changes=[5:1]"], r"input.weight_changes at step 5=\[1\]: expected 2 weights"),
        (["input.weight_changes=[5-1-1]"], "input.weight_changes=5-1-1: expected STEP:WEIGHT:WEIGHT"),
        (["input.versions=[1]"], "input.versions: 1 for 2 urls; give one for each"),
        (["input.version=1"], "input.version with urls: expected one of them; with urls give versions"),
        (["input.url=x"], "input.url with urls: expected one of them"),
        (["model.condition=embedding", "model.embedding_dim=8"], "expected input.condition_urls, a folder"),
        (["input.versions=[0,7]"], "others: has no version 7"),
    ],
)
def test_a_mistake_in_a_mix_is_told(folder: Path, arguments: list[str], message: str) -> None:
    assert_told(train_ar.main, given(folder, mixed(folder, "tokens", "others"), *arguments), message)


def test_datasets_that_do_not_go_together_are_told(folder: Path) -> None:
    argv = given(folder, mixed(folder, "tokens", "strange"))
    assert_told(train_ar.main, argv, r"strange and .*tokens: tokens of other tokenizers", code=3)
    argv = given(folder, mixed(folder, "tokens", "others", "tokens"))
    assert_told(train_ar.main, argv, "tokens: is given twice; give a dataset once")
    assert_told(train_ar.main, given(folder, "input.weights=[1,2]"), "input.weights without urls")


def test_options_of_a_mix_are_read_back_as_they_were(folder: Path, tmp_path: Path) -> None:
    argv = ["input.urls=[a,b]", "input.weights=[3,1]", "input.weight_changes=[10000:1:1,20:0.5:2]"]
    config = load_config(TrainArConfig, argv, prog="train_ar", description="")
    assert config.input.changes == {10_000: [1, 1], 20: [0.5, 2]} and config.input.weights == [3, 1]
    (tmp_path / "written.yaml").write_text(to_yaml(config))
    assert load_config(TrainArConfig, [str(tmp_path / "written.yaml")], prog="", description="") == config


def test_each_dataset_keeps_to_its_version_and_the_mix_to_its_weights(tmp_path: Path) -> None:
    urls = [str(tmp_path / name) for name in "ab"]
    for number, url in enumerate(urls):
        write_token_dataset(url, [make_rows(20, seed=number)])
        record_version(url, refresh_index(url, TINY), by="tokenize_corpus")
    config = InputConfig(urls=urls, weights=[3, 1])
    begun_on = join_sets(choose_datasets(config, None), weights=config.weights)
    earlier = {"extra": {"dataset": begun_on.to_json()}}
    write_token_dataset(urls[1], [make_rows(20, seed=1), make_rows(7, first=50)])
    record_version(urls[1], refresh_index(urls[1], TINY), by="tokenize_corpus")
    kept = choose_datasets(config, earlier)
    assert [(each.version.number, each.num_sequences) for each in kept] == [(1, 20), (1, 20)]
    assert [each.version.number for each in choose_datasets(config, None)] == [1, 2]
    pinned = replace(config, versions=[0, 2])
    with pytest.raises(UserError, match=r"on version 1 .* of .*b, input.versions=2 is version 2"):
        choose_datasets(pinned, earlier)
    with pytest.raises(UserError, match="holds a training on 2 datasets .*, and 1 are given"):
        choose_datasets(InputConfig(urls[0]), earlier)
    with pytest.raises(UserError, match="holds a training on one dataset, and 2 are given"):
        choose_datasets(config, {"extra": {"dataset": kept[0].version.to_json()}})
    other = join_sets(kept, weights=[1, 1])
    told = r"out: holds a training with input.weights=\[3.0, 1.0\], now it is \[1.0, 1.0\]; give the same"
    with pytest.raises(UserError, match=told):
        check_mix(config, other, earlier, output_url="out")
    check_mix(replace(config, on_dataset_change="restart_epoch"), other, earlier, output_url="out")
    check_mix(config, join_sets(kept, weights=[3, 1]), earlier, output_url="out")


def test_figures_of_a_mix_are_those_of_its_weights(folder: Path) -> None:
    sets = [read_training_set(str(folder / name)) for name in ("tokens", "others")]
    rows = [[*make_rows(70), *make_rows(50, first=70)], make_rows(60, seed=1, first=500)]
    data = join_sets(sets, weights=[3, 1])
    means = [sum(1 + 2 + len(row.patch_codes) for row in each) / len(each) for each in rows]
    assert data.num_elements == pytest.approx(180 * (0.75 * means[0] + 0.25 * means[1]))
    # As if each row of the second came half as often, of which there are half as many: 3 to 1 is 120 to 40.
    weighted = torch.zeros(TINY.patch_vocab, dtype=torch.float64)
    for each, times in zip(rows, (1, 40 / 60), strict=True):
        for row in each:
            for code in row.patch_codes.tolist():
                weighted[code] += times
    shares = weighted[weighted > 0] / weighted.sum()
    assert data.unigram_nats["patch"] == pytest.approx(float(-(shares * shares.log()).sum()))


@pytest.mark.ray
@pytest.mark.slow
def test_a_stopped_mix_comes_to_the_same_weights_and_says_what_it_saw(folder: Path, tmp_path: Path) -> None:
    arguments = [
        mixed(folder, "tokens", "others"), "input.weights=[3,1]", "input.weight_changes=[12:1:3]",
        "input.url=tatok_out", "validation.every_steps=30",
    ]  # fmt: skip
    undisturbed = run(folder, *arguments, f"output.url={tmp_path}/whole")
    assert undisturbed.returncode == 0, undisturbed.stderr
    told = undisturbed.stdout + undisturbed.stderr
    assert "mixed: 75.0%" in told and "; from step 12 on 25.0%" in told
    whole = load_generator(f"{tmp_path}/whole")
    counts = whole.training["images_of_sources"]
    assert re.search(rf"step 30/30 images {counts[0]} of tokens, {counts[1]} of others; ", told)
    assert [each["url"].rpartition("/")[2] for each in whole.training["dataset"]["sources"]] == [
        "tokens",
        "others",
    ]
    assert whole.training["dataset"]["weights"] == [3, 1]
    assert whole.training["dataset"]["weight_changes"] == [[12, [1, 3]]]

    log = tmp_path / "log"
    slow = [*arguments, f"output.url={tmp_path}/stopped", "logging.every_steps=1"]
    with running(command(folder, *slow), log) as process:
        wait_for(r"step 8/30", log, process)
        process.send_signal(signal.SIGTERM)
        process.wait(timeout=150)
    done = run(folder, *slow)
    assert done.returncode == 0, done.stderr
    stopped = load_generator(f"{tmp_path}/stopped")
    assert stopped.training["images_of_sources"] == counts
    for name, value in whole.model.state_dict().items():
        assert torch.equal(value, stopped.model.state_dict()[name]), name
    argv = given(
        folder, *arguments, f"output.url={tmp_path}/stopped", "input.weights=[1,1]", "training.steps=40"
    )
    assert_told(train_ar.main, argv, r"holds a training with input.weights=\[3.0, 1.0\], now it is")
