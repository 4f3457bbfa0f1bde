"""Damage on disk, through the commands alone: found with kind and file, and undone by --repair and the same command.

Where the image shards are gone, nothing can be undone, and the finding stays.
"""

from __future__ import annotations

import re
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from tatok_pipe import inspect_tokens
from tatok_pipe.tokens.format import token_shard_name
from tests.faults import job
from tests.faults.corpus import write_corpus
from tests.faults.damages import ALONE, BY_SHARD, Damage, Planted
from tests.pictures import small_tokenizer

pytestmark = [pytest.mark.ray, pytest.mark.slow]


@dataclass(frozen=True)
class Undisturbed:
    """A dataset that nothing happened to; its paths are those of its copies' commands."""

    folder: Path
    names: list[str]
    arguments: list[str]

    @property
    def images(self) -> Path:
        return self.folder / "images"

    def copy(self, target: Path) -> Path:
        return Path(shutil.copytree(self.folder / "tokens", target))  # with the times of files

    def tokenize(self, output: Path) -> job.Done:
        return job.run([*self.arguments, f"output.url={output}"], env={}, folder=self.folder)


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> Undisturbed:
    folder = tmp_path_factory.mktemp("damages")
    checkpoint = small_tokenizer(folder / "tokenizer")
    num_shards = sum(damage.num_shards for damage in BY_SHARD.values())
    corpus = write_corpus(folder / "images", num_shards=num_shards, num_images=4)
    names = [token_shard_name(corpus.url(number)) for number in corpus.numbers]
    arguments = [f"input.shards={corpus.folder}", f"tokenizer.checkpoint={checkpoint}", "actors.max=1"]
    made = Undisturbed(folder, names, arguments)
    done = made.tokenize(folder / "tokens")
    assert done.code == 0, done.stderr
    return made


def inspect(
    capsys: pytest.CaptureFixture[str], checkpoint: str, output: Path, option: str
) -> tuple[int, str]:
    """Exit code and output of inspect_tokens."""
    code = inspect_tokens.main([f"input.url={output}", checkpoint, option])
    return code, capsys.readouterr().out


def findings(text: str) -> dict[str, str]:
    """Kind by file, of what was printed."""
    return {
        file: kind
        for kind, file in re.findall(r"^([a-z]+): ((?:data/|quarantine/|_)\S+): ", text, re.MULTILINE)
    }


def fill(damage: Damage, names: list[str]) -> tuple[dict[str, str], set[str]]:
    """What is to be found, and what of it stays, by the names of files."""

    def named(file: str) -> str:
        return re.sub(r"S(\d)\.", lambda match: f"{names[int(match[1])]}.", file)

    return {named(file): kind for file, kind in damage.found.items()}, {named(file) for file in damage.stays}


def own_names(names: list[str]) -> Iterator[tuple[str, Damage, list[str]]]:
    """Every damage with the token shards that are its own."""
    start = 0
    for name, damage in BY_SHARD.items():
        yield name, damage, names[start : start + damage.num_shards]
        start += damage.num_shards


def test_damages_of_token_shards(
    undisturbed: Undisturbed, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = undisturbed.copy(tmp_path / "out")
    expected, stays = {}, set()
    for _, damage, names in own_names(undisturbed.names):
        damage.do(Planted(output, names))
        found, left = fill(damage, names)
        expected.update(found)
        stays |= left
    checkpoint = undisturbed.arguments[1]
    code, text = inspect(capsys, checkpoint, output, "--verify")
    found = findings(text)
    assert {file: kind for file, kind in found.items() if file != "_summary.json"} == expected
    assert code == 1
    code, _ = inspect(capsys, checkpoint, output, "--repair")
    assert code == 1  # what is left may be the user's
    done = undisturbed.tokenize(output)
    assert done.code == 0, done.stderr
    code, text = inspect(capsys, checkpoint, output, "--verify")
    assert (code, set(findings(text))) == (1, stays)
    for file in stays:
        path = output / file
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    assert inspect(capsys, checkpoint, output, "--verify")[0] == 0
    assert job.digests(str(output)) == job.digests(str(undisturbed.folder / "tokens"))


def test_what_cannot_be_made_again_stays(
    undisturbed: Undisturbed, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = undisturbed.copy(tmp_path / "out")
    expected = {}
    for _, damage, names in own_names(undisturbed.names):
        damage.do(Planted(output, names))
        expected.update(
            (file, kind)
            for file, kind in fill(damage, names)[0].items()
            if kind not in ("orphan", "temporary")
        )
    aside = undisturbed.images.rename(undisturbed.folder / "aside")
    try:
        for option in ("--verify", "--repair", "--verify"):
            code, text = inspect(capsys, undisturbed.arguments[1], output, option)
            found = findings(text)
            found = {
                file: kind for file, kind in found.items() if kind not in ("orphan", "temporary", "summary")
            }
            assert (code, found) == (1, expected), option
    finally:
        aside.rename(undisturbed.images)


@pytest.mark.parametrize("name", ALONE)
def test_damages_of_one_file(
    undisturbed: Undisturbed, tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str
) -> None:
    output, damage = undisturbed.copy(tmp_path / "out"), ALONE[name]
    damage.do(Planted(output, undisturbed.names))
    expected, _ = fill(damage, undisturbed.names)
    code, text = inspect(capsys, undisturbed.arguments[1], output, "--verify")
    found = findings(text)
    ((file, kinds),) = expected.items()
    assert code == 1 and list(found) == [file] and found[file] in kinds.split("|"), text
    assert inspect(capsys, undisturbed.arguments[1], output, "--repair")[0] == 0
    if file not in ("_summary.json", "_index.parquet"):
        done = undisturbed.tokenize(output)
        assert done.code == 0, done.stderr
    assert inspect(capsys, undisturbed.arguments[1], output, "--verify")[0] == 0
    assert job.digests(str(output)) == job.digests(str(undisturbed.folder / "tokens"))
