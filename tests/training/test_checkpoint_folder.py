"""A training's checkpoints on disk: whatever happened to one is told, and the newest whole ones stay."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tatok_pipe import storage
from tatok_pipe.errors import RefusedError
from tatok_pipe.training import checkpoint_folder
from tatok_pipe.training.checkpoint_folder import (
    CheckpointName,
    DamagedCheckpoint,
    fetched,
    list_checkpoints,
    newest_manifest,
    prune,
    read_manifests,
    write_manifest,
)

COUNTERS = {"num_steps_done": 2}
EXTRA = {"loader": {"epoch": 2, "order": [3, 1]}, "curve": [{"step": 2, "loss": 0.1 + 0.2}]}


def write_part(folder: Path, *, rank: int = 0, num_ranks: int = 1, step: int = 2) -> None:
    """A part with two files, one of them hidden."""
    part = folder / f"part-{rank}"
    part.mkdir(parents=True)
    (part / f"tensors-{rank}").write_bytes(bytes(range(256)) * 8)
    (part / f".index-{rank}").write_bytes(b"index" * 40)
    write_manifest(part, {"num_steps_done": step}, EXTRA | {"rank": rank}, rank=rank, num_ranks=num_ranks)
    for path in part.iterdir():
        path.rename(folder / path.name)
    part.rmdir()


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    write_part(tmp_path / "checkpoint")
    return tmp_path / "checkpoint"


def upload(folder: Path, url: str) -> None:
    for path in folder.iterdir():
        storage.publish_file(path, storage.join(url, path.name), exclusive=False)


def test_what_was_written_comes_back(checkpoint: Path, tmp_path: Path) -> None:
    with fetched(str(checkpoint), tmp_path / "scratch") as folder:
        (manifest,) = read_manifests(folder)
    assert manifest["trainer"] == COUNTERS and manifest["extra"] == EXTRA | {"rank": 0}
    assert not (tmp_path / "scratch").exists()


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
    (remove("tensors-0"), "tensors-0 is missing"),
    (remove(".index-0"), ".index-0 is missing"),
    (truncate("tensors-0", -1), "tensors-0 has .* bytes, was written with"),
    (truncate("tensors-0", 0), "tensors-0 has 0 bytes"),
    (truncate(".index-0", 100), ".index-0 has 100 bytes"),
    (truncate("rank-0.json", -1), "rank-0.json cannot be read"),
    (truncate("rank-0.json", 0), "rank-0.json cannot be read"),
    *((flip("tensors-0", at), "tensors-0 is not what was written") for at in (0, 0.5, 0.999)),
    (flip(".index-0", 0.5), ".index-0 is not what was written"),
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
    with pytest.raises(DamagedCheckpoint, match=message), fetched(str(folder), tmp_path / "x"):
        pass


def test_every_byte_of_a_manifest_counts(checkpoint: Path, tmp_path: Path) -> None:
    shutil.copy(checkpoint / "rank-0.json", tmp_path)
    manifest = tmp_path / "rank-0.json"
    whole, expected = manifest.read_bytes(), read_manifests(tmp_path)
    num_told = 0
    for at in range(len(whole)):
        damaged = bytearray(whole)
        damaged[at] ^= 1
        manifest.write_bytes(damaged)
        try:
            # The last digit of a long number may be another one of the same number.
            assert read_manifests(tmp_path) == expected
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
        with pytest.raises(DamagedCheckpoint, match=message), fetched(url, scratch):
            pass
        assert not scratch.exists()
    upload(checkpoint, s3_url)
    with pytest.raises(RuntimeError, match="in use"), fetched(s3_url, scratch) as found:
        assert found == scratch and scratch.exists()
        raise RuntimeError("in use")
    assert not scratch.exists()


def test_the_manifest_of_every_process_is_needed(tmp_path: Path) -> None:
    def problem() -> str:
        try:
            with fetched(str(tmp_path), tmp_path / "x") as folder:
                assert [each["extra"]["rank"] for each in read_manifests(folder)] == [0, 1, 2]
                return ""
        except DamagedCheckpoint as damage:
            return str(damage)

    write_part(tmp_path, rank=0, num_ranks=3)
    assert problem() == "rank-1.json is missing: the checkpoint was not finished"
    write_part(tmp_path, rank=2, num_ranks=3)
    assert problem() == "rank-1.json is missing: the checkpoint was not finished"
    write_part(tmp_path, rank=1, num_ranks=3)
    assert problem() == ""
    flip("tensors-2", 0.5)(tmp_path)
    assert problem() == "tensors-2 is not what was written"


def test_the_newest_manifest_is_one_that_was_written(tmp_path: Path) -> None:
    assert newest_manifest(str(tmp_path / "nowhere")) is None
    for step in (5, 20, 30):
        write_part(tmp_path / str(CheckpointName(step, "aaaaaaaa")), step=step)

    def newest() -> int:
        manifest: Any = newest_manifest(str(tmp_path))
        return manifest["trainer"]["num_steps_done"]

    assert newest() == 30
    flip("rank-0.json", 0.5)(tmp_path / "step-000000030-aaaaaaaa")
    assert newest() == 20
    (tmp_path / "step-000000020-aaaaaaaa/rank-0.json").unlink()
    assert newest() == 5
    (tmp_path / "step-0000050").mkdir()
    told = rf"^{tmp_path}/step-0000050: a checkpoint of an earlier version.*; remove {tmp_path} to begin anew, or"
    with pytest.raises(RefusedError, match=told):
        newest()


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
            content = {"format": checkpoint_folder.FORMAT, "num_ranks": num_ranks}
            content |= {"sha256": checkpoint_folder._digest(content)}
            storage.publish_bytes(
                json.dumps(content).encode(), f"{url}/{name}/rank-{rank}.json", exclusive=False
            )
    storage.publish_bytes(b"tensors", f"{url}/{name}/tensors", exclusive=False)


def check_prune(url: str) -> None:
    assert list_checkpoints(url) == []
    newest = CheckpointName(50, "aaaaaaaa")
    prune(url, newest=newest, num_to_keep=1)
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
    assert [f"{name.step}{name.attempt[0]}" for name in list_checkpoints(url)] == [
        "50a", "40a", "30b", "30a", "20b", "10c",
    ]  # fmt: skip

    def left(num_to_keep: int) -> list[str]:
        prune(url, newest=newest, num_to_keep=num_to_keep)
        return [f"{name.step}{name.attempt[0]}" for name in list_checkpoints(url)]

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
    prune(url, newest=newest, num_to_keep=1)
    assert [name.step for name in list_checkpoints(url)] == [20, 15]
    finished(url, "step-000000010-ffffffff")
    prune(url, newest=newest, num_to_keep=1)
    assert [name.step for name in list_checkpoints(url)] == [15, 10]
    finished(url, str(newest), num_ranks=2)
    prune(url, newest=newest, num_to_keep=1)
    assert list_checkpoints(url) == [newest]


def test_a_damaged_one_of_the_same_step_takes_no_place(tmp_path: Path) -> None:
    """The training went back from step 20 to step 10 and is at step 20 again, or at the next that it saves."""
    url, damaged = str(tmp_path), CheckpointName(20, "00000000")
    for newest in (CheckpointName(20, "aaaaaaaa"), CheckpointName(25, "aaaaaaaa")):
        finished(url, "step-000000005-ffffffff")
        finished(url, "step-000000010-ffffffff")
        finished(url, str(damaged))
        finished(
            url, str(newest), num_ranks=2, missing=1
        )  # under way: what it went back to is all that there is
        prune(url, newest=newest, num_to_keep=1, passed_over={damaged})
        assert [name.step for name in list_checkpoints(url)] == [newest.step, 10]
        finished(url, str(damaged))
        finished(url, str(newest), num_ranks=2)
        prune(url, newest=newest, num_to_keep=2, passed_over={damaged})
        assert [str(name) for name in list_checkpoints(url)] == [str(newest), "step-000000010-ffffffff"]
        storage.remove_folder(f"{url}/{newest}")


@pytest.mark.parametrize("content", ["", "[]", "null", "{}", '{"num_ranks": null}', '{"num_ranks": "x"}'])
def test_a_folder_with_an_unreadable_manifest_does_not_count(tmp_path: Path, content: str) -> None:
    finished(str(tmp_path), "step-000000010-aaaaaaaa")
    finished(str(tmp_path), "step-000000020-aaaaaaaa")
    (tmp_path / "step-000000020-aaaaaaaa" / "rank-0.json").write_text(content)
    prune(str(tmp_path), newest=CheckpointName(20, "aaaaaaaa"), num_to_keep=1)
    assert [name.step for name in list_checkpoints(str(tmp_path))] == [20, 10]
