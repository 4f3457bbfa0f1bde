"""What holds for the options of all entries."""

from __future__ import annotations

from importlib import import_module
from pathlib import Path

import pytest

from tatok_pipe.__main__ import COMMANDS
from tatok_pipe.commands.tokenize_corpus.options import DEMO_FOLDER
from tatok_pipe.config.load import load_config
from tatok_pipe.config.schema import Option, describe
from tatok_pipe.errors import UserError
from tools.simulation.options import SimulateCorpusConfig

CONFIGS: dict[str, type] = {name: import_module(f"tatok_pipe.{name}").main.config_class for name in COMMANDS}
CONFIGS["simulation"] = SimulateCorpusConfig
# Text that is neither a URL nor one of a few words.
TEXTS = {
    "evaluate": {"compare", "suite"},
    "generate": {"classes", "start.columns", "start.rows"},
}


def urls(entry: str) -> list[Option]:
    return [option for option in describe(CONFIGS[entry]).all_options().values() if option.is_url]


@pytest.mark.parametrize("entry", CONFIGS)
def test_every_text_is_a_url_a_choice_or_known_here(entry: str) -> None:
    options = describe(CONFIGS[entry]).all_options().values()
    # Those of stores are lists of URLs, which their config checks itself.
    texts = {
        each.path
        for each in options
        if each.kind is str and not (each.choices or each.is_url or each.path.startswith("storage."))
    }
    assert texts == TEXTS.get(entry, set())


@pytest.mark.parametrize(
    ("entry", "key"), [(entry, option.path) for entry in CONFIGS for option in urls(entry)]
)
def test_no_url_of_an_entry_is_of_blanks(entry: str, key: str) -> None:
    with pytest.raises(UserError, match=rf"^{key}= : empty; expected a URL or path"):
        load_config(CONFIGS[entry], [f"{key}= "], prog=entry, description="")


def test_what_jobs_leave_by_default_is_no_part_of_a_commit() -> None:
    folders = {DEMO_FOLDER}
    for entry in CONFIGS:
        folders |= {each.default for each in urls(entry) if each.path.endswith("url") and each.default}
    assert {"tatok_out", "tatok_generator", "tatok_samples", "tatok_evaluation"} <= folders
    ignored = (Path(__file__).parents[1] / ".gitignore").read_text().splitlines()
    assert {f"/{folder}/" for folder in folders} <= set(ignored)
