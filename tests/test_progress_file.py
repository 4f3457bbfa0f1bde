"""What a run tells of itself beside its output, and who looks at it."""

from __future__ import annotations

import json
import logging
import os
import pty
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from tatok_pipe import storage
from tatok_pipe.errors import EXIT_DONE, EXIT_FAILED_SHARDS, EXIT_INTERRUPTED, UserError
from tatok_pipe.inspect_tokens import main as inspect_tokens
from tatok_pipe.report.progress_page import render_progress
from tatok_pipe.runs.job import job_summary
from tatok_pipe.runs.log_format import log_to_file
from tatok_pipe.runs.progress import RunState
from tatok_pipe.runs.progress_file import (
    PROGRESS_FILE,
    Progress,
    ProgressFile,
    read_progress,
    tell_death,
    was_cut_short,
)
from tests.entries import assert_told

STATE = RunState(
    num_shards=10, num_done=4, num_failed=1, num_images=600, num_tokens=30_000, num_quarantined=2, num_actors=1,
    num_actors_wanted=2, share=1.0, seconds=30.0,
)  # fmt: skip


def told_by(url: str, until: Callable[[Progress], bool]) -> Progress:
    deadline = time.monotonic() + 20
    while (progress := read_progress(url)) is None or not until(progress):
        assert time.monotonic() < deadline, progress
        time.sleep(0.02)
    return progress


def begin(url: str, **given: object) -> ProgressFile:
    return ProgressFile(url, entry="tokenize_corpus", every_s=1.0, num_todo=10, **given)  # type: ignore[arg-type]


def test_it_says_where_the_run_is_and_how_it_ended(tmp_path: Path) -> None:
    url = str(tmp_path)
    file = begin(url, num_done_before=5, row_name="crop")
    first = told_by(url, lambda progress: True)
    assert (first.shards_planned, first.shards_done, first.images, first.left_s) == (15, 5, 0, None)
    assert first.status == "running" and first.exit_code is None and was_cut_short(url)
    file.show(STATE)
    now = told_by(url, lambda progress: progress.images > 0)
    assert (now.shards_planned, now.shards_done, now.shards_failed) == (15, 5 + 4 - 1, 1)
    assert (now.images, now.images_per_s, now.tokens_per_image, now.quarantined) == (600, 20.0, 50.0, 2)
    assert now.left_s == 30.0  # five shards' worth took 30 s, and five are left
    assert (now.process, now.host, now.row_name) == (os.getpid(), socket.gethostname(), "crop")
    file.close("done", 0)
    last = read_progress(url)
    assert last is not None and (last.status, last.exit_code, last.images) == ("done", 0, 600)
    assert not was_cut_short(url)
    assert abs(last.written_s() - time.time()) < 20


@pytest.mark.parametrize(
    ("error", "status", "code"),
    [(None, "failed", 1), (KeyboardInterrupt(), "interrupted", 4), (UserError("x"), "usage", 2),
     (RuntimeError("x"), "bug", 70), (BrokenPipeError(), "interrupted", 4)],
)  # fmt: skip
def test_however_a_job_ends_it_is_said(
    error: BaseException | None, status: str, code: int, tmp_path: Path
) -> None:
    def job() -> None:
        with job_summary("tokenize_corpus") as summary:
            summary.keep_progress(begin(str(tmp_path)))
            summary.exit_code = EXIT_FAILED_SHARDS
            if error is not None:
                raise error

    if error is None:
        job()
    else:
        with pytest.raises(type(error)):
            job()
    progress = read_progress(str(tmp_path))
    assert progress is not None and (progress.status, progress.exit_code) == (status, code)


def test_a_store_that_does_not_take_it_costs_a_warning(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "file").write_bytes(b"")
    with caplog.at_level(logging.WARNING):
        file = begin(str(tmp_path / "file" / "below"))
        time.sleep(1.5)  # the first time, and the second
        file.close("done", 0)
    told = [each for each in caplog.messages if "not written, the run goes on" in each]
    assert len(told) == 1


def test_no_commit_of_the_hub_is_made_for_it(monkeypatch: pytest.MonkeyPatch) -> None:
    assert storage.commits_each_write("hf://datasets/somebody/tokens")
    assert not storage.commits_each_write("memory://tokens")
    asked: list[str] = []
    monkeypatch.setattr(storage, "publish_bytes", lambda data, url, *, exclusive: asked.append(url))
    begin("hf://datasets/somebody/tokens").close("done", 0)
    assert not asked
    begin("memory://tokens").close("done", 0)
    assert asked


def test_a_process_that_is_gone_is_known(tmp_path: Path) -> None:
    code = (
        "import sys, time\nfrom tatok_pipe.runs.progress_file import ProgressFile\n"
        "ProgressFile(sys.argv[1], entry='x', every_s=1, num_todo=1); time.sleep(600)"
    )
    process = subprocess.Popen([sys.executable, "-c", code, str(tmp_path)])
    try:
        progress = told_by(str(tmp_path), lambda progress: True)
        assert progress.process == process.pid and tell_death(progress) == ""
    finally:
        process.kill()
        process.wait()
    assert f"process {process.pid} of this machine" in tell_death(progress)
    assert tell_death(replace(progress, status="interrupted")) == ""


