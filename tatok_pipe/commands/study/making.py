"""How parts are made: by the commands that a user would type, called in this process, or by workers of the study."""

from __future__ import annotations

import logging
import time
from collections.abc import Sequence
from typing import Any

from tatok_pipe import storage
from tatok_pipe.ar.checkpoint import load_generator
from tatok_pipe.commands.edit_tokens import run as edit_tokens
from tatok_pipe.commands.edit_tokens.options import EditTokensConfig
from tatok_pipe.commands.study.declaration import Declaration
from tatok_pipe.commands.study.design import COMMAND_KINDS, Part
from tatok_pipe.commands.study.options import StudyConfig
from tatok_pipe.commands.study.results import Result, need_result, part_folder, tokenizer_url, write_result
from tatok_pipe.commands.study.training_rows import training_words
from tatok_pipe.commands.study.worker import StudyJob
from tatok_pipe.commands.tokenize_corpus import run as tokenize_corpus
from tatok_pipe.commands.tokenize_corpus.options import TokenizeCorpusConfig
from tatok_pipe.commands.train_ar import run as train_ar
from tatok_pipe.commands.train_ar.options import TrainArConfig
from tatok_pipe.commands.train_tokenizer import run as train_tokenizer
from tatok_pipe.commands.train_tokenizer.options import TrainTokenizerConfig
from tatok_pipe.config.load import load_config
from tatok_pipe.errors import EXIT_DONE, EXIT_FAILED_SHARDS, EXIT_INTERRUPTED
from tatok_pipe.ray_runtime.actor_plan import prefer_many
from tatok_pipe.ray_runtime.options import ActorsConfig
from tatok_pipe.ray_runtime.shard_run import run_shards
from tatok_pipe.runs.job import JobSummary
from tatok_pipe.runs.progress import RunState, format_duration
from tatok_pipe.runs.stop_signal import StopSignal
from tatok_pipe.storage.urls import canonical_url
from tatok_pipe.tokenizer.checkpoint import load_tokenizer
from tatok_pipe.tokenizer.options import PACKAGED
from tatok_pipe.tokens.loading.training_set import read_training_set

logger = logging.getLogger("tatok_pipe.study")

TIMED_KINDS = ("step_time", "draw")  # made alone, so that nothing else takes their time
_COMMANDS: dict[str, tuple[type, Any]] = {
    "train_tokenizer": (TrainTokenizerConfig, train_tokenizer.run),
    "tokenize_corpus": (TokenizeCorpusConfig, tokenize_corpus.run),
    "edit_tokens": (EditTokensConfig, edit_tokens.run),
    "train_ar": (TrainArConfig, train_ar.run),
}


def next_batch(todo: Sequence[Part], done: set[str]) -> list[Part]:
    """The first part that is to be made, and those after it that may be made beside it."""
    batch = [todo[0]]
    if _is_alone(todo[0]):
        return batch
    for part in todo[1:]:
        if _is_alone(part) or not set(part.inputs.values()) <= done:
            break
        batch.append(part)
    return batch


def _is_alone(part: Part) -> bool:
    return part.kind in (*COMMAND_KINDS, *TIMED_KINDS)


def make_batch(batch: list[Part], declaration: Declaration, url: str, stop: StopSignal) -> int:
    """Exit code of making these parts. Raises UserError for what a command cannot be given."""
    if batch[0].kind in COMMAND_KINDS:
        return _make_by_command(batch[0], declaration.config, url)
    return _make_by_workers(batch, declaration, url, stop)


def _make_by_command(part: Part, config: StudyConfig, url: str) -> int:
    start = time.monotonic()
    code = _COMMAND_OF[part.kind](part, config, url)
    if code == EXIT_DONE:
        folder = part_folder(url, part.id)
        figures = _FIGURES_OF[part.kind](part, url)
        write_result(url, part, Result(figures, {"whole": time.monotonic() - start}))
        storage.remove_folder(storage.join(folder, "checkpoints"))  # nobody goes on from them any more
    return code


def _call(command: str, words: Sequence[str]) -> int:
    config_class, run = _COMMANDS[command]
    argv = list(words)
    config = load_config(config_class, argv, prog=command, description="")
    return run(config, argv=argv, summary=JobSummary(command))


def _train_tokenizer(part: Part, config: StudyConfig, url: str) -> int:
    if "checkpoint" in part.settings:
        return EXIT_DONE
    folder, data = part_folder(url, part.id), config.data
    words = [
        *part.words,
        f"input.shards={data.train}",
        f"validation.shards={data.validation}",
        f"output.url={folder}",
    ]
    return _call("train_tokenizer", [*words, *_cpus(config)])


