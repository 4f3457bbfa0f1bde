"""The wheel has all that the commands need, and they run from any folder, also without assertions (`python -O`), and on
every Python that is promised and found here."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from PIL import Image

from tatok_pipe.__main__ import COMMANDS

pytest.importorskip("setuptools", minversion="77")  # what pyproject.toml asks for to build it
ROOT = Path(__file__).parents[1]


OTHER_PYTHONS = ("3.12", "3.13")


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    source, wheels = (tmp_path_factory.mktemp(name) for name in ("source", "wheels"))
    shutil.copytree(ROOT / "tatok_pipe", source / "tatok_pipe", ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    pip = [sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check"]
    subprocess.run(
        [*pip, "wheel", "--no-deps", "--no-build-isolation", "--wheel-dir", wheels, source],
        check=True, capture_output=True,
    )  # fmt: skip
    (made,) = wheels.glob("*.whl")
    return made


@pytest.fixture(scope="module")
def installed(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the package as its wheel installs it."""
    target = tmp_path_factory.mktemp("target")
    pip = [sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check"]
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


def test_what_is_compiled_where_it_runs_comes_with_it(installed: Path) -> None:
    assert (installed / "tatok_pipe/ar/step.c").read_bytes() == (ROOT / "tatok_pipe/ar/step.c").read_bytes()


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


@pytest.mark.slow
def test_every_command_tells_its_options(installed: Path, tmp_path: Path) -> None:
    listed = run(installed, tmp_path, "-O", "-m", "tatok_pipe")
    assert re.findall(r"^  (\w+) +\w", listed, re.MULTILINE) == list(COMMANDS)
    for command in COMMANDS:
        for arguments in (["-m", f"tatok_pipe.{command}"], ["-m", "tatok_pipe", command]):
            told = run(installed, tmp_path, "-O", *arguments, "--help")
            assert told.startswith(f"usage: python -m tatok_pipe.{command} ")


@pytest.fixture
def environment(wheel: Path, tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[Path]:
    """The bin/ of a fresh environment of another Python, with the wheel and what it asks for."""
    version: str = request.param
    python = find_python(version)
    if python is None:
        pytest.skip(f"no Python {version} on PATH or in pyenv")
    folder = tmp_path / "environment"
    subprocess.run([python, "-m", "venv", folder], check=True, capture_output=True)
    pip = [folder / "bin/python", "-m", "pip", "--quiet", "--disable-pip-version-check", "install"]
    constraints = ROOT / "constraints.txt"
    (torch,) = re.findall(r"^torch==.*$", constraints.read_text(), re.MULTILINE)
    for what in ([torch], ["-c", constraints, wheel]):  # torch first, as in the Makefile
        done = subprocess.run([*pip, *what], capture_output=True, text=True, check=False)
        if "No matching distribution found for torch" in done.stderr:
            pytest.skip(f"no {torch} for Python {version} from this machine's package index")
        assert done.returncode == 0, done.stderr
    yield folder / "bin"
    shutil.rmtree(folder)  # gigabytes


def find_python(version: str) -> str | None:
    """One of pyenv's shims may be on PATH and lead nowhere, so each is asked."""
    pyenv = Path(os.environ.get("PYENV_ROOT", Path.home() / ".pyenv"))
    found = [shutil.which(f"python{version}"), *sorted(pyenv.glob(f"versions/{version}.*/bin/python"))]
    for python in filter(None, found):
        command = [python, "-c", "import sys, venv, ensurepip; print('%d.%d' % sys.version_info[:2])"]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.stdout.strip() == version:
            return str(python)
    return None


@pytest.mark.ray
@pytest.mark.slow
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("environment", OTHER_PYTHONS, indirect=True)
def test_a_folder_of_images_becomes_tokens_on_other_pythons(environment: Path, tmp_path: Path) -> None:
    names = [f"{number}.png" for number in range(5)]
    (tmp_path / "images").mkdir()
    for number, name in enumerate(names):
        Image.effect_mandelbrot((200, 150), (-2, -1, 1, 1), 20 + number).save(tmp_path / "images" / name)
    written = []
    for optimize in ("", "1"):  # in all processes, as -O has it in one
        env = {name: value for name, value in os.environ.items() if not name.startswith(("PYTHON", "RAY_"))}
        env |= {"PYTHONOPTIMIZE": optimize, "CUDA_VISIBLE_DEVICES": ""}

        def tatok(*arguments: str, env: dict[str, str] = env) -> str:
            done = subprocess.run(
                [environment / "tatok", *arguments],
                cwd=tmp_path, env=env, capture_output=True, text=True, check=False,
            )  # fmt: skip
            assert done.returncode == 0, done.stderr
            assert "Traceback" not in done.stderr
            return done.stdout

        output = tmp_path / f"tokens{optimize}"
        assert all(command in tatok("--help") for command in COMMANDS)
        tatok("tokenize_corpus", "input.shards=images", f"output.url={output}", "actors.max=1")
        tatok("inspect_tokens", f"input.url={output}", "--verify")
        (shard,) = (output / "data").glob("*.parquet")
        assert pq.read_table(shard)["key"].to_pylist() == [Path(name).stem for name in names]
        written.append(shard.read_bytes())
    assert written[0] == written[1]
