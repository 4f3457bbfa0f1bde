"""What a training leaves to go on from: it comes back as it was, and whatever happened to it is told."""

from __future__ import annotations

import errno
import json
import os
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.distributed.checkpoint.api import CheckpointException

from tatok_pipe import storage
from tatok_pipe.ar import training_state
from tatok_pipe.ar.training_state import CheckpointName, DamagedCheckpoint
from tests.ar.trainings import MODEL, TRAINING, make_loader, make_trainer, train
from tests.token_datasets import make_rows, write_token_dataset

SMALL = replace(MODEL, width=16, depth=1)
EXTRA = {"loader": {"epoch": 2, "order": [3, 1]}, "curve": [{"step": 2, "loss": 0.1 + 0.2}], 5: None}


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two steps of a training; every test that changes it takes a copy."""
    url = str(tmp_path_factory.mktemp("tokens") / "out")
    write_token_dataset(url, [make_rows(20)])
    trainer = make_trainer(model=SMALL)
    train(trainer, iter(make_loader(url)), 2)
    folder = tmp_path_factory.mktemp("checkpoint")
    training_state.save_part(folder, trainer, EXTRA, rank=0, num_ranks=1)
    return folder


def upload(folder: Path, url: str) -> None:
    for path in folder.iterdir():
        storage.publish_file(path, storage.join(url, path.name), exclusive=False)


def check_round_trip(url: str, checkpoint: Path, scratch: Path) -> None:
    again = scratch.parent / "again"
    again.mkdir()
    trainer = make_trainer(model=SMALL, seed=1)
    with training_state.fetched(url, scratch) as folder:
        training_state.load(folder, trainer)
        assert training_state.read_extra(folder) == json.loads(json.dumps(EXTRA))
        training_state.save_part(again, trainer, EXTRA, rank=0, num_ranks=1)
    assert not scratch.exists()
    assert trainer.num_steps_done == 2
    assert trainer.average is not None and trainer.average.num_updates == 2
    # Weights, both moments, step counts and the average: the same bytes.
    for path in checkpoint.glob("*.distcp"):
        assert path.read_bytes() == (again / path.name).read_bytes()


def test_what_was_saved_comes_back(checkpoint: Path, tmp_path: Path) -> None:
    assert sorted(os.listdir(checkpoint)) == [".metadata", "__0_0.distcp", "rank-0.json"]
    check_round_trip(str(checkpoint), checkpoint, tmp_path / "scratch")


@pytest.mark.s3
def test_what_was_saved_comes_back_from_s3(checkpoint: Path, s3_url: str, tmp_path: Path) -> None:
    upload(checkpoint, s3_url)
    assert ".metadata" in storage.list_files(s3_url)
    check_round_trip(s3_url, checkpoint, tmp_path / "scratch")


def test_a_training_without_an_average_has_none(tmp_path: Path) -> None:
    training = replace(TRAINING, optimizer=replace(TRAINING.optimizer, ema_decay=0.0))
    training_state.save_part(tmp_path, make_trainer(training, model=SMALL), {}, rank=0, num_ranks=1)
    trainer = make_trainer(training, model=SMALL, seed=1)
    training_state.load(tmp_path, trainer)
    expected = make_trainer(training, model=SMALL).model.state_dict()
    for name, value in trainer.model.state_dict().items():
        assert torch.equal(value, expected[name]), name


def test_an_average_may_begin_or_end_where_a_training_is_resumed(checkpoint: Path, tmp_path: Path) -> None:
    no_average = replace(TRAINING, optimizer=replace(TRAINING.optimizer, ema_decay=0.0))
    trainer = make_trainer(no_average, model=SMALL, seed=1)
    training_state.load(checkpoint, trainer)
    assert trainer.average is None and trainer.num_steps_done == 2
    training_state.save_part(tmp_path, trainer, {}, rank=0, num_ranks=1)

    other = make_trainer(model=SMALL, seed=2)
    training_state.load(tmp_path, other)
    assert other.average is not None and other.average.num_updates == 0 and other.num_steps_done == 2
    for name, weight in trainer.model.named_parameters():
        assert torch.equal(weight, dict(other.model.named_parameters())[name]), name
        assert torch.equal(weight, other.average.weights[name]), name


def remove(name: str) -> Callable[[Path], object]:
    return lambda folder: (folder / name).unlink()


def truncate(name: str, num_bytes: int) -> Callable[[Path], object]:
    """Keep so many bytes; where negative, all but so many."""
    return lambda folder: (folder / name).write_bytes((folder / name).read_bytes()[:num_bytes])


def flip(name: str, at: float) -> Callable[[Path], object]:
    def damage(folder: Path) -> None:
        data = bytearray((folder / name).read_bytes())
        data[int(at * len(data))] ^= 1
        (folder / name).write_bytes(data)

    return damage


def swap(old: str, new: str) -> Callable[[Path], object]:
    """Another manifest that still is one."""

    def damage(folder: Path) -> None:
        text = (folder / "rank-0.json").read_text()
        assert text.count(old) == 1
        (folder / "rank-0.json").write_text(text.replace(old, new))

    return damage


def write(text: str) -> Callable[[Path], object]:
    return lambda folder: (folder / "rank-0.json").write_text(text)


DAMAGES = [
    (remove("rank-0.json"), "rank-0.json is missing"),
    (shutil.rmtree, "rank-0.json is missing"),
    (remove("__0_0.distcp"), "__0_0.distcp is missing"),
    (remove(".metadata"), ".metadata is missing"),
    (truncate("__0_0.distcp", -1), "__0_0.distcp has .* bytes, was written with"),
    (truncate("__0_0.distcp", 0), "__0_0.distcp has 0 bytes"),
    (truncate(".metadata", 100), ".metadata has 100 bytes"),
    (truncate("rank-0.json", -1), "rank-0.json cannot be read"),
    (truncate("rank-0.json", 0), "rank-0.json cannot be read"),
    *((flip("__0_0.distcp", at), "__0_0.distcp is not what was written") for at in (0, 0.5, 0.999)),
    (flip(".metadata", 0.5), ".metadata is not what was written"),
    (write("not JSON"), "rank-0.json cannot be read"),
    (write("\udcff".encode("utf-8", "surrogateescape").decode("latin-1")), "rank-0.json cannot be read"),
    (write("[]"), "rank-0.json: format None"),
    (write("{}"), "rank-0.json: format None"),
    (swap('"format": 1', '"format": 99'), "rank-0.json: format 99, expected 1"),
    (swap('"num_steps_done": 2', '"num_steps_done": 3'), "rank-0.json is not what was written"),
    (swap('"epoch": 2', '"epoch": 3'), "rank-0.json is not what was written"),
    (swap('"num_ranks": 1', '"num_ranks": 2'), "rank-0.json is not what was written"),
]


@pytest.mark.parametrize(("damage", "message"), DAMAGES)
def test_damage_is_told_by_file(
    checkpoint: Path, tmp_path: Path, damage: Callable[[Path], object], message: str
) -> None:
    folder = tmp_path / "step"
    shutil.copytree(checkpoint, folder)
    damage(folder)
    with pytest.raises(DamagedCheckpoint, match=message), training_state.fetched(str(folder), tmp_path / "x"):
        pass


def test_every_byte_of_a_manifest_counts(checkpoint: Path, tmp_path: Path) -> None:
    shutil.copy(checkpoint / "rank-0.json", tmp_path)
    manifest = tmp_path / "rank-0.json"
    whole, expected = manifest.read_bytes(), training_state._manifests(tmp_path)
    num_told = 0
    for at in range(len(whole)):
        damaged = bytearray(whole)
        damaged[at] ^= 1
        manifest.write_bytes(damaged)
        try:
            # The last digit of a long number may be another one of the same number.
            assert training_state._manifests(tmp_path) == expected
        except DamagedCheckpoint as damage:
            assert str(damage).startswith("rank-0.json")
            num_told += 1
    assert num_told >= len(whole) - 2


@pytest.mark.s3
def test_damage_on_s3_is_told_and_the_copy_removed(checkpoint: Path, s3_url: str, tmp_path: Path) -> None:
    scratch = tmp_path / "scratch"
    for number, (damage, message) in enumerate([*DAMAGES[:6], DAMAGES[9]]):
        folder, url = tmp_path / str(number), storage.join(s3_url, str(number))
        shutil.copytree(checkpoint, folder)
        damage(folder)
        if folder.exists():
            upload(folder, url)
        with pytest.raises(DamagedCheckpoint, match=message), training_state.fetched(url, scratch):
            pass
        assert not scratch.exists()
    upload(checkpoint, s3_url)
    with pytest.raises(RuntimeError, match="in use"), training_state.fetched(s3_url, scratch) as found:
        assert found == scratch and scratch.exists()
        raise RuntimeError("in use")
    assert not scratch.exists()


def test_the_manifest_of_every_process_is_needed(checkpoint: Path, tmp_path: Path) -> None:
    training_state.save_part(tmp_path, make_trainer(model=SMALL), {"rank": 0}, rank=0, num_ranks=3)
    manifest = json.loads((tmp_path / "rank-0.json").read_text())
    del manifest["sha256"]

    def write_part(rank: int, file: str) -> None:
        data = (tmp_path / "__0_0.distcp").read_bytes()
        (tmp_path / file).write_bytes(data)
        files = {file: manifest["files"]["__0_0.distcp"]}
        part = manifest | {"rank": rank, "files": files, "extra": {"rank": rank}}
        (tmp_path / f"rank-{rank}.json").write_text(
            json.dumps(part | {"sha256": training_state._digest(part)})
        )

    def problem() -> str:
        try:
            with training_state.fetched(str(tmp_path), tmp_path / "x") as folder:
                assert training_state.read_extra(folder) == {"rank": 0}
                return ""
        except DamagedCheckpoint as damage:
            return str(damage)

    assert problem() == "rank-1.json is missing: the checkpoint was not finished"
    write_part(2, "__2_0.distcp")
    assert problem() == "rank-1.json is missing: the checkpoint was not finished"
    write_part(1, "__1_0.distcp")
    assert problem() == ""
    flip("__2_0.distcp", 0.5)(tmp_path)
    assert problem() == "__2_0.distcp is not what was written"


def test_names_and_folders_tell_the_same() -> None:
    name = CheckpointName(1200, "00ff00ff")
    assert str(name) == "step-000001200-00ff00ff"
    assert CheckpointName.parse(str(name)) == name
    for text in (
        "step-1200-00ff00ff",
        "step-000001200",
        "step-000001200-00FF00FF",
        f"{name}.tmp",
        f"x{name}",
        "",
    ):
        assert CheckpointName.parse(text) is None
    assert sorted([name, CheckpointName(7, "ffffffff")])[0].step == 7


def finished(url: str, name: str, *, num_ranks: int = 1, missing: int | None = None) -> None:
    """A folder that is whole by its names, or lacks the manifest of one process."""
    for rank in range(num_ranks):
        if rank != missing:
            content = json.dumps({"num_ranks": num_ranks}).encode()
            storage.publish_bytes(content, f"{url}/{name}/rank-{rank}.json", exclusive=False)
    storage.publish_bytes(b"tensors", f"{url}/{name}/__0_0.distcp", exclusive=False)


def check_prune(url: str) -> None:
    assert training_state.list_checkpoints(url) == []
    newest = CheckpointName(50, "aaaaaaaa")
    training_state.prune(url, newest=newest, num_to_keep=1)
    storage.publish_bytes(b"", f"{url}/checkpoint_manager_snapshot.json", exclusive=False)
    storage.publish_bytes(b"", f"{url}/step-000000001-aaaaaaaa", exclusive=False)  # a file, not a folder
    storage.publish_bytes(b"", f"{url}/step-5/rank-0.json", exclusive=False)
    storage.publish_bytes(b"", f"{url}/other/rank-0.json", exclusive=False)
    finished(url, "step-000000010-cccccccc")
    finished(url, "step-000000020-bbbbbbbb", num_ranks=2)
    finished(url, "step-000000030-bbbbbbbb", num_ranks=2, missing=1)  # a killed attempt
    finished(url, "step-000000030-aaaaaaaa", num_ranks=3)
    finished(url, "step-000000040-aaaaaaaa", num_ranks=2, missing=0)  # under way
    finished(url, "step-000000050-aaaaaaaa", num_ranks=2, missing=1)
    assert [f"{name.step}{name.attempt[0]}" for name in training_state.list_checkpoints(url)] == [
        "50a", "40a", "30b", "30a", "20b", "10c",
    ]  # fmt: skip

    def left(num_to_keep: int) -> list[str]:
        training_state.prune(url, newest=newest, num_to_keep=num_to_keep)
        return [f"{name.step}{name.attempt[0]}" for name in training_state.list_checkpoints(url)]

    assert left(3) == ["50a", "40a", "30b", "30a", "20b", "10c"]
    assert left(2) == ["50a", "40a", "30b", "30a", "20b"]
    assert left(1) == ["50a", "40a", "30b", "30a"]
    finished(url, "step-000000050-aaaaaaaa", num_ranks=2)
    assert left(1) == ["50a"]
    assert set(storage.list_folders(url)) == {"step-5", "other", str(newest)}
    assert len(storage.list_files(url)) == 2


def test_the_newest_whole_checkpoints_stay(tmp_path: Path) -> None:
    check_prune(str(tmp_path / "checkpoints"))


@pytest.mark.s3
def test_the_newest_whole_checkpoints_stay_on_s3(s3_url: str) -> None:
    check_prune(s3_url)


def test_a_checkpoint_that_was_passed_over_takes_no_place(tmp_path: Path) -> None:
    """The training went back from step 20 to nothing, or to step 10, and has begun to write step 15."""
    url, newest = str(tmp_path), CheckpointName(15, "aaaaaaaa")
    finished(url, "step-000000020-ffffffff")
    finished(url, str(newest), num_ranks=2, missing=1)
    training_state.prune(url, newest=newest, num_to_keep=1)
    assert [name.step for name in training_state.list_checkpoints(url)] == [20, 15]
    finished(url, "step-000000010-ffffffff")
    training_state.prune(url, newest=newest, num_to_keep=1)
    assert [name.step for name in training_state.list_checkpoints(url)] == [15, 10]
    finished(url, str(newest), num_ranks=2)
    training_state.prune(url, newest=newest, num_to_keep=1)
    assert training_state.list_checkpoints(url) == [newest]


@pytest.mark.parametrize("content", ["", "[]", "null", "{}", '{"num_ranks": null}', '{"num_ranks": "x"}'])
def test_a_folder_with_an_unreadable_manifest_does_not_count(tmp_path: Path, content: str) -> None:
    finished(str(tmp_path), "step-000000010-aaaaaaaa")
    finished(str(tmp_path), "step-000000020-aaaaaaaa")
    (tmp_path / "step-000000020-aaaaaaaa" / "rank-0.json").write_text(content)
    training_state.prune(str(tmp_path), newest=CheckpointName(20, "aaaaaaaa"), num_to_keep=1)
    assert [name.step for name in training_state.list_checkpoints(str(tmp_path))] == [20, 10]


@pytest.mark.parametrize("share", [0.0, 0.3, 0.95, 1.0])
def test_a_full_disk_is_told_as_such(
    checkpoint: Path, full_disk: Callable[[int], Path], share: float
) -> None:
    num_bytes = sum(path.stat().st_size for path in checkpoint.iterdir())
    folder = full_disk(max(4096, int(share * num_bytes) // 4096 * 4096))
    with pytest.raises(OSError) as caught:
        training_state.save_part(folder, make_trainer(model=SMALL), EXTRA, rank=0, num_ranks=1)
    assert caught.value.errno == errno.ENOSPC
    assert str(caught.value) == "[Errno 28] No space left on device"
    assert not list(folder.glob("rank-*.json")) or not (folder / "rank-0.json").stat().st_size


def test_what_no_system_said_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object, **__: object) -> None:
        failures: Any = {0: (RuntimeError("first\nline"), None), 3: (ValueError("x"), None)}
        raise CheckpointException("save", failures)

    monkeypatch.setattr(training_state.dcp, "save", fail)
    with pytest.raises(OSError) as caught:
        training_state.save_part(tmp_path, make_trainer(model=SMALL), {}, rank=0, num_ranks=1)
    assert str(caught.value) == "RuntimeError: first line; ValueError: x"
