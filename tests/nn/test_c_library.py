"""C that is compiled where it runs, and machines on which it is not."""

from __future__ import annotations

import logging
import re
from pathlib import Path

import pytest

from tatok_pipe.nn.c_library import find_compiler, load_c_library

needs_compiler = pytest.mark.skipif(find_compiler() is None, reason="there is no C compiler")


def write(folder: Path, text: str) -> Path:
    source = folder / "sums.c"
    source.write_text(text)
    return source


@needs_compiler
def test_functions_can_be_called(tmp_path: Path) -> None:
    library = load_c_library(write(tmp_path, "int add(int a, int b) { return a + b; }"))
    assert library is not None and library.add(19, 23) == 42


@needs_compiler
def test_a_file_is_compiled_once_in_a_process(tmp_path: Path) -> None:
    source = write(tmp_path, "int one(void) { return 1; }")
    first = load_c_library(source)
    source.unlink()
    assert first is not None and load_c_library(source) is first


@needs_compiler
def test_a_compiler_without_openmp_will_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    compiler = find_compiler()
    assert compiler is not None
    script = tmp_path / "plain-cc"
    script.write_text(f'#!/bin/sh\ncase "$*" in *-fopenmp*) exit 1;; esac\nexec {compiler[0]} "$@"\n')
    script.chmod(0o755)
    monkeypatch.setenv("CC", f"{script} -O1")
    library = load_c_library(write(tmp_path, "int two(void) { return 2; }"))
    assert library is not None and library.two() == 2


@pytest.mark.parametrize(
    ("compiler", "text", "told"),
    [
        ("no-such-compiler", "int three;", "no C compiler, sums.c is not used"),
        ("false", "int three;", "sums.c is not used, .*false made no library of it"),
        (
            "true",
            "int three;",
            "sums.c is not used, .*true made no library of it: .*cannot open shared object",
        ),
    ],
)
def test_no_compiler_no_library_and_one_line(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    compiler: str,
    text: str,
    told: str,
) -> None:
    monkeypatch.setenv("CC", compiler)
    with caplog.at_level(logging.INFO):
        assert load_c_library(write(tmp_path, text)) is None
    (record,) = caplog.records
    assert re.search(told, record.getMessage()) and "\n" not in record.getMessage()


@needs_compiler
def test_a_mistake_in_the_file_is_told(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO):
        assert load_c_library(write(tmp_path, "int four(void) { return nothing; }")) is None
    assert "nothing" in caplog.text
