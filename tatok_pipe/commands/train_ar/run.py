"""The run of train_ar: what is known before Ray starts, then the training, then the finished generator."""

from __future__ import annotations

import logging
import math
from dataclasses import replace
from typing import Any

import torch

from tatok_pipe import storage
from tatok_pipe.ar.batch import Vocabulary
from tatok_pipe.ar.batch_fit import BatchShape, estimate_fill, fit_batch
from tatok_pipe.ar.memory import MemoryEstimate, estimate_memory
from tatok_pipe.ar.model import Generator
from tatok_pipe.ar.parallel import is_sharded
from tatok_pipe.commands.train_ar.dataset_version import WHERE, check_mix, choose_datasets
from tatok_pipe.commands.train_ar.options import AUTO, NONE, TrainArConfig
from tatok_pipe.commands.train_ar.start import read_start
from tatok_pipe.commands.train_ar.worker import GeneratorRun, GeneratorTraining
from tatok_pipe.config.load import to_dict
from tatok_pipe.config.number_lists import format_numbers
from tatok_pipe.errors import EXIT_DONE, RefusedError, UserError
from tatok_pipe.ray_runtime.cluster import check_ray_can_start, has_gpu, start_ray
from tatok_pipe.ray_runtime.training import plan_workers, run_training
from tatok_pipe.runs.job import JobSummary
from tatok_pipe.runs.lease import hold_output
from tatok_pipe.runs.stop_signal import StopSignal
from tatok_pipe.tokenizer.options import PACKAGED
from tatok_pipe.tokens.loading.mixing import Mixing
from tatok_pipe.tokens.loading.sources import TrainingData, join_sets
from tatok_pipe.tokens.loading.splits import Split, join_splits, survey_split
from tatok_pipe.tokens.loading.training_set import TrainingSet, count_chosen
from tatok_pipe.tokens.row_condition import read_condition
from tatok_pipe.tokens.spec import TokenSpec
from tatok_pipe.tokens.summary import tell_unfinished
from tatok_pipe.training.checkpoint_folder import newest_manifest
from tatok_pipe.training.settings import check_changes, flatten
from tatok_pipe.training.weights_and_biases import check_wandb

logger = logging.getLogger("tatok_pipe.train_ar")

# What best-fit packing leaves empty at most on lengths as they are; for estimates only.
_FILL = 0.998
_NUM_CLASSES = 1000  # ImageNet's
_LOW_FILL = 0.5  # below it the rows are told not to fit the dataset
# Of the section `training`: how it is computed. (`epochs` is in the number of steps.)
_NO_MATTER = tuple(
    f"training.{name}" for name in ("epochs", "microbatch_rows", "shard", "compile", "checkpoint_activations")
)


def run(config: TrainArConfig, *, argv: list[str], summary: JobSummary) -> int:
    """Exit code. `argv` is what the command was given; `summary` gets the run's figures.

    Raises UserError for what it cannot be given.
    """
    storage.configure(config.storage)
    check_wandb(config.logging.wandb_project)
    check_ray_can_start()
    output_url = storage.canonical_url(config.output.url)
    earlier = newest_manifest(storage.join(output_url, "checkpoints"))
    sets = [
        count_chosen(each, where_option=WHERE)
        for each in choose_datasets(config.input, earlier, output_url=output_url)
    ]
    for each in sets:
        if missing := tell_unfinished(each.url, {shard.name for shard in each.shards}):
            logger.warning("%s: %s; training on what is there", storage.redact(each.url), missing)
    dataset = _join(config, sets)
    check_mix(config.input, dataset, earlier, output_url=output_url)
    config = _settle_classes(config, dataset.spec)
    if dataset.longest_elements > config.packing.row_tokens:
        raise UserError(
            f"packing.row_tokens={config.packing.row_tokens}: the longest sequence of "
            f"{dataset.shown} has {dataset.longest_elements} elements; give at least as many"
        )
    num_steps = config.training.steps or max(
        1, math.ceil(config.training.epochs * steps_per_epoch(config, dataset))
    )
    settings = list_settings(to_dict(config), num_steps=num_steps) | list_data(dataset)
    start = read_start(config.tokenizer, dataset.spec)
    if earlier is not None:
        _check_earlier(
            output_url, earlier, config, dataset.spec, settings, num_steps=num_steps,
            from_codewords=start is not None,
        )  # fmt: skip
    split = _survey(config, dataset)
    _show_fill(config, dataset, num_workers=plan_workers(config.workers)[1])
    run = GeneratorRun(
        entry="train_ar",
        command=" ".join(["python -m tatok_pipe.train_ar", *map(storage.redact_argument, argv)]),
        config=_with_canonical_urls(to_dict(config)),
        settings=settings, output_url=output_url, num_steps=num_steps, log_every_steps=config.logging.every_steps,
        validate_every_steps=config.validation.every_steps if split.has_held_out else None,
        save_every_steps=config.checkpoints.every_steps, num_checkpoints=config.checkpoints.keep,
        saves_async=config.checkpoints.upload == "async", peak_option="training.schedule.peak",
        wandb_project=config.logging.wandb_project,
        tokens=dataset.spec.to_json(), dataset=dataset.to_json(),
        sources=dataset.sources([storage.canonical_url(url) for url in config.input.all_condition_urls]),
        mixing=dataset.mixing,
        unigram_nats=dataset.unigram_nats,
        elements_per_sequence=dataset.num_elements / dataset.num_sequences,
        untrained_classes=_untrained(config, split),
        codewords=start,
    )  # fmt: skip
    if config.dry_run:
        _start(config, dataset, num_steps=num_steps)
        return EXIT_DONE
    stop = StopSignal()
    with hold_output(output_url, stop):
        num_workers = _start(config, dataset, num_steps=num_steps)
        summary.add({"output": storage.redact(config.output.url), "steps": num_steps})
        with stop:
            return run_training(
                GeneratorTraining, run, num_workers=num_workers, cpus=config.workers.cpus,
                max_failures=config.workers.max_failures, stop=stop, summary=summary,
            )  # fmt: skip


