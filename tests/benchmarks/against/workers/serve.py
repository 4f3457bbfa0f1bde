"""What a program of this folder answers: a line of JSON for a line of JSON, so that one process can be asked again and
again in turn with another. Programs here run on both sides, so they import nothing of `tests` and of the package only
what both sides have.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable
from typing import Any


def serve(*functions: Callable[..., Any]) -> None:
    """Call what each line of standard input names, with its arguments, and write what it gives."""
    known = {function.__name__: function for function in functions}
    # What libraries print goes elsewhere.
    with os.fdopen(os.dup(1), "w") as answers:
        os.dup2(2, 1)
        for line in sys.stdin:
            call = json.loads(line)
            print(json.dumps(known[call["do"]](**call["with"])), file=answers, flush=True)
