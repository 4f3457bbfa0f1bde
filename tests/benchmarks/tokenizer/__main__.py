"""How good the packaged tokenizer's adaptive tokens are on images it never saw: every score beside every control.

    python -m tests.benchmarks.tokenizer [--shards GLOB | --photographs] [--baseline URL] [--write docs/results.md]

Without --shards it measures on the pictures that the demo corpus leaves out; with --photographs on ten crops of each of
its ten photographs, whose intervals go by photograph: crops of one are alike. --baseline is a tokenizer without
globals, of the same size and training. --write puts the tables between the markers of a Markdown file.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from tatok_pipe.evaluation.textbook import PACKAGED as TEXTBOOK
from tatok_pipe.images.demo import SOURCES, crops_of, held_out_crops
from tatok_pipe.records import ImageSample
from tatok_pipe.runs.job import run_entry
from tatok_pipe.tokenizer.checkpoint import load_tokenizer
from tatok_pipe.tokenizer.options import PACKAGED
from tests.benchmarks.tokenizer.measured import read_samples
from tests.benchmarks.tokenizer.report import Report

BEGIN, END = "<!-- begin: make bench-tokenizer -->", "<!-- end: make bench-tokenizer -->"


def main(argv: list[str]) -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("--tokenizer", default=PACKAGED, help="folder that train_tokenizer wrote")
    parser.add_argument("--baseline", help="the same without globals and filtering")
    parser.add_argument("--shards", help="image shards that neither was trained on")
    parser.add_argument("--photographs", action="store_true", help="crops of the demo's photographs")
    parser.add_argument("--max-images", type=int, help="the first of them alone")
    parser.add_argument("--write", help="Markdown file to put the tables in")
    parser.add_argument(
        "--textbook",
        type=Path,
        default=TEXTBOOK,
        help="folder that tests.benchmarks.textbook wrote for patches of another size",
    )
    parser.add_argument("--beside", action="store_true", help="the first table alone")
    options = parser.parse_args(argv)
    tokenizer = load_tokenizer(options.tokenizer)
    if options.photographs:
        names = [source.name for source in SOURCES if source.kind == "photo"]
        samples, told = crops_of(names, crops_per_source=10), "the demo's photographs"
    elif options.shards:
        samples, told = read_samples(options.shards), f"`{options.shards}`"
    else:
        samples, told = held_out_crops(), "the photographs that the demo corpus leaves out"
    samples = samples[: options.max_images]
    groups = [photograph_of(sample) for sample in samples] if options.photographs else None
    report = Report(tokenizer, samples, groups)
    sections = [report.heading(told), report.beside(options.textbook)]
    sections += (
        []
        if options.beside
        else [
            report.scores(),
            report.thresholds(),
            report.globals(load_tokenizer(options.baseline) if options.baseline else None),
            report.codes(),
            report.content(),
        ]
    )
    text = "\n\n".join(section for section in sections if section)
    print(text)
    if options.write:
        path = Path(options.write)
        before, _, rest = path.read_text().partition(BEGIN)
        _, found, after = rest.partition(END)
        if not found:
            print(f"{path}: expected the markers {BEGIN} and {END}", file=sys.stderr)
            return 2
        path.write_text(f"{before}{BEGIN}\n\n{text}\n\n{END}{after}")
    return 0


def photograph_of(sample: ImageSample) -> str:
    """The two views of a stereo pair are one."""
    return sample.key.partition("_")[0]


if __name__ == "__main__":
    run_entry(main)