def list_settings(config: dict[str, Any], *, num_steps: int) -> dict[str, Any]:
    """Of a TrainArConfig what makes the weights; how long they are trained as a number of steps."""
    parts = {name: config[name] for name in ("training", "packing", "drop_condition", "seed")}
    parts["validation"] = {"share": config["validation"]["share"]}
    if config["input"]["where"] is not None:
        parts["input"] = {"where": config["input"]["where"]}
    return flatten(parts, without=_NO_MATTER) | {"training.steps": num_steps}


def list_data(dataset: TrainingData) -> dict[str, Any]:
    """What it is trained on, as `list_settings` says what else makes the weights."""
    mixing = dataset.mixing
    if mixing is None:
        return {"dataset": dataset.digests()}
    changes = [[step, list(weights)] for step, weights in mixing.changes]
    return {"dataset": dataset.digests(), "weights": list(mixing.weights), "weight_changes": changes}


def _with_canonical_urls(config: dict[str, Any]) -> dict[str, Any]:
    """As it is written down: not by the folder that the command was started in."""
    given, tokenizer = config["input"], config["tokenizer"]
    if tokenizer not in (AUTO, NONE, PACKAGED):
        config = config | {"tokenizer": storage.canonical_url(tokenizer)}
    if given["urls"]:
        return config | {"input": given | {"urls": list(map(storage.canonical_url, given["urls"]))}}
    return config | {"input": given | {"url": storage.canonical_url(given["url"])}}


def _join(config: TrainArConfig, sets: list[TrainingSet]) -> TrainingData:
    model = config.model
    return join_sets(
        sets, weights=config.input.weights, weight_changes=config.input.changes,
        num_classes=model.num_classes if model.condition == "class" else None,
    )  # fmt: skip


def _settle_classes(config: TrainArConfig, spec: TokenSpec) -> TrainArConfig:
    """With the number of classes, where it was left to the dataset."""
    if config.model.condition != "class" or config.model.num_classes:
        return config
    num_classes = len(spec.class_names) or _NUM_CLASSES
    return replace(config, model=replace(config.model, num_classes=num_classes))


def _start(config: TrainArConfig, dataset: TrainingData, *, num_steps: int) -> tuple[int, int]:
    """Start Ray and say what the training will be; (fewest, most) workers."""
    start_ray(for_training=True)
    num_workers = plan_workers(config.workers)
    _show(config, dataset, num_steps=num_steps, num_workers=num_workers[1])
    return num_workers


def steps_per_epoch(config: TrainArConfig, dataset: TrainingData) -> float:
    """Estimated from the sum of all lengths; what is held out is not trained on."""
    elements = dataset.num_elements * (1 - config.validation.share)
    return max(1.0, elements / _FILL / (config.rows_per_step * config.packing.row_tokens))


def _survey(config: TrainArConfig, dataset: TrainingData) -> Split:
    """What the training will see. Raises UserError where that is nothing; what it will not see is told."""
    share = config.validation.share
    num_classes = config.model.num_classes if config.model.condition == "class" else 0
    splits = []
    for each, source in zip(dataset.sets, dataset.sources(), strict=True):
        chosen = read_condition(source.url, dataset.spec, source.where)
        found = survey_split(source, held_out_share=share, num_classes=num_classes, chosen=chosen)
        if not found.has_train:
            raise UserError(
                f"validation.share={share:g}: holds out all of the {each.num_sequences} images of "
                f"{storage.redact(each.url)}; give a smaller one, 0 to train on all"
            )
        splits.append(found)
    split = join_splits(splits)
    if share and not split.has_held_out:
        logger.warning(
            "validation.share=%g: by the hash of its key none of the %d images is held out, so there will be no "
            "held-out losses; give a larger share for some", share, dataset.num_sequences,
        )  # fmt: skip
    if untrained := _untrained(config, split):
        logger.warning(
            "model.num_classes=%d: %d have no image to be trained on (%s), and none can be drawn of them",
            num_classes, len(untrained), format_numbers(untrained),
        )  # fmt: skip
    return split


def _untrained(config: TrainArConfig, split: Split) -> list[int]:
    """Classes that no image to be trained on has."""
    if config.model.condition != "class":
        return []
    return sorted(set(range(config.model.num_classes)) - split.classes)


