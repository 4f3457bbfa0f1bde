"""The page of results that are written by hand: partial ones, all of them, and with other times."""

from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
import pytest

from tatok_pipe import storage
from tatok_pipe.ar.generation.exports import encode_image
from tatok_pipe.commands.study.declaration import Declaration, declare
from tatok_pipe.commands.study.design import Design, Part, design_study
from tatok_pipe.commands.study.page import PAGE, SECONDS_BEGIN, SECONDS_END, write_page
from tatok_pipe.commands.study.results import Result, part_folder, write_result
from tests.study.studies import ROOT, load_study, write_images
from tools.study import make_table, replace

# By arm: distances of drawn images, the last one at equal seconds, and how many are drawn in a second.
ARMS = {"fixed": (40.0, 40.0, 100.0), "globals": (30.0, 28.0, 90.0), "half": (20.0, 16.0, 200.0)}


@pytest.fixture
def declaration(tmp_path: Path) -> Declaration:
    images = write_images(tmp_path, num_train=3, num_test=3)
    fixed = "'fixed tokenizer=[model.num_globals=0] dtf.rule=none'"
    arms = f"arms=[{fixed}, 'globals dtf.rule=none', 'half dtf.target_tokens=36']"
    tokenizer = f"tokenizer.config={ROOT}/configs/tokenizer/quick32.yaml"
    account = "account=[fixed, globals, half]"
    return declare(
        load_study([*images, arms, account, tokenizer, f"output.url={tmp_path}/out", "measures.num_drawn=16"])
    )


def about(value: float) -> dict[str, float]:
    return {"value": value, "low": 0.9 * value, "high": 1.1 * value}


def result_of(part: Part, *, slowness: float) -> Result:
    arm = part.label.partition(",")[0]
    at_steps, at_seconds, speed = ARMS.get(arm, (0.0, 0.0, 0.0))
    distance = at_seconds if part.label.endswith("seconds") else at_steps
    likeness = {
        "num_images": 16, "distance_pretrained": about(distance), "distance_classifier": about(distance / 10),
        "precision": 0.5, "recall": 0.25, "accuracy": 0.75, "lengths": [30, 34], "real_lengths": [30, 32],
    }  # fmt: skip
    figures = {
        "real": {
            "num_images": 3,
            "accuracy": 0.8,
            "distance_of_halves": {"pretrained": 2.0, "classifier": 0.2},
        },
        "likeness": likeness,
        "reconstruction": likeness | {"distance_pretrained": about(5.0), "distance_classifier": about(0.5)},
        "nats": {"nats": about(150.0), "num_images": 3, "position_nats": 20.0},
        "generator": {"steps": 600, "weights": 1_000_000},
        "draw": {"num_images": 16},
    }
    seconds = {"step": 0.5 * slowness, "sampling": slowness * 16 / max(speed, 1.0), "decoding": slowness}
    return Result(figures.get(part.kind, {}), seconds)


def write_results(design: Design, url: str, *, number: int | None = None, slowness: float = 1.0) -> None:
    """Of the first `number` parts, all without it."""
    picture = encode_image(np.full((32, 32, 3), 90, np.uint8), "png")
    for part in list(design.parts.values())[:number]:
        write_result(url, part, result_of(part, slowness=slowness))
        if part.kind == "likeness":
            for image in range(16):
                place = storage.join(part_folder(url, part.id), "pictures", f"{image:06d}.png")
                storage.publish_bytes(picture, place, exclusive=False)


def read_page(declaration: Declaration, design: Design, folder: Path) -> str:
    write_page(declaration, design, str(folder), command="python -m tatok_pipe.study …")
    return (folder / PAGE).read_text()


