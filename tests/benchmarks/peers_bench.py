"""The whole job beside what a user would otherwise write, as programs of `peers/`: the loop of a published tokenizer's
script, WebDataset with a loader, Ray Data, Daft, litData. The same tokenizer, images and cores.

Counted is, on each side and by its own clock, from when the first image is about to be read to when the last result is
written: not what Python, Ray, loading the model or starting workers takes, and not what comes after. Ours counts more
by that: it reads back and commits every token shard, and keeps labels, entropies and statistics. The script, Daft
and litData get their images as files already. All files are in the page cache.

- `null`: a model that does nothing, 500×375 JPEGs; the peers decode with Pillow, as their users do, and WebDataset once
  more with our decoder. What is compared is everything else.
- `model`: the packaged tokenizer on the demo corpus, all batches full. Here all peers decode as we do, which is faster
  than Pillow, so that all sides have to have the same tokens; where one differs, there is no figure.

A round runs all sides, one after the other, in changing order; ours is paired with each of its round. Daft and litData
are no dependencies of ours: they are measured where DAFT_PYTHON and LITDATA_PYTHON are a Python that has them beside
what `peers/common.py` imports.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from tatok_pipe.images.demo import write_demo_corpus
from tatok_pipe.images.source import open_samples
from tatok_pipe.records import ImageSample, TokenRecord
from tatok_pipe.storage import file_info
from tatok_pipe.tokenizer.checkpoint import load_tokenizer
from tatok_pipe.tokens.dataset import TokenDataset
from tests.benchmarks.measure import Results, from_pairs
from tests.benchmarks.peers import common, script
from tests.benchmarks.peers.common import BATCH, PeakMemory, Row
from tests.benchmarks.pictures import make_pictures, write_shards
from tests.benchmarks.whole_job import NULL_MODEL, ONE_ACTOR_A_CPU


@dataclass(frozen=True)
class Program:
    """One of `peers/`."""

    name: str
    takes_files: bool = False  # images that are files already, instead of shards
    # The environment variable that names a Python with its library. None: ours has it.
    python: str | None = None


@dataclass(frozen=True)
class Peer:
    """A side beside ours."""

    program: Program
    decode: str  # of common.DECODERS

    @property
    def python(self) -> str | None:
        """None where the user names no Python for it."""
        return os.environ.get(self.program.python) if self.program.python else sys.executable


_PROGRAMS = {
    "script": Program("script", takes_files=True),
    "webdataset": Program("webdataset_loader"),
    "ray_data": Program("ray_data"),
    "daft": Program("daft_frame", takes_files=True, python="DAFT_PYTHON"),
    "litdata": Program("litdata_optimize", takes_files=True, python="LITDATA_PYTHON"),
}
# By kind, the sides beside ours.
PEERS = {
    "null": {name: Peer(program, "pillow") for name, program in _PROGRAMS.items()}
    | {"webdataset_our_decoder": Peer(_PROGRAMS["webdataset"], "ours")},
    "model": {name: Peer(program, "ours") for name, program in _PROGRAMS.items()},
}
TARGETS = {
    "null/webdataset": 1.2,
    "null/ray_data": 1.5,
    "null/daft": 1.5,
    "null/litdata": 1.5,
    "model/webdataset": 1.0,
    "model/ray_data": 1.0,
    "model/daft": 1.0,
    "model/litdata": 1.0,
}
ROUNDS = 3
_SHARDS = 8
_COPIES = 30  # of each picture in a shard
_CROPS = 64  # of each picture; with 17 pictures in 2 shards a shard is 34 full batches
_OURS = "ours"
_ROOT = Path(__file__).parents[2]


@dataclass(frozen=True)
class Corpus:
    shards: Path
    files: Path  # the same images as files
    num_images: int


@dataclass(frozen=True)
class Side:
    """One run."""

    images_per_s: float
    peak_bytes: int


def run(results: Results) -> None:
    with tempfile.TemporaryDirectory() as folder:
        measure(results, "null", "without a model", make_large(Path(folder)), Path(folder))
        measure(results, "model", "packaged tokenizer", make_demo(Path(folder)), Path(folder))
    results.note(f"codes that bare Pillow's pixels leave as they are: {share_of_equal_codes():.1%}")
    for name, program in _PROGRAMS.items():
        if program.python and not os.environ.get(program.python):
            results.note(
                f"{name}: not measured; {program.python}=PYTHON is one that has it (docs/performance.md)"
            )


def make_large(folder: Path) -> Corpus:
    pictures = make_pictures()
    shards = write_shards(folder / "large", pictures, num_shards=_SHARDS, copies=_COPIES)
    return _with_files(folder / "large", shards, _SHARDS * _COPIES * len(pictures))


def make_demo(folder: Path) -> Corpus:
    demo = write_demo_corpus(folder / "demo", num_shards=2, crops_per_source=_CROPS)
    return _with_files(folder / "demo", demo.shards, demo.num_images)


def _with_files(folder: Path, shards: list[str], num_images: int) -> Corpus:
    files = folder.with_name(f"{folder.name}-files")
    script.extract(shards, files)
    return Corpus(folder, files, num_images)


def measure(results: Results, kind: str, shown: str, corpus: Corpus, folder: Path) -> None:
    peers = [name for name, peer in PEERS[kind].items() if peer.python]
    names = [_OURS, *peers]
    rounds: list[dict[str, Side]] = []
    for number in range(ROUNDS):
        order = names[number:] + names[:number]
        with tempfile.TemporaryDirectory(dir=folder) as outputs:
            rounds.append({name: run_side(name, kind, corpus, Path(outputs, name)) for name in order})
            if kind == "model":
                for name in peers:
                    check_equal(name, read_tokens(Path(outputs, name)), read_tokens(Path(outputs, _OURS)))
    for name in peers:
        pairs = [(each[_OURS].images_per_s, each[name].images_per_s) for each in rounds]
        key = f"{kind}/{name}"
        results.add(
            from_pairs(
                f"peers/{key}",
                f"whole job, {shown} / {name}",
                pairs,
                unit="images/s",
                target=TARGETS.get(key),
            )
        )
    peaks = {name: max(each[name].peak_bytes for each in rounds) / 1e9 for name in names}
    results.note("peak memory: " + ", ".join(f"{name} {peak:.1f} GB" for name, peak in peaks.items()))


def run_side(name: str, kind: str, corpus: Corpus, output: Path) -> Side:
    if name == _OURS:
        return run_ours(kind, corpus, output)
    peer = PEERS[kind][name]
    source = corpus.files if peer.program.takes_files else corpus.shards
    command = [
        str(peer.python), "-m", f"tests.benchmarks.peers.{peer.program.name}", str(source), str(output),
        "--images", str(corpus.num_images), "--decode", peer.decode, *(["--null"] if kind == "null" else []),
    ]  # fmt: skip
    done = subprocess.run(
        command, capture_output=True, text=True, check=False, cwd=_ROOT, env=_peer_environment()
    )
    if done.returncode:
        raise SystemExit(f"{name}: {done.stderr}")
    found = common.Run(**json.loads(done.stdout.splitlines()[-1]))
    return Side(found.images_per_s, found.peak_rss_bytes)


def _peer_environment() -> dict[str, str]:
    """Ours, in which processes that a peer starts find this checkout, and nobody is told that it ran."""
    return os.environ | {"PYTHONPATH": str(_ROOT), "DO_NOT_TRACK": "1"}


def run_ours(kind: str, corpus: Corpus, output: Path) -> Side:
    options = ONE_ACTOR_A_CPU if kind == "null" else ()
    command = [
        sys.executable, "-m", "tatok_pipe.tokenize_corpus", f"input.shards={corpus.shards}", f"output.url={output}",
        *options,
    ]  # fmt: skip
    with tempfile.TemporaryFile("w+") as log:
        process = subprocess.Popen(
            command,
            stdout=log,
            stderr=log,
            cwd=_ROOT,
            env=os.environ | (NULL_MODEL if kind == "null" else {}),
        )
        with PeakMemory(process.pid) as memory:
            code = process.wait()
        if code:
            log.seek(0)
            raise SystemExit(log.read())
    summary = json.loads((output / "_summary.json").read_text())
    if summary["statistics"]["num_images"] != corpus.num_images:
        raise SystemExit(f"ours: {summary['statistics']['num_images']} rows of {corpus.num_images} images")
    return Side(summary["run"]["images_per_s"], memory.peak_bytes)


def read_tokens(output: Path) -> dict[str, Row | TokenRecord]:
    """By key, what any side wrote."""
    rows: Iterable[Row | TokenRecord]
    if (output / "_summary.json").exists():
        rows = TokenDataset(str(output)).rows()
    elif any(output.glob("*.parquet")):
        rows = common.read_rows(output)
    else:
        rows = script.read_rows(output, num_globals=load_tokenizer().model.config.num_globals)
    return {row.key: row for row in rows}


def check_equal(
    name: str, found: dict[str, Row | TokenRecord], expected: dict[str, Row | TokenRecord]
) -> None:
    """Raises SystemExit where one token of one image is another, or an image is missing."""
    if found.keys() != expected.keys():
        raise SystemExit(f"{name}: {len(found.keys() ^ expected.keys())} images on one side only")
    for key, row in expected.items():
        for field in ("global_codes", "patch_codes", "patch_positions"):
            if not np.array_equal(getattr(found[key], field), getattr(row, field)):
                raise SystemExit(f"{name}: other {field} of {key} than ours")


def share_of_equal_codes(num_images: int = 4 * BATCH) -> float:
    """Of all codes of some images, those that come of Pillow's pixels as they come of ours."""
    model = load_tokenizer().model
    with tempfile.TemporaryDirectory() as folder:
        (shard,) = write_demo_corpus(folder, num_shards=1, crops_per_source=-(-num_images // 17)).shards
        with open_samples(shard, info=file_info(shard)) as samples:
            images = [sample.image for sample in samples if isinstance(sample, ImageSample)][:num_images]
    codes = []
    for decode in (common.decode_as_ours, common.decode_scaled):
        pixels = np.stack([decode(image, model.config.image_size) for image in images])
        codes.append(common.encode_all(model, pixels))
    return float((codes[0] == codes[1]).mean())
