"""The run of the demo: a real S3 server, the jobs in turn as a user types them, and their results copied out."""

from __future__ import annotations

import json
import logging
import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from tatok_pipe import storage
from tatok_pipe.ar.checkpoint import FOLDER
from tatok_pipe.ar.generation.layout import CONTACT_SHEET, GALLERY, PLAN_FILE
from tatok_pipe.commands.demo.options import DemoConfig
from tatok_pipe.commands.demo.server import S3Server, s3_server
from tatok_pipe.errors import UserError
from tatok_pipe.images.demo import SOURCES, write_demo_corpus
from tatok_pipe.runs.job import JobSummary
from tatok_pipe.runs.progress import format_duration
from tatok_pipe.tokens.layout import DATASET_FILE

logger = logging.getLogger("tatok_pipe.demo")

_BUCKET = "tatok"
# configs/ar/tiny.yaml, at a pace for a minute on two cores.
_TINY = (
    "model.width=256", "model.depth=4", "model.heads=4", f"model.num_classes={len(SOURCES)}",
    "packing.row_tokens=1024", "training.batch_tokens=8192", "training.microbatch_rows=8",
    "training.schedule.peak=3e-3", "training.schedule.warmup_steps=5", "validation.share=0.05",
    "logging.every_steps=5",
)  # fmt: skip


def run(config: DemoConfig, *, argv: list[str], summary: JobSummary) -> int:
    """Exit code. Raises UserError for what it cannot be given."""
    target, generator, samples = (
        _replaceable(each.url, mark, name)
        for each, mark, name in (
            (config.output, DATASET_FILE, "output.url"),
            (config.generator, FOLDER.description, "generator.url"),
            (config.samples, PLAN_FILE, "samples.url"),
        )
    )
    start = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="tatok-demo-") as folder:
        corpus = write_demo_corpus(Path(folder, "corpus"))
        logger.info("demo corpus: %d images in %d shards", corpus.num_images, len(corpus.shards))
        with s3_server(Path(folder, "server"), bucket=_BUCKET) as server:
            logger.info("S3 server at %s", server.endpoint_url)
            os.environ.update(server.environment())
            for shard in corpus.shards:
                storage.publish_file(shard, f"s3://{_BUCKET}/corpus/{Path(shard).name}", exclusive=False)
            code = _run_jobs(server, config)
            if code:
                return code
            _copy_out(f"s3://{_BUCKET}/tokens", target)
            _copy_out(f"s3://{_BUCKET}/training/generator", generator)
            _copy_out(f"s3://{_BUCKET}/samples", samples)
    print(f"\ndone in {format_duration(time.monotonic() - start)}")
    curve = json.loads((generator / FOLDER.description).read_text())["training"]["curve"]
    losses = [point["loss"] for point in curve if point["split"] == "train"]
    print(f"token dataset: {target}\nreport:        {target / 'report.html'}\ngenerator:     {generator}")
    print(f"its loss:      {' → '.join(f'{loss:.2f}' for loss in losses)} nats a code")
    print(f"what it draws: {samples / CONTACT_SHEET}, {samples / GALLERY}")
    return 0


def _replaceable(url: str, mark: str, name: str) -> Path:
    """A local folder that is not there, or holds what an earlier demo left."""
    folder = Path(url).absolute()
    if folder.exists() and not (folder / mark).exists():
        raise UserError(f"{folder}: exists and has no {mark}, so no demo left it there; give another {name}")
    return folder


def _run_jobs(server: S3Server, config: DemoConfig) -> int:
    """The commands that a user would type, each as its own process; the exit code of the first that fails."""
    tokens = f"s3://{_BUCKET}/tokens"
    commands = (
        ("tokenize_corpus", f"input.shards=s3://{_BUCKET}/corpus/*.tar", f"output.url={tokens}",
         "actors.min=2", "actors.max=2", "record.mutual_information=true"),
        ("inspect_tokens", f"input.url={tokens}"),
        ("train_ar", f"input.url={tokens}", f"output.url=s3://{_BUCKET}/training", *_TINY,
         f"training.steps={config.generator.steps}"),
        ("generate", f"checkpoint=s3://{_BUCKET}/training", f"output.url=s3://{_BUCKET}/samples",
         f"num_images={config.samples.num_images}", "progress.every_s=5"),
    )  # fmt: skip
    for entry, *arguments in commands:
        print(f"\n$ python -m tatok_pipe.{entry} {' '.join(arguments)}", flush=True)
        code = subprocess.run(
            [sys.executable, "-m", f"tatok_pipe.{entry}", *arguments],
            env={**os.environ, **server.environment()},
            check=False,
        ).returncode
        if code:
            return code
    return 0


def _copy_out(url: str, target: Path) -> None:
    """A folder of the bucket as a local one, which appears whole."""
    filesystem, path = storage.open_filesystem(url)
    with tempfile.TemporaryDirectory(prefix=".tatok-", dir=target.parent) as folder:
        copy = Path(folder, "dataset")
        filesystem.get(path, str(copy), recursive=True)
        if target.exists():
            shutil.rmtree(target)
        copy.rename(target)
