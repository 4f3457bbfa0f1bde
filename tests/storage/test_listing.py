"""Folders as they are: links, loops, patterns, and a store that refuses is not an empty one."""

from __future__ import annotations

import glob
import os
import subprocess
from pathlib import Path
from typing import Any

import pytest

from tatok_pipe import storage
from tatok_pipe.errors import UserError, has_outside_cause
from tatok_pipe.images.shard_list import expand_shards


def names(spec: str) -> list[str]:
    return [shard.url for shard in expand_shards(spec)]


@pytest.fixture
def linked(tmp_path: Path) -> Path:
    """Shards elsewhere, and a folder of links to them, to their folder, to itself and to nothing."""
    real, folder = tmp_path / "real", tmp_path / "folder"
    (real / "deep").mkdir(parents=True)
    folder.mkdir()
    for index in range(3):
        (real / f"{index}.tar").write_bytes(bytes(index + 1))
        (folder / f"{index}.tar").symlink_to(real / f"{index}.tar")
    (real / "deep/3.tar").write_bytes(bytes(4))
    (folder / "more").symlink_to(real / "deep")
    (folder / "again").symlink_to(folder)
    (folder / "there").symlink_to(tmp_path / "back")
    (tmp_path / "back").mkdir()
    (tmp_path / "back/folder").symlink_to(folder)
    (folder / "readme").symlink_to(tmp_path / "nothing")
    return folder


def test_links_are_what_they_lead_to_and_loops_end(linked: Path) -> None:
    found = subprocess.run(
        ["find", "-L", str(linked), "-type", "f"], capture_output=True, text=True, check=False
    ).stdout.split()
    assert names(str(linked)) == sorted(found) == [
        *(f"{linked}/{index}.tar" for index in range(3)), f"{linked}/more/3.tar"
    ]  # fmt: skip
    assert names(f"{linked}/*.tar") == names(f"{linked}/{{0..2}}.tar") == sorted(glob.glob(f"{linked}/*.tar"))
    assert names(f"{linked}/m*/*.tar") == [f"{linked}/more/3.tar"]
    assert names(f"{linked}/**/3.tar") == [f"{linked}/more/3.tar"]
    assert [shard.size_bytes for shard in expand_shards(str(linked))] == [1, 2, 3, 4]


def test_many_named_links_are_looked_up_in_one_listing(tmp_path: Path) -> None:
    (tmp_path / "links").mkdir()
    for index in range(40):
        (tmp_path / f"{index:02d}.tar").write_bytes(bytes(index))
        (tmp_path / f"links/{index:02d}.tar").symlink_to(tmp_path / f"{index:02d}.tar")
    files = expand_shards(f"{tmp_path}/links/{{00..39}}.tar")
    assert [file.size_bytes for file in files] == list(range(40))


def test_a_link_to_nothing_is_named(linked: Path) -> None:
    (linked / "4.tar").symlink_to(linked / "no-such.tar")
    (linked / "5.tar").symlink_to(linked / "5.tar")
    for spec in ("4.tar", "*.tar", "", "{0..4}.tar", "[45].tar"):
        with pytest.raises(
            UserError, match=r"4\.tar is a symbolic link to .*/no-such\.tar, which does not exist"
        ):
            names(f"{linked}/{spec}")
    with pytest.raises(UserError, match=r"5\.tar: Too many levels of symbolic links"):
        names(f"{linked}/5.tar")


def test_files_and_folders_behind_links(linked: Path) -> None:
    (linked / "readme").unlink()
    assert storage.list_files(str(linked)) == {"0.tar": 1, "1.tar": 2, "2.tar": 3}
    assert storage.list_folders(str(linked)) == ["again", "more", "there"]
    before = {file.name: file.version for file in storage.scan_files(str(linked))}
    os.utime(linked.parent / "real/1.tar", (1, 1))
    after = {file.name: file.version for file in storage.scan_files(str(linked))}
    assert [name for name in before if before[name] != after[name]] == ["1.tar"]
    (linked / "broken").symlink_to("nowhere")
    with pytest.raises(OSError, match="broken is a symbolic link to nowhere, which does not exist") as raised:
        storage.list_files(str(linked))
    assert has_outside_cause(raised.value)


def test_a_link_to_nothing_is_no_shard_of_another_writer(tmp_path: Path) -> None:
    target = tmp_path / "x.parquet"
    target.symlink_to(tmp_path / "nowhere")
    with pytest.raises(OSError, match=r"x\.parquet is a symbolic link to .*/nowhere, which does not exist"):
        storage.publish_bytes(b"x", str(target), exclusive=True)


TREE = (
    "a/0.tar",
    "a/1.tar",
    "a/b/2.tar",
    "a/b/c/3.tar",
    "d[1]/4.tar",
    "d1/5.tar",
    "a/.hidden/6.tar",
    "7.tar",
)
PATTERNS = ("*.tar", "a/*.tar", "*/*.tar", "a/**/*.tar", "a/*/[0-9].tar", "**/3.tar", "d?/*.tar", "*/b/*.tar")


@pytest.mark.parametrize("pattern", PATTERNS)
def test_patterns_mean_on_every_store_what_they_mean_to_python(
    probe: Any, tmp_path: Path, pattern: str
) -> None:
    for name in TREE:
        for base in (str(tmp_path), "probe:///tree"):
            storage.publish_bytes(b"x", storage.join(base, name), exclusive=True)
    found = glob.glob(pattern, root_dir=tmp_path, recursive=True, include_hidden=True)
    for base in (str(tmp_path), "probe:///tree"):
        assert [name.removeprefix(base + "/") for name in names(storage.join(base, pattern))] == sorted(found)


def test_a_part_that_is_there_as_it_stands(tmp_path: Path) -> None:
    for name in TREE:
        storage.publish_bytes(b"x", storage.join(str(tmp_path), name), exclusive=True)
    assert names(f"{tmp_path}/d[1]/*.tar") == [f"{tmp_path}/d[1]/4.tar"]
    assert names(f"{tmp_path}/d[1]") == [f"{tmp_path}/d[1]/4.tar"]


@pytest.mark.parametrize("spec", ["*.tar", "x*/*.tar", "**/*.tar", ""])
def test_a_store_that_refuses_is_not_empty(probe: Any, monkeypatch: pytest.MonkeyPatch, spec: str) -> None:
    storage.publish_bytes(b"x", "probe:///tree/x/0.tar", exclusive=True)
    monkeypatch.setattr(probe, "ls", refuse)
    with pytest.raises(UserError, match="cannot list image shards: .*: the door is shut"):
        names(storage.join("probe:///tree", spec))


def refuse(*arguments: Any, **options: Any) -> Any:
    raise PermissionError("the door is shut")
