"""Write the page that says what is read and what is refused: python -m tests.inputs_table [--write docs/inputs.md]"""

from __future__ import annotations

import argparse
from pathlib import Path

from tests.inputs_table.page import make_page


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.inputs_table", description=__doc__)
    parser.add_argument("--write", type=Path, help="the file to write; without it the page is printed")
    arguments = parser.parse_args()
    page = make_page()
    if arguments.write is None:
        print(page, end="")
    else:
        arguments.write.write_text(page, encoding="utf-8")


if __name__ == "__main__":
    main()
