"""C that belongs to a model, made into a library of this process by the machine's own compiler, where it has one.

Compiling takes a third of a second, so nothing is kept: no library of another machine, processor or revision is met.
"""

from __future__ import annotations

import ctypes
import logging
import os
import platform
import shlex
import shutil
import subprocess
import tempfile
from functools import cache
from pathlib import Path

logger = logging.getLogger(__name__)

_COMPILERS = ("cc", "gcc", "clang")
_FLAGS = ("-std=gnu11", "-O3", "-ffp-contract=fast", "-fno-math-errno", "-w", "-fPIC", "-shared")
_TIMEOUT_S = 60


def load_c_library(source: Path) -> ctypes.CDLL | None:
    """The functions of a C file, for the processor that this runs on; None where there is no compiler, or none that
    makes a library of it that can be loaded. As for make, `CC` is the compiler, with what it is to be given."""
    compiler = find_compiler()
    if compiler is None:
        logger.info("no C compiler, %s is not used", source.name)
        return None
    return _load(source, compiler)


def find_compiler() -> tuple[str, ...] | None:
    """Path of a C compiler and its first arguments."""
    for name in (os.environ.get("CC"),) if os.environ.get("CC") else _COMPILERS:
        program, *arguments = shlex.split(name or "")
        if path := shutil.which(program):
            return path, *arguments
    return None


@cache
def _load(source: Path, compiler: tuple[str, ...]) -> ctypes.CDLL | None:
    # Not every clang has OpenMP.
    for threads in (("-fopenmp",), ()):
        try:
            with tempfile.TemporaryDirectory(prefix="tatok-c-", ignore_cleanup_errors=True) as folder:
                library = Path(folder, source.with_suffix(".so").name)
                compile_c(source, library, (*compiler, *_processor(), *threads))
                return ctypes.CDLL(str(library))  # stays mapped when the file is gone
        except (OSError, subprocess.SubprocessError) as error:
            reason = " ".join(str(getattr(error, "stderr", "") or error).split())[:300]
    logger.info("%s is not used, %s made no library of it: %s", source.name, compiler[0], reason)
    return None


def compile_c(source: Path, library: Path, compiler: tuple[str, ...]) -> None:
    """By a compiler and its first arguments. Raises OSError or SubprocessError where it does not work."""
    command = [*compiler, *_FLAGS, "-o", str(library), str(source)]
    subprocess.run(command, check=True, capture_output=True, text=True, timeout=_TIMEOUT_S)


def _processor() -> tuple[str, ...]:
    return ("-march=native",) if platform.machine() in ("x86_64", "AMD64") else ("-mcpu=native",)
