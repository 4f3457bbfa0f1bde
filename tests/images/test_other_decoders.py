"""Generated files of every kind, decoded by us and by others: where two of those agree, we agree with them, and what
is known by construction is what comes out. What is refused has a reason that is true of the file.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import combinations
from pathlib import Path

import numpy as np
import pytest

from tatok_pipe.images.decode import DecodeError, decode_image
from tatok_pipe.images.options import PreprocessConfig

from ..image_files.all import all_cases
from ..image_files.case import SIDE, Case
from ..image_files.outside import DECODERS

ROOT = Path(__file__).parents[2]
# Of 255, the mean over a picture. Decoders round differently, and interpolate subsampled colours or do not.
TOLERANCE = 2.0
MIN_FILES, NUM_QUICK = 2000, 150
_SECONDS_A_FILE = 20


@dataclass
class Outcome:
    """What was counted."""

    num_files: int = 0
    num_decoded: int = 0
    num_known: int = 0  # compared with what is known by construction
    num_compared: int = 0  # with two others that agree
    refused: Counter[str] = field(default_factory=Counter)
    dropped: Counter[str] = field(default_factory=Counter)  # kinds that ended another decoder
    wrong: list[str] = field(default_factory=list)

    def __str__(self) -> str:
        refused = ", ".join(f"{count} {reason}" for reason, count in sorted(self.refused.items()))
        dropped = ", ".join(f"{count} {kind}" for kind, count in sorted(self.dropped.items())) or "none"
        return (
            f"{self.num_files} files: {self.num_decoded} decoded, refused: {refused}; {self.num_known} compared with "
            f"what they were made of, {self.num_compared} with two other decoders that agree; dropped: {dropped}"
        )


def ask(decoder: str, cases: dict[str, Case], folder: Path) -> Counter[str]:
    """Have another decoder do all files. The kinds of those that end its process, or take too long."""
    waiting, dropped = list(cases), Counter()
    environment = {
        **os.environ,
        "PYTHONPATH": str(ROOT),
        "VIPS_CONCURRENCY": "1",
        "OPENCV_LOG_LEVEL": "SILENT",
    }
    while waiting:
        process = subprocess.Popen(
            [sys.executable, "-m", "tests.image_files.outside", decoder, str(folder)],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, cwd=ROOT,
            env=environment,
        )  # fmt: skip
        try:
            output, _ = process.communicate("\n".join(waiting) + "\n", timeout=60 + len(waiting))
        except subprocess.TimeoutExpired:
            process.kill()
            output, _ = process.communicate()
        done = set(output.split())
        rest = [name for name in waiting if name not in done]
        if rest and len(rest) <= len(waiting):
            dropped[f"{decoder}: {cases[rest[0]].format} {cases[rest[0]].kind}"] += 1
            rest = rest[1:]
        waiting = rest
    return dropped


def compare(cases: Sequence[Case], folder: Path) -> Outcome:
    outcome = Outcome()
    by_name = {f"{number:05d}.{case.format}": case for number, case in enumerate(cases)}
    for name, case in by_name.items():
        (folder / name).write_bytes(case.data)
    for decoder in DECODERS:
        outcome.dropped += ask(decoder, by_name, folder)
    config = PreprocessConfig(image_size=SIDE)  # no scaling
    for name, case in by_name.items():
        outcome.num_files += 1
        try:
            pixels, _, _ = decode_image(case.data, config)
        except DecodeError as error:
            outcome.refused[error.error] += 1
            check_reason(case, error, outcome)
            continue
        outcome.num_decoded += 1
        if case.truth is not None:
            outcome.num_known += 1
            judge(case, pixels, case.truth, "what it was made of", outcome)
        left, top, right, bottom = case.covered
        pixels = pixels[top:bottom, left:right]
        others = {who: shown[top:bottom, left:right] for who, shown in opinions(folder, name).items()}
        agreed = [
            pair for pair in combinations(others, 2) if distance(*(others[who] for who in pair)) <= TOLERANCE
        ]
        if agreed:
            outcome.num_compared += 1
            first, second = min(agreed, key=lambda pair: distance(pixels, others[pair[0]]))
            judge(case, pixels, (others[first] + others[second]) / 2, f"{first} and {second}", outcome)
    return outcome


def opinions(folder: Path, name: str) -> dict[str, np.ndarray]:
    found = {}
    for decoder in DECODERS:
        path = (folder / name).with_suffix(f".{decoder}.npy")
        if path.exists() and (pixels := np.load(path)).shape == (SIDE, SIDE, 3):
            found[decoder] = pixels
    return found


def distance(a: np.ndarray, b: np.ndarray) -> float:
    return float(np.abs(a.astype(np.float64) - b).mean())


def judge(case: Case, pixels: np.ndarray, expected: np.ndarray, who: str, outcome: Outcome) -> None:
    if (found := distance(pixels, expected)) > TOLERANCE:
        outcome.wrong.append(f"{case}: {found:.1f} from {who}")


def check_reason(case: Case, error: DecodeError, outcome: Outcome) -> None:
    if not error.error.startswith(case.refused):
        outcome.wrong.append(f"{case}: refused as {error.error}: {error}")


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_all_files_against_other_decoders(tmp_path, capsys):
    outcome = compare(all_cases(), tmp_path)
    with capsys.disabled():
        print(f"\n{outcome}")
    assert not outcome.wrong, summary(outcome)
    assert outcome.num_files >= MIN_FILES and outcome.num_compared > outcome.num_decoded / 2


def test_a_sample_of_files_against_other_decoders(tmp_path):
    cases = all_cases()
    outcome = compare([cases[place * len(cases) // NUM_QUICK] for place in range(NUM_QUICK)], tmp_path)
    assert not outcome.wrong, summary(outcome)
    assert outcome.num_files == NUM_QUICK and outcome.num_compared > NUM_QUICK / 3


def summary(outcome: Outcome) -> str:
    kinds = defaultdict(list)
    for line in outcome.wrong:
        kinds[line.partition(" [")[0]].append(line)
    return "\n".join([str(outcome), *(f"{len(lines)} x {kind}: {lines[0]}" for kind, lines in kinds.items())])
