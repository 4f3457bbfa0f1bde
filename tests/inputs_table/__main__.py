"""Write the page that says what is read and what is refused: python -m tests.inputs_table [--write docs/inputs.md]"""

from __future__ import annotations

from tests.inputs_table.page import make_page
from tools.pages import write_page

if __name__ == "__main__":
    write_page("tests.inputs_table", __doc__, make_page)