def test_ratios_and_the_account_of_them(declaration: Declaration, tmp_path: Path) -> None:
    design = design_study(declaration)
    write_results(design, str(tmp_path / "all"))
    page = read_page(declaration, design, tmp_path / "all")
    assert "6 of 6 generators of 3 arms" in page
    results = json.loads((tmp_path / "all" / "results.json").read_text())
    account = [
        row
        for row in results["tables"]["account"]["rows"]
        if row[4] == "FD-efficientnet" and row[3] == "seconds"
    ]
    assert [row[5] for row in account] == pytest.approx([40 / 28, 28 / 16, 40 / 16], rel=1e-6)
    assert account[0][5] * account[1][5] == pytest.approx(account[2][5], rel=1e-6)
    claims = [
        row for row in results["tables"]["claims"]["rows"] if row[0] == "half" and row[3] == "FD-classifier"
    ]
    assert [(row[1], row[2], row[6]) for row in claims] == [
        ("fixed", "steps", "better"), ("fixed", "seconds", "better"), ("globals", "steps", "better"),
        ("globals", "seconds", "better"),
    ]  # fmt: skip
    assert [row[4] for row in claims] == pytest.approx([2.0, 2.5, 1.5, 28 / 16], rel=1e-6)


def test_a_table_of_it_goes_into_a_page_between_its_comments(
    declaration: Declaration, tmp_path: Path
) -> None:
    design, url = design_study(declaration), str(tmp_path / "all")
    write_results(design, url)
    read_page(declaration, design, tmp_path / "all")
    assert (tmp_path / "all/plots/pretrained_distance.svg").read_bytes().startswith(b"<?xml")
    page = "# A page\n<!-- begin: tatok_pipe.study short -->\nold\n<!-- end: tatok_pipe.study -->\nthe rest\n"
    written = replace(page, url)
    assert (
        written.startswith("# A page\n<!--") and written.endswith("-->\nthe rest\n") and "old" not in written
    )
    (row,) = [line for line in written.splitlines() if line.startswith("| `half`")]
    assert row.split(" | ")[1:] == [
        "31", "2.5 (2.17 … 2.88)", "2.5 (2.17 … 2.88)", "75.0%", "200 (2 ×) |",
    ]  # fmt: skip
    assert replace(written, url) == written
    whole = make_table(url, is_short=False)
    assert whole.count("\n") == 1 + 2 * len(ARMS)
    assert "| `half` | steps | 1 | 600 | 31 | 2 (" in whole and "| 20 | 2 | 5 | 0.5 | 150 |" in whole
    with pytest.raises(ValueError, match="a page without"):
        replace("# Another\n", url)


def test_what_is_there_is_shown_after_every_generator(declaration: Declaration, tmp_path: Path) -> None:
    design = design_study(declaration)
    assert "0 of 6 generators" in read_page(declaration, design, tmp_path / "part")
    kinds = [part.kind for part in design.parts.values()]
    first = kinds.index("nats") + 1
    write_results(design, str(tmp_path / "part"), number=first)
    page = read_page(declaration, design, tmp_path / "part")
    assert "2 of 6 generators" in page and "fixed" in page  # the first arm's steps are its seconds
    assert not json.loads((tmp_path / "part" / "results.json").read_text())["tables"]["claims"]["rows"]


def test_another_clock_changes_the_table_of_seconds_alone(declaration: Declaration, tmp_path: Path) -> None:
    design = design_study(declaration)
    pages = []
    for name, slowness in (("one", 1.0), ("other", 3.0)):
        write_results(design, str(tmp_path / name), slowness=slowness)
        pages.append(read_page(declaration, design, tmp_path / name))
    assert pages[0] != pages[1]
    outside = [re.sub(f"{SECONDS_BEGIN}.*?{SECONDS_END}", "", page, flags=re.DOTALL) for page in pages]
    assert outside[0] == outside[1]
    assert len(outside[0]) < len(pages[0])
    results = [(tmp_path / name / "results.json").read_bytes() for name in ("one", "other")]
    assert results[0] == results[1]
    assert read_page(declaration, design, tmp_path / "other") == pages[1]