def test_a_process_of_another_machine_is_given_up_when_it_is_silent(tmp_path: Path) -> None:
    file = begin(str(tmp_path))
    progress = replace(told_by(str(tmp_path), lambda progress: True), machine="another", host="node-7")
    file.close("done", 0)

    def since(seconds: float) -> Progress:
        written = datetime.now(UTC) - timedelta(seconds=seconds)
        return replace(progress, written=written.isoformat(timespec="seconds"))

    assert tell_death(since(50)) == ""
    assert re.search("on node-7 has not told anything for 1 min 1[0-9] s", tell_death(since(70)))
    assert tell_death(replace(since(70), every_s=20.0)) == ""  # 6 times 20 s have not passed
    assert tell_death(since(70), may_be_silent=True) == ""


def watch(url: str) -> int | None:
    return inspect_tokens([f"input.url={url}", "--watch"])


def test_watching_a_run_until_its_end(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = begin(str(tmp_path))
    file.show(STATE)
    told_by(str(tmp_path), lambda progress: progress.images > 0)
    page = tmp_path / "progress.html"
    during: list[str] = []

    def end() -> None:
        deadline = time.monotonic() + 20
        while not page.exists() and time.monotonic() < deadline:
            time.sleep(0.02)
        during.append(page.read_text())
        file.close("done", 0)

    ender = threading.Thread(target=end)
    ender.start()
    assert watch(str(tmp_path)) == EXIT_DONE
    ender.join()
    lines = capsys.readouterr().out.splitlines()
    assert "running" in lines[0] and "3 of 10, 1 failed" in lines[0] and "600, 20.0 images/s" in lines[0]
    assert lines[-1].startswith("done (exit code 0)")
    assert 'http-equiv="refresh"' in during[0] and "40 %" in during[0]
    assert 'http-equiv="refresh"' not in page.read_text() and "done (exit code 0)" in page.read_text()


def test_watching_a_run_that_died_or_failed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    begin(str(tmp_path)).close("failed", 1)
    assert watch(str(tmp_path)) == EXIT_FAILED_SHARDS
    place = tmp_path / PROGRESS_FILE
    content = json.loads(place.read_text()) | {"status": "running", "process_start": "1"}
    place.write_text(json.dumps(content))
    assert watch(str(tmp_path)) == EXIT_FAILED_SHARDS
    failed, died = capsys.readouterr().out.splitlines()
    assert failed.startswith("failed (exit code 1)") and died.startswith("seems to have died: process")


def test_a_run_that_counts_no_tokens_tells_of_none(tmp_path: Path) -> None:
    for number, tokens in ((0, 0), (1, 30_000)):
        url = str(tmp_path / str(number))
        file = begin(url)
        file.show(replace(STATE, num_tokens=tokens))
        file.close("done", 0)
        page = render_progress(
            told_by(url, lambda progress: progress.status == "done"), url=url, told="", is_over=True
        )
        assert ("tokens/image" in page) == bool(tokens) and "600, 20.0 images/s" in page


def test_what_cannot_be_watched(tmp_path: Path) -> None:
    asked = [f"input.url={tmp_path}", "--watch"]
    assert_told(inspect_tokens, asked, f"{tmp_path}: no {PROGRESS_FILE} there, so no run tells")
    assert_told(inspect_tokens, [*asked, "--verify"], "watch: expected alone")
    for broken in ("{", "[]", "{}", '{"format": 1}', '{"format": 2}'):
        (tmp_path / PROGRESS_FILE).write_text(broken)
        assert_told(inspect_tokens, asked, "is broken .*it may be removed")


@pytest.mark.slow
def test_a_terminal_is_drawn_over_and_left_by_ctrl_c(tmp_path: Path) -> None:
    file = begin(str(tmp_path))
    file.show(STATE)
    told_by(str(tmp_path), lambda progress: progress.images > 0)
    ours, theirs = pty.openpty()
    command = [sys.executable, "-m", "tatok_pipe.inspect_tokens", f"input.url={tmp_path}", "--watch"]
    process = subprocess.Popen(command, stdout=theirs, stderr=subprocess.PIPE, start_new_session=True)
    try:
        shown = ""
        while shown.count("\x1b[J") < 2:  # drawn a second time
            shown += os.read(ours, 4096).decode(errors="replace")
        process.send_signal(signal.SIGINT)
        _, told = process.communicate(timeout=60)
    finally:
        process.kill()
        file.close("done", 0)
        os.close(ours)
        os.close(theirs)
    assert process.returncode == EXIT_INTERRUPTED
    assert b"Traceback" not in told
    assert "█████████████" in shown and "\x1b[10F" in shown


def test_the_log_goes_to_a_file_too(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    place = tmp_path / "run.log"
    logger = logging.getLogger("tatok_pipe.test")
    with caplog.at_level(logging.INFO, logger="tatok_pipe"):
        for line in ("first", "second"):
            with log_to_file(str(place), option="progress.log_file"):
                logger.info(line)
            logger.info("of nobody")
    first, second = place.read_text().splitlines()
    assert re.fullmatch(r"\d{4}-\d\d-\d\d .* INFO tatok_pipe\.test: first", first) and second.endswith(
        "second"
    )
    with (
        pytest.raises(UserError, match=r"progress\.log_file=.*: cannot be written"),
        log_to_file(str(tmp_path / "no/run.log"), option="progress.log_file"),
    ):
        pass
