"""The commands of tatok_pipe: `python -m tatok_pipe`, or `tatok`, lists them; `tatok <command> …` runs one."""

from __future__ import annotations

import difflib
import sys
from importlib import import_module

from tatok_pipe.errors import EXIT_DONE, EXIT_USAGE
from tatok_pipe.runs.entry import Entry
from tatok_pipe.runs.stop_signal import leave_on_signals

COMMANDS = (
    "demo", "tokenize_corpus", "inspect_tokens", "edit_tokens", "train_ar", "generate", "evaluate", "train_tokenizer",
    "calibrate", "pack_images", "study",
)  # fmt: skip


def main() -> int:
    """The exit code, where no command was asked for; else the command's own ends the process."""
    leave_on_signals()
    name = sys.argv[1] if len(sys.argv) > 1 else "--help"
    if name in COMMANDS:
        del sys.argv[1]
        find_entry(name).leave_with()
    if name in ("--help", "-h"):
        print("usage: tatok COMMAND [CONFIG.yaml] [key=value ...] [--flag ...]\n")
        for each in COMMANDS:
            print(f"  {each:16} {find_entry(each).summary}")
        print(
            "\n`tatok COMMAND --help` shows its options; `python -m tatok_pipe.COMMAND` is the same command."
        )
        return EXIT_DONE
    near = difflib.get_close_matches(name, COMMANDS, n=1)
    hint = f"did you mean {near[0]}?" if near else f"expected one of {', '.join(COMMANDS)}"
    print(f"error: unknown command {name}; {hint}", file=sys.stderr)
    return EXIT_USAGE


def find_entry(name: str) -> Entry:
    """The command of one of the names in COMMANDS."""
    return import_module(f"tatok_pipe.{name}").main


if __name__ == "__main__":
    sys.exit(main())
