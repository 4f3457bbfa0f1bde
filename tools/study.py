"""Write what a study found into pages: python -m tools.study runs/study [--write docs/results.md README.md]

From arms.csv, claims.csv and seconds.csv of its output. A page is given the table between its two comments `begin:
tatok_pipe.study` and `end: …`: all arms at both budgets, or with `short` in the comment those at equal seconds that
have as many seeds as the first one.
"""

from __future__ import annotations

import argparse
import csv
import io
from pathlib import Path

from tatok_pipe import storage

_BEGIN, _END = "<!-- begin: tatok_pipe.study{} -->", "<!-- end: tatok_pipe.study -->"
_SHORT = " short"
Rows = list[dict[str, str]]


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m tools.study", description=(__doc__ or "").split(": python")[0] + "."
    )
    parser.add_argument("output", help="the output of a study, on any URL")
    parser.add_argument("--write", type=Path, nargs="*", default=[], help="pages; without them it is printed")
    arguments = parser.parse_args()
    if not storage.exists(storage.join(arguments.output, "claims.csv")):
        parser.error(f"{arguments.output}: expected the output of a study that has finished a generator")
    if not arguments.write:
        print(make_table(arguments.output, is_short=False))
    for path in arguments.write:
        try:
            page = replace(path.read_text(encoding="utf-8"), arguments.output)
        except ValueError as error:
            parser.error(f"{path}: {error}")
        path.write_text(page, encoding="utf-8")


def replace(page: str, output: str) -> str:
    """Raises ValueError where a page has no place for it."""
    for told in ("", _SHORT):
        begin = _BEGIN.format(told)
        if begin in page:
            before, _, rest = page.partition(begin)
            _, _, after = rest.partition(_END)
            return f"{before}{begin}\n\n{make_table(output, is_short=bool(told))}\n\n{_END}{after}"
    raise ValueError(f"a page without {_BEGIN.format('')}; put it where the table is to be")


def make_table(output: str, *, is_short: bool) -> str:
    arms, claims, seconds = (_read(output, name) for name in ("arms", "claims", "seconds"))
    first = arms[0]["arm"]
    networks = [name[1:] for name in arms[0] if name.startswith("g") and not name.endswith("interval")]
    distances = [f"{kind}{name}" for kind in "gr" for name in networks]
    head = ["tokens", *(f"times better, {name}" for name in networks), "class right", "images/s drawn"]
    if not is_short:
        head = ["equal", "seeds", "steps", *head, *distances, "nats"]
    lines = [["arm", *head], ["---"] * (1 + len(head))]
    for arm, clock in zip(arms, seconds, strict=True):
        if is_short and (arm["equal"], arm["seeds"]) != ("seconds", arms[0]["seeds"]):
            continue
        better = [_ratio(claims, arm, first, name) for name in networks]
        speed = f"{_number(clock['images/s'])} ({_number(clock[f'times {first}'])} ×)"
        cells = [_number(arm["tokens, real"]), *better, f"{float(arm['class right']):.1%}", speed]
        if not is_short:
            measured = [_number(arm[column]) for column in [*distances, "nats an image"]]
            cells = [arm["equal"], arm["seeds"], arm["steps"], *cells, *measured]
        lines.append([f"`{arm['arm']}`", *cells])
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)


def _read(output: str, name: str) -> Rows:
    text = storage.read_bytes(storage.join(output, f"{name}.csv")).decode()
    return list(csv.DictReader(io.StringIO(text)))


def _ratio(claims: Rows, arm: dict[str, str], first: str, network: str) -> str:
    for claim in claims:
        if (claim["arm"], claim["than"], claim["at equal"], claim["distance"]) == (
            arm["arm"], first, arm["equal"], network,
        ):  # fmt: skip
            low, high = map(_number, claim["interval"].split(" … "))
            return f"{_number(claim['times better'])} ({low} … {high})"
    return "1"


def _number(text: str) -> str:
    return f"{float(text):.3g}" if float(text) < 1000 else f"{float(text):,.0f}"


if __name__ == "__main__":
    main()
