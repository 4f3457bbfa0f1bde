"""The wheel has all that the commands need, and they run from any folder, also without assertions (`python -O`)."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tatok_pipe.__main__ import COMMANDS

pytest.importorskip("setuptools", minversion="77")  # what pyproject.toml asks for to build it
ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the package as its wheel installs it."""
    source, wheels, target = (tmp_path_factory.mktemp(name) for name in ("source", "wheels", "target"))
    shutil.copytree(ROOT / "tatok_pipe", source / "tatok_pipe", ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    pip = [sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check"]
    subprocess.run(
        [*pip, "wheel", "--no-deps", "--no-build-isolation", "--wheel-dir", wheels, source],
        check=True, capture_output=True,
    )  # fmt: skip
    (wheel,) = wheels.glob("*.whl")
    subprocess.run(
        [*pip, "install", "--no-deps", "--no-index", "--target", target, wheel],
        check=True,
        capture_output=True,
    )
    return target


def run(installed: Path, folder: Path, *arguments: str) -> str:
    environment = {**os.environ, "PYTHONPATH": str(installed), "CUDA_VISIBLE_DEVICES": ""}
    done = subprocess.run(
        [sys.executable, *arguments], cwd=folder, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_the_packaged_tokenizer_comes_with_it(installed: Path, tmp_path: Path) -> None:
    code = """
import numpy, tatok_pipe
from tatok_pipe.evaluation.textbook import load_textbook
from tatok_pipe.report import page
assert not __debug__
tokenizer = tatok_pipe.load_tokenizer("packaged")
tokens = tokenizer.encode([numpy.zeros((128, 128, 3), numpy.uint8)])
load_textbook()
print(tatok_pipe.__file__, len(tokens), tokenizer.decode(tokens).shape)
"""
    told = run(installed, tmp_path, "-O", "-c", code).split(maxsplit=1)
    assert told == [str(installed / "tatok_pipe/__init__.py"), "1 torch.Size([1, 3, 128, 128])\n"]


def test_every_command_tells_its_options(installed: Path, tmp_path: Path) -> None:
    listed = run(installed, tmp_path, "-O", "-m", "tatok_pipe")
    assert re.findall(r"^  (\w+) +\w", listed, re.MULTILINE) == list(COMMANDS)
    for command in COMMANDS:
        for arguments in (["-m", f"tatok_pipe.{command}"], ["-m", "tatok_pipe", command]):
            told = run(installed, tmp_path, "-O", *arguments, "--help")
            assert told.startswith(f"usage: python -m tatok_pipe.{command} ")
