"""How commands begin: options before what is slow to import, a sign of life, the list of them all."""

from __future__ import annotations

import logging
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tatok_pipe.errors import UserError
from tatok_pipe.runs import entry
from tatok_pipe.tokenize_corpus import main

ROOT = Path(__file__).parents[1]


@pytest.mark.parametrize(("was_logged", "told"), [(False, ["starting"]), (True, [])])
def test_a_command_that_is_silent_tells_that_it_has_begun(
    was_logged: bool, told: list[str], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(entry, "_FIRST_SIGN_S", 0.01)
    monkeypatch.setattr(entry, "was_logged", lambda: was_logged)
    with caplog.at_level(logging.INFO, "tatok_pipe"), entry._first_sign("tokenize_corpus"):
        time.sleep(0.5)
    assert [record.message for record in caplog.records] == told


def test_a_command_that_ends_at_once_tells_nothing_more(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, "tatok_pipe"), entry._first_sign("tokenize_corpus"):
        pass
    assert not caplog.records


def test_a_wrong_option_is_told_before_anything_is_imported() -> None:
    program = (
        "import sys\n"
        "from tatok_pipe.errors import UserError\n"
        "from tatok_pipe.train_ar import main\n"
        "try: main(['input.ulr=x'])\n"
        "except UserError as error: print(error, {'torch', 'ray', 'pyarrow'} & sys.modules.keys())"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert done.stdout == "unknown key input.ulr; did you mean input.url? set()\n"


def test_a_command_may_be_called_from_python(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="1 of 1 image shards do not exist"):
        main([f"input.shards={tmp_path}/none.tar", f"output.url={tmp_path}/out"])


@pytest.mark.parametrize(
    ("arguments", "code", "told"),
    [
        ([], 0, "usage: tatok COMMAND"),
        (["--help"], 0, "usage: tatok COMMAND"),
        (["tokenise_corpus"], 2, "error: unknown command tokenise_corpus; did you mean tokenize_corpus?"),
        (["x"], 2, "error: unknown command x; expected one of demo, tokenize_corpus, "),
        (["generate", "num_image=3"], 2, "error: unknown key num_image; did you mean num_images?"),
    ],
)
def test_the_list_of_commands(arguments: list[str], code: int, told: str) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "tatok_pipe", *arguments],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, (done.stderr or done.stdout).startswith(told)) == (code, True), done
