"""How an entry starts and ends: exit codes, what is told on stderr, the last line for machines."""

from __future__ import annotations

import json
import logging
import os
import signal
import subprocess
import sys
import threading
import time
from dataclasses import dataclass
from pathlib import Path

import pytest

from tatok_pipe.config.load import load_config
from tatok_pipe.config.options import option
from tatok_pipe.errors import EXIT_INTERNAL, EXIT_INTERRUPTED, EXIT_USAGE
from tatok_pipe.runs.job import SUMMARY, job_summary, run_entry


@dataclass(frozen=True)
class Config:
    do: str = option("nothing", help="What happens.")


ENTRY = """
import atexit
import errno
import logging
import sys
import threading
import time
from dataclasses import dataclass

from tatok_pipe.config.load import load_config
from tatok_pipe.errors import RefusedError, UserError, mark_outside_cause
from tatok_pipe.runs.job import job_summary, run_entry
from tatok_pipe.config.options import option


@dataclass(frozen=True)
class Config:
    do: str = option("nothing", help="What happens.")


class DiedError(UserError):
    exit_code = 1


def main(argv):
    config = load_config(Config, argv, prog="entry", description="An entry.")
    logging.getLogger("tatok_pipe.entry").info("doing %s", config.do)
    logging.getLogger("somebody.else").info("chatter")
    if config.do == "refuse":
        raise RefusedError("first\\nsecond")
    if config.do == "interrupt":
        raise KeyboardInterrupt
    if config.do == "bug":
        raise RuntimeError("a bug")
    if config.do == "socket":
        raise BrokenPipeError("a socket")
    if config.do == "storage":
        try:
            raise ConnectionError("long story")
        except ConnectionError as cause:
            raise mark_outside_cause(OSError("s3://b/x: does\\nnot answer")) from cause
    if config.do == "disk":
        raise OSError(errno.ENOSPC, "No space left on device", "/the/output/file")
    if config.do == "temporary":
        raise OSError(errno.EDQUOT, "Disk quota exceeded")
    if config.do == "print":
        print("a line")
    if config.do == "sleep":
        time.sleep(60)
    if config.do == "die":
        raise DiedError("Ray did not start")
    if config.do == "linger":
        atexit.register(lambda: [print("ending", flush=True), time.sleep(1), print("ended", flush=True)])
    if config.do == "hang":  # a thread that nobody ends
        threading.Thread(target=lambda: time.sleep(600)).start()
    if config.do == "write":
        for _ in range(100_000):
            print("a line")
    return 1 if config.do == "fail" else None


def summed_up(argv):
    with job_summary("an_entry") as summary:
        if argv in (["doo=refuse"], ["do=die"]):
            return main(argv)
        summary.add({"images": 3, "rate": float("inf"), "url": "s3://b/ü"})
        summary.exit_code = main(argv) or 0
    return summary.exit_code


if __name__ == "__main__":
    run_entry(summed_up)
"""


@pytest.fixture
def start(tmp_path: Path):
    """Starts the entry above in a process of its own."""
    path = tmp_path / "entry.py"
    path.write_text(ENTRY)

    def start_entry(*argv: str) -> subprocess.Popen[str]:
        environment = {**os.environ, "PYTHONPATH": str(Path(__file__).resolve().parents[1])}
        command = [sys.executable, str(path), *argv]
        return subprocess.Popen(
            command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )

    return start_entry


def test_an_entry_reports_a_mistake_in_one_line(start):
    entry = start("doo=refuse")
    assert entry.communicate(timeout=60) == ("", "error: unknown key doo; did you mean do?\n")
    assert entry.returncode == 2


@pytest.mark.parametrize(
    ("do", "code", "last_line"),
    [
        ("nothing", 0, ""),
        ("fail", 1, ""),
        ("refuse", 3, "error: first second"),
        ("interrupt", EXIT_INTERRUPTED, "interrupted; run the same command again to go on"),
        ("bug", EXIT_INTERNAL, "RuntimeError: a bug"),
        ("socket", EXIT_INTERNAL, "BrokenPipeError: a socket"),
        ("storage", 2, "error: s3://b/x: does not answer; mend that and run the same command again"),
        (
            "disk",
            2,
            "error: /the/output/file: No space left on device; mend that and run the same command again",
        ),
        ("temporary", 2, "); mend that and run the same command again"),
    ],
)
def test_exit_codes_of_an_entry(do: str, code: int, last_line: str, start):
    entry = start(f"do={do}")
    _, errors = entry.communicate(timeout=60)
    assert entry.returncode == code
    lines = errors.splitlines()
    assert f"INFO tatok_pipe.entry: doing {do}" in lines[0]
    assert not last_line or lines[-1].endswith(last_line)
    assert ("Traceback" in errors) == (code == EXIT_INTERNAL)
    assert "chatter" not in errors


def test_a_reader_that_goes_away_ends_an_entry_quietly(start):
    with start("do=write") as entry:
        assert entry.stdout.readline() == "a line\n"
        entry.stdout.close()
        errors = entry.stderr.read().splitlines()
    assert entry.returncode == 141
    assert [line.partition("INFO ")[2] for line in errors] == ["tatok_pipe.entry: doing write"]


@pytest.mark.parametrize(
    ("do", "code", "status", "error"),
    [
        ("nothing", 0, "done", None),
        ("fail", 1, "failed", None),
        ("refuse", 3, "refused", "first second"),
        ("interrupt", 4, "interrupted", "interrupted; run the same command again to go on"),
        ("bug", 70, "bug", "RuntimeError: a bug"),
        ("storage", 2, "usage", "s3://b/x: does not answer; mend that and run the same command again"),
    ],
)
def test_a_job_ends_with_one_line_for_machines(do: str, code: int, status: str, error: str | None, start):
    _, errors = start(f"do={do}").communicate(timeout=60)
    (line,) = [line for line in errors.splitlines() if SUMMARY in line]
    found = json.loads(line.partition(SUMMARY)[2])
    assert found.pop("wall_s") >= 0
    assert found.pop("version")
    assert found.pop("error", None) == error
    assert found == {
        "entry": "an_entry", "status": status, "exit_code": code, "images": 3, "rate": None, "url": "s3://b/ü",
    }  # fmt: skip


