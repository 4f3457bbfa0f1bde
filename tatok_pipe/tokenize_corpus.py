"""Turn image shards into a token dataset.

    python -m tatok_pipe.tokenize_corpus [CONFIG.yaml] input.shards=s3://bucket/train output.url=s3://bucket/tokens

Without arguments it tokenizes the demo corpus with the packaged tokenizer into ./tatok_out. Shards that the output
has already are not read again, so the same command after a crash or Ctrl-C completes it.
"""

from __future__ import annotations

import logging
import signal
import time
from dataclasses import dataclass
from typing import Any, NoReturn

from tatok_pipe import __version__, storage
from tatok_pipe.config import load_config, run_entry, to_dict
from tatok_pipe.errors import EXIT_DONE, EXIT_FAILED_SHARDS, EXIT_INTERRUPTED, UserError
from tatok_pipe.images.decode import PreprocessConfig, decoder_version
from tatok_pipe.images.demo import write_demo_corpus
from tatok_pipe.images.shards import ShardLimits
from tatok_pipe.options import check_choices, option, section
from tatok_pipe.ray_runtime import ActorsConfig, has_gpu, plan_actors, start_ray, tokenize_shards
from tatok_pipe.shard_tokenizer import Progress, ShardJob, token_spec
from tatok_pipe.tokenizer.checkpoint import PACKAGED, Tokenizer, load_tokenizer
from tatok_pipe.tokenizer.dtf import DTFConfig
from tatok_pipe.tokens import dataset
from tatok_pipe.tokens.format import token_shard_name
from tatok_pipe.tokens.spec import TokenSpec

logger = logging.getLogger("tatok_pipe.tokenize_corpus")

DEMO = "demo"
DEMO_FOLDER = "tatok_demo"


@dataclass(frozen=True)
class InputConfig:
    shards: str = option(
        DEMO,
        help="image shards (WebDataset .tar) on any URL: glob, {000..999} braces, @list.txt or a folder; "
        f"{DEMO!r} makes a small corpus in ./{DEMO_FOLDER}",
    )
    limits: ShardLimits = section(ShardLimits, help="what is accepted of a shard")
    max_pixels: int = option(
        PreprocessConfig().max_pixels,
        help="images that declare more are quarantined undecoded",
        unit="pixels, width × height",
    )


@dataclass(frozen=True)
class OutputConfig:
    url: str = option("tatok_out", help="folder of the token dataset, on any URL")


@dataclass(frozen=True)
class CheckpointConfig:
    checkpoint: str = option(PACKAGED, help=f"folder that train_tokenizer wrote, on any URL, or {PACKAGED!r}")


@dataclass(frozen=True)
class EncodeConfig:
    precision: str = option(
        "auto",
        choices=("auto", "fp32", "bf16"),
        help="arithmetic of the model; auto: as the dataset was begun, a new one bf16 on GPUs and fp32 on CPUs",
    )
    batch_size: int | None = option(
        None, help="images encoded at once; null: as the dataset was begun, a new one 128 on GPUs, 16 on CPUs",
        unit="images per GPU or CPU thread",
    )  # fmt: skip

    def __post_init__(self) -> None:
        check_choices(self)
        if self.batch_size is not None and self.batch_size < 1:
            raise ValueError(f"batch_size={self.batch_size}: expected at least 1")


@dataclass(frozen=True)
class RecordConfig:
    mutual_information: bool = option(
        False, help="estimate I(G; P) of every image, nats; one more pass of the entropy model"
    )
    patch_entropy: bool = option(False, help="store the entropies of all patches, nats as float16")


@dataclass(frozen=True)
class ProgressConfig:
    every_s: float = option(10.0, help="a line of progress this often", unit="seconds")

    def __post_init__(self) -> None:
        if self.every_s <= 0:
            raise ValueError(f"every_s={self.every_s}: expected more than 0")


@dataclass(frozen=True)
class TokenizeCorpusConfig:
    input: InputConfig = section(InputConfig, help="what to tokenize")
    output: OutputConfig = section(OutputConfig, help="where the tokens go")
    tokenizer: CheckpointConfig = section(CheckpointConfig, help="what to tokenize with")
    dtf: DTFConfig = section(DTFConfig, help="Dynamic Token Filtering: which patch tokens are kept")
    actors: ActorsConfig = section(ActorsConfig, help="Ray actors; each does whole shards")
    encode: EncodeConfig = section(EncodeConfig, help="how the model runs")
    record: RecordConfig = section(RecordConfig, help="optional columns")
    progress: ProgressConfig = section(ProgressConfig, help="what is printed meanwhile")


