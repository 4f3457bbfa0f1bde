"""The first signal asks, the second one insists, and nothing is left behind."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tatok_pipe.runs.stop_signal import StopSignal, signals_held

SIGNALS = [signal.SIGTERM, signal.SIGINT, signal.SIGHUP]
ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture(autouse=True)
def no_nohup() -> Iterator[None]:
    """Signals that the tests were started to ignore, by nohup or a shell's `&`, are not here, nor in children."""
    ignored = [number for number in SIGNALS if signal.getsignal(number) is signal.SIG_IGN]
    for number in ignored:
        signal.signal(number, signal.SIG_DFL)
    yield
    for number in ignored:
        signal.signal(number, signal.SIG_IGN)


@pytest.mark.parametrize("number", SIGNALS)
def test_first_asks_second_insists(number: signal.Signals) -> None:
    before = {each: signal.getsignal(each) for each in SIGNALS}
    stop = StopSignal()
    with pytest.raises(KeyboardInterrupt), stop:
        assert not stop.is_requested and stop.seconds == 0
        os.kill(os.getpid(), number)
        assert stop.is_requested and stop.seconds >= 0
        os.kill(os.getpid(), number)
    assert {each: signal.getsignal(each) for each in before} == before


def test_a_signal_asks_all_that_are_entered() -> None:
    with StopSignal() as outer, StopSignal() as other, StopSignal() as inner:
        os.kill(os.getpid(), signal.SIGTERM)
        assert outer.is_requested and other.is_requested and inner.is_requested
    with StopSignal() as outer:
        with StopSignal() as inner:
            inner.request()  # by what it belongs to, and no matter of the others
        assert not outer.is_requested
        os.kill(os.getpid(), signal.SIGTERM)
        assert outer.is_requested


def test_what_is_held_is_raised_at_the_end_and_handlers_of_the_block_are_gone() -> None:
    before, done = signal.getsignal(signal.SIGTERM), []
    with pytest.raises(KeyboardInterrupt), signals_held():
        os.kill(os.getpid(), signal.SIGTERM)
        signal.signal(signal.SIGTERM, signal.SIG_DFL)  # as Ray does
        done.append("to the end")
    assert done == ["to the end"]
    assert signal.getsignal(signal.SIGTERM) is before


def test_what_nohup_ignores_stays_ignored() -> None:
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with StopSignal() as stop:
            os.kill(os.getpid(), signal.SIGHUP)
            assert not stop.is_requested
    finally:
        signal.signal(signal.SIGHUP, before)


def test_outside_the_main_thread_no_handler_is_set() -> None:
    seen = []

    def work() -> None:
        with StopSignal() as stop:
            seen.append((signal.getsignal(signal.SIGTERM), stop.is_requested))

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert seen == [(signal.getsignal(signal.SIGTERM), False)]


@pytest.mark.parametrize("number", SIGNALS)
def test_a_signal_while_a_command_is_imported_ends_it_in_one_line(
    number: signal.Signals, tmp_path: Path
) -> None:
    # torch is imported by every job; this one takes its time, and says when it began.
    (tmp_path / "torch.py").write_text("import time\nprint('importing', flush=True)\ntime.sleep(60)\n")
    command = subprocess.Popen(
        [sys.executable, "-m", "tatok_pipe.tokenize_corpus"],
        env={**os.environ, "PYTHONPATH": f"{tmp_path}{os.pathsep}{ROOT}"},
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=tmp_path,
    )  # fmt: skip
    assert command.stdout is not None and command.stdout.readline() == "importing\n"
    began = time.monotonic()
    command.send_signal(number)
    _, errors = command.communicate(timeout=30)
    assert (command.returncode, errors) == (4, "interrupted; run the same command again to go on\n")
    assert time.monotonic() - began < 10


# Imports compile and run texts; and Python frees what modules hold when the exit code is known, with handlers gone.
ENTRY = """
import os, sys, time
from tatok_pipe.runs.job import run_entry

class Large:
    def __del__(self):
        os.write(1, b"here\\n")
        time.sleep(3)

def main(argv):
    if argv == ["exec"]:
        exec("print('here', flush=True); time.sleep(60)")
    sys.modules[__name__].held = Large()
    return 3

run_entry(main)
"""


@pytest.mark.parametrize("number", SIGNALS)
@pytest.mark.parametrize(("where", "code"), [("exec", 4), ("end", 3)])
def test_the_exit_code_is_the_commands_own_wherever_a_signal_comes(
    where: str, code: int, number: signal.Signals, tmp_path: Path
) -> None:
    (tmp_path / "entry.py").write_text(ENTRY)
    command = subprocess.Popen(
        [sys.executable, "-m", "entry", where],  # of a script Python would tell the code
        env={**os.environ, "PYTHONPATH": f"{tmp_path}{os.pathsep}{ROOT}"},
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=tmp_path,
    )  # fmt: skip
    assert command.stdout is not None and command.stdout.readline() == "here\n"
    command.send_signal(number)
    _, errors = command.communicate(timeout=30)
    assert command.returncode == code, errors