def test_what_failed_before_it_had_a_figure_has_a_summary_too(start):
    entry = start("do=die")
    _, errors = entry.communicate(timeout=60)
    *_, summary, line = errors.splitlines()
    assert (entry.returncode, line) == (1, "error: Ray did not start")
    assert '"status": "failed", "exit_code": 1, ' in summary and '"error": "Ray did not start"' in summary


def test_a_refusal_without_a_place_names_those_it_may_be(
    start, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
):
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    _, errors = start("do=temporary").communicate(timeout=60)
    assert (
        f"error: Disk quota exceeded, in an output or the folder of temporary files (TMPDIR, {tmp_path})"
        in errors
    )


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_a_signal_at_work_is_an_interruption_with_its_summary(number: signal.Signals, start):
    entry = start("do=sleep")
    begun = entry.stderr.readline()
    entry.send_signal(number)
    _, errors = entry.communicate(timeout=60)
    assert "doing sleep" in begun and entry.returncode == 4
    *_, summary, line = errors.splitlines()
    assert json.loads(summary.partition(SUMMARY)[2])["status"] == "interrupted"
    assert line == "interrupted; run the same command again to go on"
    assert "Traceback" not in errors


def test_a_signal_once_all_is_done_changes_nothing(start):
    entry = start("do=linger")
    assert entry.stdout.readline() == "ending\n"
    entry.send_signal(signal.SIGTERM)
    out, errors = entry.communicate(timeout=60)
    assert (entry.returncode, out) == (0, "ended\n"), errors
    assert "Traceback" not in errors


def test_a_thread_that_does_not_end_holds_nothing_up(start):
    began = time.monotonic()
    entry = start("do=hang")
    _, errors = entry.communicate(timeout=90)
    assert entry.returncode == 0, errors
    assert time.monotonic() - began < 60
    assert '"status": "done"' in errors


def test_a_closed_stdout_is_no_error(start):
    command = [*start("do=nothing").args]
    shell = subprocess.run(
        ["sh", "-c", 'exec "$@" >&-', "sh", *command[:-1], "do=print"],
        env={**os.environ, "PYTHONPATH": str(Path(__file__).resolve().parents[1])},
        stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    assert shell.returncode == 0 and "Traceback" not in shell.stderr, shell.stderr


def test_a_stdout_without_room_is_told_in_a_line(start):
    command = [*start("do=nothing").args]
    with open("/dev/full", "w") as full:
        done = subprocess.run(
            [*command[:-1], "do=print"],
            env={**os.environ, "PYTHONPATH": str(Path(__file__).resolve().parents[1])},
            stdout=full, stderr=subprocess.PIPE, text=True,
        )  # fmt: skip
    assert done.returncode == 2
    assert "Traceback" not in done.stderr and done.stderr.splitlines()[-1].startswith(
        "error: No space left on device"
    )


def test_a_job_in_another_thread_sets_no_handlers(caplog: pytest.LogCaptureFixture):
    caplog.set_level(logging.INFO)
    handlers, codes = [signal.getsignal(signal.SIGTERM)], []

    def work() -> None:
        with job_summary("an_entry") as summary:
            handlers.append(signal.getsignal(signal.SIGTERM))
        codes.append(summary.exit_code)

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert codes == [0] and len(caplog.messages) == 1
    assert handlers == [signal.getsignal(signal.SIGTERM)] * 2


def test_a_submitted_job_tells_its_id(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture):
    caplog.set_level(logging.INFO)
    monkeypatch.setenv("RAY_JOB_CONFIG_JSON_ENV_VAR", '{"metadata": {"job_submission_id": "nightly-1"}}')
    with job_summary("an_entry"):
        pass
    (message,) = caplog.messages
    assert json.loads(message.removeprefix(SUMMARY))["submission_id"] == "nightly-1"


def test_help_is_no_job(monkeypatch: pytest.MonkeyPatch, capsys, caplog: pytest.LogCaptureFixture):
    caplog.set_level(logging.INFO)

    def main(argv: list[str]) -> int:
        with job_summary("an_entry"):
            load_config(Config, argv, prog="entry", description="An entry.")
        return 0

    monkeypatch.setattr(sys, "argv", ["entry", "--help"])
    with pytest.raises(SystemExit) as caught:
        run_entry(main)
    assert caught.value.code == 0
    assert "usage:" in capsys.readouterr().out
    assert not caplog.messages


def test_what_is_registered_at_exit_is_done_before_a_command_leaves() -> None:
    """It leaves by itself then, without the interpreter's teardown, with the same code."""
    code = """
import atexit, runpy, sys
from tatok_pipe.runs import job
configure = job.configure_logging
def late(stream):
    atexit.register(print, "late", flush=True)
    configure(stream)
job.configure_logging = late
leave = job.os._exit
def told(code):
    print("leaves with", code, flush=True)
    leave(code)
job.os._exit = told
sys.argv = ["tokenize_corpus", "input.shards=/nowhere", "output.url=/nowhere/either", "tokenizer.checkpoint=/nowhere"]
runpy.run_module("tatok_pipe.tokenize_corpus", run_name="__main__", alter_sys=True)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stdout == f"late\nleaves with {done.returncode}\n", done.stderr
    assert done.returncode == EXIT_USAGE
