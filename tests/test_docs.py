"""The pages: links that lead somewhere, options and figures that are the ones there are, a README of one sitting."""

from __future__ import annotations

import re
from functools import cache
from pathlib import Path

import pytest

from tatok_pipe.__main__ import COMMANDS, find_entry
from tests.test_walls import FLOORS
from tools import reference

ROOT = Path(__file__).parents[1]
PAGES = (
    ROOT / "README.md",
    ROOT / "CONTRIBUTING.md",
    *sorted((ROOT / "docs").glob("*.md")),
    ROOT / "infra/compose/README.md",
)
MAX_README_LINES = 200
_LINK = re.compile(r"\[[^\]]*\]\(([^)\s]+)\)")
_FENCED = re.compile(r"^```.*?^```", re.DOTALL | re.MULTILINE)
_CODE = re.compile(r"`[^`\n]*`")


@cache
def anchors(path: Path) -> frozenset[str]:
    """What may stand behind the `#` of a link to a page, made of its headings as GitHub makes it."""
    found: list[str] = []
    for title in re.findall(r"^#+ (.+)$", _FENCED.sub("", path.read_text("utf-8")), re.MULTILINE):
        name = re.sub(r"[^\w\- ]", "", title.strip().lower()).replace(" ", "-")
        found.append(f"{name}-{count}" if (count := found.count(name)) else name)
    return frozenset(found)


def dead_links(path: Path) -> list[str]:
    """The relative links of a page whose file is not there, or has no such heading."""
    dead = []
    for link in _LINK.findall(_CODE.sub("", _FENCED.sub("", path.read_text("utf-8")))):
        if re.match(r"[a-z]+:", link):
            continue
        name, _, anchor = link.partition("#")
        target = (path.parent / name).resolve() if name else path
        if not target.exists() or (anchor and anchor not in anchors(target)):
            dead.append(link)
    return dead


def test_the_readme_is_read_in_one_sitting() -> None:
    assert len((ROOT / "README.md").read_text("utf-8").splitlines()) <= MAX_README_LINES


@pytest.mark.parametrize("path", PAGES, ids=lambda path: str(path.relative_to(ROOT)))
def test_every_link_leads_somewhere(path: Path) -> None:
    assert dead_links(path) == []


def test_a_dead_link_is_found(tmp_path: Path) -> None:
    page = tmp_path / "a.md"
    page.write_text(
        "# One, `two`: 3\n```sh\n# no heading\n[x](gone.md)\n```\n`[x](gone.md)` [a](#one-two-3) [b](a.md#one-two-3)\n"
        "[c](gone.md) [d](#no-heading) [e](a.md#four) [f](https://example.com/gone.md)\n"
    )
    assert dead_links(page) == ["gone.md", "#no-heading", "a.md#four"]


def test_every_page_is_in_the_readme() -> None:
    links = _LINK.findall((ROOT / "README.md").read_text("utf-8"))
    assert {str(path.relative_to(ROOT)) for path in PAGES if path.name != "README.md"} <= set(links)


def test_the_reference_has_the_options_there_are() -> None:
    assert (ROOT / "docs/reference.md").read_text("utf-8") == reference.make_page(), "make docs-reference"


@pytest.mark.parametrize("name", COMMANDS)
def test_the_reference_is_what_help_says(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    entry = find_entry(name)
    with pytest.raises(SystemExit):
        entry(["--help"])
    assert f"## {name}\n\n```\n{capsys.readouterr().out}```\n" in reference.make_page()


def test_the_figures_of_the_readme_are_those_of_the_results() -> None:
    table = (ROOT / "README.md").read_text("utf-8").partition("\n## Results\n")[2].partition("\n## ")[0]
    figures = set(re.findall(r"\d[\d,]*\.?\d*(?<!,)", "\n".join(re.findall(r"^\|.*$", table, re.MULTILINE))))
    known = set(re.findall(r"\d[\d,]*\.?\d*(?<!,)", (ROOT / "docs/results.md").read_text("utf-8")))
    assert len(figures) > 10 and figures <= known


@pytest.mark.parametrize("name", ["docs/architecture.md", "CONTRIBUTING.md"])
def test_files_that_are_named_are_there(name: str) -> None:
    """`tokenizer/dtf.py` in a text, or `dtf.py` beside its folder: there is a file whose path ends so."""
    text = (ROOT / name).read_text("utf-8")
    paths = [
        f"/{path.relative_to(ROOT)}"
        for folder in ("configs", "docs", "jobs", "tatok_pipe", "tests", "tools")
        for path in (ROOT / folder).rglob("*")
    ]
    named = {each for each in re.findall(r"(?<![\w/<>*])[\w./]+\.py\b", text) if "/" not in each[:1]}
    assert len(named) > 20
    assert sorted(each for each in named if not any(path.endswith(f"/{each}") for path in paths)) == []


def test_every_room_is_described() -> None:
    tree = (
        (ROOT / "docs/architecture.md").read_text("utf-8").partition("tatok_pipe/\n")[2].partition("```")[0]
    )
    told = set(re.findall(r"^  (\w+)", tree, re.MULTILINE))
    there = {
        path.stem
        for path in (ROOT / "tatok_pipe").iterdir()
        if path.name not in ("__init__.py", "__pycache__")
    }
    assert told == there


def test_the_floors_of_the_architecture_are_those_of_the_walls() -> None:
    """From above to below, as a house is drawn."""
    picture = (ROOT / "docs/architecture.md").read_text("utf-8").partition("```text\n")[2].partition("```")[0]
    drawn = [
        tuple(re.findall(r"\w+", row)) for row in re.findall(r"^ *│ ([\w, ]+?) *│", picture, re.MULTILINE)
    ]
    assert drawn[::-1] == list(FLOORS)


def test_the_pages_that_commands_write_are_where_the_makefile_says() -> None:
    written = re.findall(r"--write (\S+)", (ROOT / "Makefile").read_text())
    assert len(written) >= 4 and all((ROOT / page).is_file() for page in written)
    # As tests/benchmarks/tokenizer looks for them.
    begin, end = "<!-- begin: make bench-tokenizer -->", "<!-- end: make bench-tokenizer -->"
    assert begin in (ROOT / "docs/results.md").read_text("utf-8").partition(end)[0]