def main(argv: list[str]) -> int:
    config = load_config(
        TokenizeCorpusConfig,
        argv,
        prog="tatok_pipe.tokenize_corpus",
        description=(__doc__ or "").split("\n\n")[0],
    )
    signal.signal(signal.SIGTERM, _interrupt)
    tokenizer = load_tokenizer(config.tokenizer.checkpoint)
    shards = _expand_input(config.input.shards)
    names = {token_shard_name(url): url for url in shards}
    spec = make_spec(config, tokenizer)
    dataset.create_or_check(config.output.url, spec, _describe(config, tokenizer))
    todo = dataset.plan(list(names.values()), dataset.committed_shards(config.output.url))
    logger.info(
        "%d image shards, %d done before, %d to do; %s, fingerprint %s; %s",
        len(names), len(names) - len(todo), len(todo),
        storage.redact(config.tokenizer.checkpoint), tokenizer.fingerprint[:12], _show_filter(spec.dtf),
    )  # fmt: skip
    failed: dict[str, str] = {}
    start = time.monotonic()
    if todo:
        try:
            failed = _tokenize(config, spec, tokenizer, todo)
        except KeyboardInterrupt:
            done = len(names) - len(dataset.plan(todo, dataset.committed_shards(config.output.url)))
            logger.warning(
                "interrupted: %d of %d shards are done; the same command does the rest", done, len(names)
            )
            return EXIT_INTERRUPTED
    return _finish(config, names, failed, did_work=bool(todo), seconds=time.monotonic() - start)


def make_spec(config: TokenizeCorpusConfig, tokenizer: Tokenizer) -> TokenSpec:
    """What the rows of this run will be. Raises UserError where the settings do not fit the checkpoint."""
    model = tokenizer.model.config
    if not model.num_globals:
        raise UserError(
            f"tokenizer.checkpoint={storage.redact(config.tokenizer.checkpoint)}: has no global tokens; "
            "token datasets hold at least one an image"
        )
    filter = tokenizer.filter(config.dtf)
    precision, batch_size = config.encode.precision, config.encode.batch_size
    if precision == "auto" or batch_size is None:
        begun: dict[str, Any] = {}
        if storage.exists(storage.join(config.output.url, dataset.DATASET_FILE)):
            begun = dataset.TokenDataset(config.output.url).spec.encoding
        else:
            start_ray()
            begun = (
                {"precision": "bf16", "batch_size": 128}
                if has_gpu()
                else {"precision": "fp32", "batch_size": 16}
            )
        precision = begun["precision"] if precision == "auto" else precision
        batch_size = begun["batch_size"] if batch_size is None else batch_size
    return token_spec(
        tokenizer,
        filter,
        encoding={
            "precision": precision,
            "batch_size": batch_size,
            "decoder": decoder_version(),
            "max_pixels": config.input.max_pixels,
            "limits": to_dict(config.input.limits),
            **to_dict(config.record),
        },
    )


def _tokenize(
    config: TokenizeCorpusConfig, spec: TokenSpec, tokenizer: Tokenizer, todo: list[str]
) -> dict[str, str]:
    """Tokenize the shards; errors by shard URL."""
    start_ray()
    plan = plan_actors(config.actors, num_shards=len(todo))
    logger.info("%d to %d actors, each with %g CPUs and %g GPUs", plan.min, plan.max, plan.cpus, plan.gpus)
    checkpoint = config.tokenizer.checkpoint
    job = ShardJob(
        checkpoint=checkpoint if checkpoint == PACKAGED else storage.canonical_url(checkpoint),
        output_url=storage.canonical_url(config.output.url),
        spec=spec,
        filter=tokenizer.filter(config.dtf),
        preprocess=PreprocessConfig(image_size=spec.image_size, max_pixels=config.input.max_pixels),
        limits=config.input.limits,
        precision=spec.encoding["precision"],
        batch_size=spec.encoding["batch_size"],
        mutual_information=config.record.mutual_information,
        patch_entropy=config.record.patch_entropy,
    )
    started: list[
        float
    ] = []  # when the first images came: what the actors took to start says nothing of the rest

    def show(progress: Progress, num_done: int) -> None:
        if not progress.num_images + progress.num_quarantined + num_done:
            logger.info("starting actors")
            return
        if not started:
            started.append(time.monotonic() - config.progress.every_s)
        logger.info("%s", progress_line(progress, num_done, len(todo), seconds=time.monotonic() - started[0]))

    failed = {}
    for result in tokenize_shards(todo, job, plan, on_progress=show, every_s=config.progress.every_s):
        if result.error:
            failed[result.url] = result.error
            logger.error("failed: %s: %s", storage.redact(result.url), result.error)
    return failed


