"""Several token datasets as one: how often each comes, what is held out, its classes by name, and what is no mix."""

from __future__ import annotations

import dataclasses
import itertools
import shutil
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tatok_pipe import TokenDataset, TokenLoader
from tatok_pipe.errors import RefusedError, UserError
from tatok_pipe.records import Kind
from tatok_pipe.tokens.dataset_file import create_or_check
from tatok_pipe.tokens.format import ShardSource, ShardWriter
from tatok_pipe.tokens.spec import TokenSpec
from tests.tokens.token_loader.batches import (
    COUNTS,
    LAYOUTS,
    OTHER_COUNTS,
    SETTINGS,
    MakeRecords,
    spelled,
    step_of,
    write_dataset,
)


@LAYOUTS
def test_a_mix_has_its_weights_to_an_image_and_from_their_very_steps(
    url: str, other_url: str, settings: dict[str, Any]
) -> None:
    changes = {7: (1, 1), 30: (1, 9)}
    loader = TokenLoader([url, other_url], weights=[3, 1], weight_changes=changes, **settings)
    datasets, seen = [TokenDataset(url), TokenDataset(other_url)], [Counter(), Counter()]
    stretches = [np.zeros(2, np.int64) for _ in range(3)]
    for number, batch in enumerate(itertools.islice(loader, 60)):
        # No step is short: a mix has no end of an epoch.
        assert batch.epoch == 0 and (batch.kinds.ravel() == Kind.CONDITION).sum() >= settings["rows_per_step"]
        stretches[(number >= 7) + (number >= 30)] += np.bincount(batch.sources, minlength=2)
        for source, row, codes in zip(
            batch.sources.tolist(), batch.sequences.tolist(), (each[2] for each in spelled(batch, loader)),
            strict=True,
        ):  # fmt: skip
            seen[source][row] += 1
            assert codes == tuple(datasets[source][row].global_codes.tolist())
    for found, share in zip(stretches[:2], (3 / 4, 1 / 2), strict=True):
        assert abs(found[0] - share * found.sum()) <= 1
    assert 0.05 < stretches[2][0] / stretches[2].sum() < 0.15  # the last window is not at its end
    # Each goes through its own images, all of them before one comes again; a window is shuffled.
    for counts, dataset in zip(seen, datasets, strict=True):
        times = [counts[row] for row in range(len(dataset))]
        assert max(times) - min(times) <= 2
    assert min(seen[1][row] for row in range(len(datasets[1]))) >= 2


def test_what_is_held_out_of_a_mix_comes_once(url: str, other_url: str) -> None:
    options = {**SETTINGS, "url": [url, other_url], "held_out_share": 0.3}
    held_out = [
        pair for batch in TokenLoader(**options, split="held_out") for row in step_of([batch]) for pair in row
    ]
    trained = {
        pair
        for batch in itertools.islice(TokenLoader(**options), 90)
        for row in step_of([batch])
        for pair in row
    }
    assert len(held_out) == len(set(held_out)) and not trained & set(held_out)
    everything = {(0, row) for row in range(sum(COUNTS))} | {(1, row) for row in range(sum(OTHER_COUNTS))}
    assert trained | set(held_out) == everything


def test_classes_of_a_mix_are_those_of_one_name(
    tmp_path: Path, token_spec: TokenSpec, make_token_records: MakeRecords
) -> None:
    names = (("cat", "crane", "dog", "crane"), ("crane", "fox", "crane", "cat", "owl"))
    urls = []
    for number, each in enumerate(names):
        spec = dataclasses.replace(token_spec, class_names=each)
        folder = tmp_path / f"named{number}"
        create_or_check(str(folder), spec, {})
        (folder / "data").mkdir()
        records = [
            dataclasses.replace(record, label=place % len(each))
            for place, record in enumerate(make_token_records(spec, 30, seed=number))
        ]
        with ShardWriter(folder / "data/s.parquet", spec, ShardSource("/s.tar", 1)) as writer:
            writer.append(records)
        urls.append(str(folder))
    loader = TokenLoader(urls, **SETTINGS, num_classes=6)
    assert loader.spec.class_names == ("cat", "crane", "dog", "crane", "fox", "owl")
    found = {0: set(), 1: set()}
    for batch in itertools.islice(loader, 30):
        for source, row, label in zip(
            batch.sources.tolist(), batch.sequences.tolist(), batch.labels.tolist(), strict=True
        ):
            assert loader.spec.class_names[label] == names[source][row % len(names[source])]
            found[source].add(label)
    assert found == {0: {0, 1, 2, 3}, 1: {0, 1, 3, 4, 5}}  # the second crane of one is that of the other
    with pytest.raises(UserError, match="num_classes=5: the datasets have 6 classes by their names"):
        TokenLoader(urls, **SETTINGS, num_classes=5)
    nameless = write_dataset(tmp_path / "nameless", token_spec, make_token_records, (20,))
    with pytest.raises(UserError, match="nameless: has no names of classes, and .*named0 has"):
        TokenLoader([urls[0], nameless], **SETTINGS, num_classes=6)
    assert next(iter(TokenLoader([urls[0], nameless], **SETTINGS))).labels.tolist()[0] == 0


def test_what_cannot_be_mixed_is_told(
    url: str, other_url: str, tmp_path: Path, token_spec: TokenSpec, make_token_records: MakeRecords
) -> None:
    strange = dataclasses.replace(token_spec, tokenizer_fingerprint="ab" * 32)
    with pytest.raises(
        RefusedError, match=r"others2 and .*tokens: tokens of other tokenizers.*fingerprint: abab"
    ):
        TokenLoader([url, write_dataset(tmp_path / "others2", strange, make_token_records)])
    with pytest.raises(UserError, match=r"tokens: is given twice; give a dataset once"):
        TokenLoader([url, other_url, url])
    copy = shutil.copytree(url, tmp_path / "copy")
    with pytest.raises(UserError, match=r"copy: has the same token shards as .*tokens; give"):
        TokenLoader([url, str(copy)])
    with pytest.raises(ValueError, match=r"weights=\[1, 0\]: expected more than 0 each"):
        TokenLoader([url, other_url], weights=[1, 0])
    with pytest.raises(ValueError, match="epochs=1 with 2 datasets: expected none"):
        TokenLoader([url, other_url], epochs=1)
    for version in (1, [None]):
        with pytest.raises(ValueError, match="with 2 datasets: expected a version of each"):
            TokenLoader([url, other_url], version=version)
    with pytest.raises(UserError, match="has no version 7"):
        TokenLoader([url, other_url], version=[None, 7])
    state = next(iter(TokenLoader([url, other_url], **SETTINGS, weights=[3, 1]))).state
    for change in (
        {"weights": [1, 3]}, {"weights": [3, 1], "weight_changes": {9: [1, 1]}}, {"weights": [3, 1], "url": url},
        {"weights": [3, 1], "url": [other_url, url]},
    ):  # fmt: skip
        given = {**SETTINGS, "url": [url, other_url], **change}
        if given["url"] == url:
            del given["weights"]
        with pytest.raises(
            UserError, match="is one in another stream: the datasets, their versions, .*weights"
        ):
            TokenLoader(**given).load_state_dict(state)
    Path(other_url, "data/s1.parquet").unlink()  # another version
    with pytest.raises(UserError, match="another stream"):
        TokenLoader([url, other_url], **SETTINGS, weights=[3, 1]).load_state_dict(state)