def _describe_tokenizer(part: Part, url: str) -> dict[str, Any]:
    checkpoint = None
    if "checkpoint" in part.settings:
        checkpoint = part.words[0] if part.words[0] == PACKAGED else canonical_url(part.words[0])
    tokenizer = load_tokenizer(checkpoint or part_folder(url, part.id))
    model = tokenizer.model
    return {
        "checkpoint": checkpoint,
        "fingerprint": tokenizer.fingerprint,
        "num_globals": model.config.num_globals,
        "num_patches": model.config.num_patches,
        "weights": sum(parameter.numel() for parameter in model.parameters()),
    }


def _encode(part: Part, config: StudyConfig, url: str) -> int:
    """All tokens with what losing each costs, of which arms keep theirs."""
    (which,) = part.words
    actors = config.actors
    words = [
        f"input.shards={getattr(config.data, which)}",
        f"output.url={part_folder(url, part.id)}",
        f"tokenizer.checkpoint={tokenizer_url(url, part.inputs['tokenizer'])}",
        "dtf.rule=none",
        f"dtf.score={part.settings['score']}",
        "record.scores=true",
        f"actors.min={actors.min}",
        f"actors.max={_null(actors.max)}",
        f"actors.cpus={_null(actors.cpus)}",
    ]
    return _call("tokenize_corpus", words)


def _filter(part: Part, config: StudyConfig, url: str) -> int:
    words = [
        f"input.url={part_folder(url, part.inputs['scored'])}",
        f"output.url={part_folder(url, part.id)}",
        f"tokenizer.checkpoint={tokenizer_url(url, part.inputs['tokenizer'])}",
    ]
    return _call("edit_tokens", [*words, *part.words])


def _null(value: Any) -> Any:
    return "null" if value is None else value


def _describe_tokens(part: Part, url: str) -> dict[str, Any]:
    dataset = read_training_set(part_folder(url, part.id))
    kept = dataset.statistics
    return {
        "num_images": dataset.num_sequences,
        "mean_tokens": kept.mean_tokens,
        "version": dataset.version.digest,
    }


def _train_generator(part: Part, config: StudyConfig, url: str) -> int:
    tokens_url = part_folder(url, part.inputs["tokens"])
    words = training_words(
        part.words, tokens_url=tokens_url, dataset=read_training_set(tokens_url),
        images_per_step=part.settings["images_per_step"],
    )  # fmt: skip
    steps = num_steps(part, url)
    words += [
        f"tokenizer={tokenizer_url(url, part.inputs['tokenizer'])}",
        f"training.steps={steps}",
        f"output.url={part_folder(url, part.id)}",
        f"workers.cpus={_null(config.cpus)}",
    ]
    return _call("train_ar", words)


def num_steps(part: Part, url: str) -> int:
    """Of a generator: those that were asked for, or as many as take the seconds that they take the first arm, by the
    times of a step that were measured before."""
    steps = part.settings["steps"]
    if "step_time" not in part.inputs:
        return steps
    first, own = (
        need_result(url, part.inputs[name]).seconds["step"] for name in ("first_step_time", "step_time")
    )
    return max(1, round(steps * first / own))


def _describe_generator(part: Part, url: str) -> dict[str, Any]:
    generator = load_generator(part_folder(url, part.id))
    weights = sum(parameter.numel() for parameter in generator.model.parameters())
    return {"steps": generator.training["num_steps"], "weights": weights}


def _cpus(config: StudyConfig) -> list[str]:
    return [] if config.cpus is None else [f"workers.cpus={config.cpus:g}"]


_COMMAND_OF = {
    "tokenizer": _train_tokenizer,
    "scored": _encode,
    "tokens": _filter,
    "test_tokens": _filter,
    "generator": _train_generator,
}
_FIGURES_OF = {
    "tokenizer": _describe_tokenizer,
    "scored": _describe_tokens,
    "tokens": _describe_tokens,
    "test_tokens": _describe_tokens,
    "generator": _describe_generator,
}


def _make_by_workers(batch: list[Part], declaration: Declaration, url: str, stop: StopSignal) -> int:
    config = declaration.config
    job = StudyJob(url, declaration.train, declaration.test, {part.id: part for part in batch})
    actors = ActorsConfig(cpus=config.cpus, max=1 if batch[0].kind in TIMED_KINDS else None)
    if batch[0].kind not in TIMED_KINDS:
        actors = prefer_many(actors, num_shards=len(batch))
    labels, code = {part.id: f"{part.kind} of {part.label}" for part in batch}, EXIT_DONE

    def show(state: RunState) -> None:
        logger.info(
            "%s: %d images looked at or drawn, %s", ", ".join(labels.values()), state.num_images,
            format_duration(state.seconds),
        )  # fmt: skip

    results = run_shards(
        list(labels),
        job,
        actors,
        config.failures,
        stop=stop,
        on_progress=show,
        every_s=config.progress.every_s,
    )
    for result in results:
        if result.error:
            logger.error("failed: %s: %s", labels[result.url], result.error)
            code = EXIT_FAILED_SHARDS
    return EXIT_INTERRUPTED if stop.is_requested else code