def _check_earlier(
    output_url: str,
    earlier: dict[str, Any],
    config: TrainArConfig,
    spec: TokenSpec,
    settings: dict[str, Any],
    *,
    num_steps: int,
    from_codewords: bool,
) -> None:
    """Raise where the training at the output, of which `earlier` is a manifest, is one of another model, on tokens of
    another tokenizer, or done with other settings."""
    output, extra = storage.redact(output_url), earlier["extra"]
    found = TokenSpec.from_json(extra["tokens"])
    if differences := found.differences(spec):
        raise RefusedError(
            f"{output}: holds a training on tokens of tokenizer {found.tokenizer_fingerprint}, "
            f"what is given has {spec.tokenizer_fingerprint}; give another output.url (its "
            f"{'; its '.join(differences)})"
        )
    starts = {True: "from codewords", False: "at random"}
    if (has := extra["from_codewords"]) != from_codewords:
        raise RefusedError(
            f"{output}: holds a training whose codes began {starts[has]}, and not {starts[from_codewords]}, as with "
            f"tokenizer={storage.redact(config.tokenizer)}; give another output.url, or tokenizer as before"
        )
    model = to_dict(config.model)
    if changed := [key for key, value in extra["model"].items() if model.get(key) != value]:
        shown = ", ".join(f"model.{key}={extra['model'][key]} (now {model.get(key)})" for key in changed)
        raise RefusedError(
            f"{output}: holds a training with {shown}; give another output.url, or the same model"
        )
    num_steps_done = earlier["trainer"]["num_steps_done"]
    check_changes(
        extra["settings"], settings, num_steps_done=num_steps_done, num_steps=num_steps, output=output
    )


def _show(config: TrainArConfig, dataset: TrainingData, *, num_steps: int, num_workers: int) -> None:
    with torch.device("meta"):
        model = Generator(config.model, Vocabulary.from_spec(dataset.spec))
    device = torch.device("cuda" if has_gpu() else "cpu")
    mean = dataset.num_elements / dataset.num_sequences
    row_tokens, rows = config.packing.row_tokens, config.rows_per_step
    sharded = is_sharded(model, config.training, device=device, num_ranks=num_workers)
    memory: MemoryEstimate = estimate_memory(
        model, config.training, row_tokens=row_tokens, num_shards=num_workers if sharded else 1, device=device
    )
    flops = model.flops_per_token(mean)
    logger.info(
        "%s: %d images, %.1f tokens an image (%d at most), tokenizer %s",
        dataset.shown, dataset.num_sequences, mean - 1, dataset.longest_elements - 1,
        dataset.spec.tokenizer_fingerprint[:12],
    )  # fmt: skip
    if dataset.mixing is not None:
        logger.info("mixed: %s", _tell_mix(dataset, dataset.mixing))
    logger.info(
        "model: %.1f M weights, %.2f GFLOP a token; memory of a worker about %s",
        memory.num_weights / 1e6, flops / 1e9, memory,
    )  # fmt: skip
    logger.info(
        "%d steps of %d rows of %d tokens, about %.1f an epoch, %.1f epochs; %d workers on %s%s",
        num_steps, rows, row_tokens, steps_per_epoch(config, dataset),
        num_steps / steps_per_epoch(config, dataset), num_workers, device.type,
        ", weights split over them" if sharded else "",
    )  # fmt: skip


def _tell_mix(dataset: TrainingData, mixing: Mixing) -> str:
    """Datasets with their shares of the images, in turn by step."""
    names = [storage.redact(each.url) for each in dataset.sets]

    def tell(weights: tuple[float, ...]) -> str:
        shares = [f"{weight / sum(weights):.1%} {name}" for weight, name in zip(weights, names, strict=True)]
        return ", ".join(shares)

    later = [f"; from step {step} on {tell(weights)}" for step, weights in mixing.changes]
    return tell(mixing.weights) + "".join(later)


def _show_fill(config: TrainArConfig, dataset: TrainingData, *, num_workers: int) -> None:
    """Say where most of a step is padding, and what would fit."""
    spec = dataset.spec
    shape = BatchShape(config.packing.row_tokens, config.rows_per_step, config.training.microbatch_rows)
    elements = max(1, round(dataset.num_elements * (1 - config.validation.share)))
    fill = estimate_fill(shape, num_elements=elements, num_ranks=num_workers)
    if fill >= _LOW_FILL:
        return
    longest = 1 + spec.num_globals + spec.num_patches
    fit = fit_batch(shape, num_elements=elements, longest_elements=longest, num_ranks=num_workers)
    if fit == shape:
        return
    logger.warning(
        "%.1f %% of a step's %d rows is tokens, the rest is padding: the dataset is smaller than a step; "
        "packing.row_tokens=%d training.batch_tokens=%d training.microbatch_rows=%d would make it %.0f %%",
        100 * fill, shape.rows_per_step, fit.row_tokens, fit.batch_tokens, fit.microbatch_rows,
        100 * estimate_fill(fit, num_elements=elements, num_ranks=num_workers),
    )  # fmt: skip
