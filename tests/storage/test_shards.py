from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tatok_pipe import storage
from tatok_pipe.errors import UserError
from tatok_pipe.storage import expand_shards


def fill(base: str, *names: str) -> list[str]:
    for name in names:
        storage.publish_bytes(b"x", storage.join(base, name), exclusive=True)
    return [storage.join(base, name) for name in names]


def check_every_spelling(base: str, tmp_path: Path) -> None:
    a0, a1, a2, other, deep = fill(base, "a-0.tar", "a-1.tar", "a-2.tar", "other.tar", "z/deep.tar")
    fill(base, "index.json")
    assert expand_shards(storage.join(base, "a-{0..2}.tar")) == [a0, a1, a2]
    assert expand_shards(storage.join(base, "{other,a-1}.tar")) == [other, a1]
    assert expand_shards(storage.join(base, "a-*.tar")) == [a0, a1, a2]
    assert expand_shards(storage.join(base, "a-[12].tar")) == [a1, a2]
    assert expand_shards(storage.join(base, "a-?.tar")) == [a0, a1, a2]
    assert expand_shards(base) == expand_shards(base + "/") == [a0, a1, a2, other, deep]
    assert expand_shards([a2, a0]) == [a2, a0]
    assert expand_shards([a2, storage.join(base, "a-*.tar"), a0]) == [a2, a0, a1]
    text = f"# two shards\n{a1}  # one\n\n  {storage.join(base, 'a-{2..2}.tar')}\n{a1}\n"
    storage.publish_bytes(text.encode(), storage.join(base, "list.txt"), exclusive=True)
    (tmp_path / "local.txt").write_text(f"@{storage.join(base, 'list.txt')}\n{other}\n")
    assert expand_shards("@" + storage.join(base, "list.txt")) == [a1, a2]
    assert expand_shards(f"@{tmp_path / 'local.txt'}") == [a1, a2, other]


def check_errors(base: str) -> None:
    fill(base, "a-0.tar", "empty/readme")
    with pytest.raises(
        UserError, match=r"a-\{0..9\}.tar: 9 of 10 image shards do not exist: .*a-1.tar, .* and 6 more"
    ):
        expand_shards(storage.join(base, "a-{0..9}.tar"))
    for wrong in ("b.tar", "nothing", "no/such/b.tar", "no/such/{1..3}.tar"):
        with pytest.raises(UserError, match="do not exist"):
            expand_shards(storage.join(base, wrong))
    for wrong in ("b*.tar", "empty"):
        with pytest.raises(UserError, match="no .tar file there"):
            expand_shards(storage.join(base, wrong))
    with pytest.raises(UserError, match="cannot read the list of shards"):
        expand_shards("@" + storage.join(base, "nothing.txt"))


def test_local(tmp_path: Path) -> None:
    check_every_spelling(str(tmp_path / "shards"), tmp_path)


def test_local_errors(tmp_path: Path) -> None:
    check_errors(str(tmp_path))
    (tmp_path / "bare").mkdir()
    with pytest.raises(UserError, match="no .tar file there"):
        expand_shards(str(tmp_path / "bare"))


def test_relative_paths_become_absolute_and_unique(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (shard,) = fill(str(tmp_path), "a.tar")
    monkeypatch.chdir(tmp_path)
    assert expand_shards(["a.tar", "./a.tar", "file://" + shard, shard]) == [shard]


def test_other_filesystems(probe: Any, tmp_path: Path) -> None:
    check_every_spelling("probe:///shards", tmp_path)


def test_other_filesystems_errors(probe: Any) -> None:
    check_errors("probe:///shards")


@pytest.mark.s3
def test_s3(s3_url: str, tmp_path: Path) -> None:
    check_every_spelling(s3_url, tmp_path)


@pytest.mark.s3
def test_s3_errors(s3_url: str) -> None:
    check_errors(s3_url)


def test_nothing_given() -> None:
    for nothing in ([], ""):
        with pytest.raises(UserError):
            expand_shards(nothing)
    with pytest.raises(UserError, match="unbalanced braces"):
        expand_shards("a-{0..3.tar")


def test_a_directory_is_listed_once(probe: Any) -> None:
    urls = fill("probe:///shards", *(f"{index:03d}.tar" for index in range(100)))
    probe.calls.clear()
    assert expand_shards("probe:///shards/{000..099}.tar") == urls
    assert probe.calls["ls"] == 1
    assert probe.calls["info"] + probe.calls["exists"] <= 1
    probe.calls.clear()
    assert expand_shards("probe:///shards/*.tar") == urls
    assert probe.calls.total() <= 3  # of the directory, none of a shard


def test_messages_hide_secrets(probe: Any) -> None:
    with pytest.raises(UserError) as raised:
        expand_shards("probe://me:password@host/a.tar")
    assert "password" not in str(raised.value)