def progress_line(progress: Progress, num_done: int, num_shards: int, *, seconds: float) -> str:
    """One line: shards, images/s, tokens an image, quarantined, time left."""
    behind = num_done + progress.share
    left = seconds * (num_shards - behind) / behind if behind else float("inf")
    per_image = progress.num_tokens / progress.num_images if progress.num_images else 0.0
    return (
        f"{num_done}/{num_shards} shards, {progress.num_images} images, {progress.num_images / seconds:.1f} images/s, "
        f"{per_image:.1f} tokens/image, {progress.num_quarantined} quarantined, {format_duration(left)} left"
    )


def format_duration(seconds: float) -> str:
    """3725 s as `1 h 02 min`; unknown (infinite) as `?`."""
    if seconds == float("inf"):
        return "?"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f"{hours} h {minutes:02d} min"
    return f"{minutes} min {rest:02d} s" if minutes else f"{rest} s"


def _finish(
    config: TokenizeCorpusConfig,
    names: dict[str, str],
    failed: dict[str, str],
    *,
    did_work: bool,
    seconds: float,
) -> int:
    url = config.output.url
    summary = dataset.TokenDataset(url).summary
    if did_work or summary is None:
        run = {"seconds": round(seconds, 1), "shards_done": len(names) - len(failed)}
        shown = {storage.redact(shard): error for shard, error in failed.items()}
        summary = dataset.write_summary(url, planned=list(names), failed=shown, run=run)
    figures, counts = summary["figures"], summary["statistics"]
    lines = [
        f"{storage.redact(url)}: {len(names) - len(failed)} of {len(names)} shards, {counts['num_images']} images, "
        f"{counts['num_quarantined']} quarantined" + (f", in {format_duration(seconds)}" if did_work else ""),
    ]
    if counts["num_images"]:
        lines.append(
            f"tokens/image {figures['mean_tokens']:.1f} ± {figures['std_tokens']:.1f}, entropy "
            f"{figures['mean_entropy_nats']:.1f} nats/image, dropped {figures['mean_entropy_dropped_nats']:.1f}"
        )
    lines += [f"quarantined {count}: {reason}" for reason, count in counts["quarantine_reasons"].items()]
    lines += [f"failed {storage.redact(shard)}: {error}" for shard, error in sorted(failed.items())]
    if failed:
        lines.append(f"{len(failed)} shards failed; the same command tries them again")
    for line in lines:
        logger.info("%s", line)
    return EXIT_FAILED_SHARDS if failed else EXIT_DONE


def _expand_input(spec: str) -> list[str]:
    if spec == DEMO:
        return write_demo_corpus(DEMO_FOLDER).shards
    if not spec:
        raise UserError(f"input.shards: empty; expected a URL, glob, @list or folder, or {DEMO!r}")
    return [storage.canonical_url(url) for url in storage.expand_shards(spec)]


def _describe(config: TokenizeCorpusConfig, tokenizer: Tokenizer) -> dict[str, Any]:
    """What a reader of the dataset wants to know of its making; not compared on resume."""
    return {
        "tatok_pipe": __version__,
        "tokenizer": {
            "checkpoint": storage.redact(config.tokenizer.checkpoint),
            "model": to_dict(tokenizer.model.config),
        },
        "source": storage.redact(config.input.shards),
    }


def _show_filter(dtf: dict[str, Any]) -> str:
    return f"dtf {dtf['rule']} on {dtf['score']}, value {dtf['value']:.4g}"


def _interrupt(signum: int, frame: object) -> NoReturn:
    """SIGTERM, as a batch scheduler sends it, ends a run the way Ctrl-C does."""
    raise KeyboardInterrupt


if __name__ == "__main__":
    # By its importable name, so that what Ray's workers get is imported there and not pickled by value.
    from tatok_pipe import tokenize_corpus

    run_entry(tokenize_corpus.main)
