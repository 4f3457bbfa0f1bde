"""Training of the generator on a GPU: packed rows as the trainer takes them, and the same sequences padded.

Sequences are made up; their lengths are spread as those of real images.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import nn

from tatok_pipe.ar.batch import Vocabulary, to_tensors
from tatok_pipe.ar.memory import estimate_memory
from tatok_pipe.ar.model import Generator
from tatok_pipe.ar.options import TrainingConfig
from tatok_pipe.ar.parallel import parallelize
from tatok_pipe.ar.trainer import GeneratorTrainer
from tatok_pipe.records import Kind, PackedBatch
from tatok_pipe.tokens.loading.batches import Sequences
from tests.benchmarks.gpu.bench import Bench
from tests.benchmarks.gpu.device import Device, Stopwatch
from tests.benchmarks.gpu.inputs import draw_sequences, packed_batches
from tests.benchmarks.gpu.padded import PaddedBatch, padded_nats
from tests.benchmarks.gpu.sizes import Sizes

_UTILISATION = 0.45
_STEPS = 1000  # that the schedule knows of
_ROOM = 0.9  # share of the device's memory that an estimate may fill
_SPARE = 4  # times the sequences that fill the rows: a corpus packs better than a step of it would
_SPLITS = 2


@dataclass(frozen=True)
class Step:
    """What one optimizer step is given."""

    batches: list[PackedBatch]
    mean_length: float  # elements of a sequence

    @property
    def num_elements(self) -> int:
        return sum(int((each.kinds != Kind.PADDING).sum()) for each in self.batches)

    @property
    def num_codes(self) -> int:
        return self.num_elements - sum(each.num_sequences for each in self.batches)

    @property
    def fill(self) -> float:
        return self.num_elements / sum(each.num_elements for each in self.batches)


def make_trainer(sizes: Sizes, device: Device, config: TrainingConfig) -> GeneratorTrainer:
    torch.manual_seed(0)
    with device.device:
        model = Generator(sizes.generator, sizes.vocabulary)
    parallel = parallelize(model, config, device=device.device, num_ranks=1)
    return GeneratorTrainer(model, parallel.network, config, num_steps=_STEPS, device=device.device, seed=0)


def full_step(sizes: Sizes, *, rows: int, mean_tokens: float) -> Step:
    """As many rows as a step of one GPU has, in micro-batches of `rows`."""
    count = round(_SPARE * sizes.step_rows * sizes.row_tokens / mean_tokens)
    sequences = draw_sequences(
        count, sizes.vocabulary, mean_tokens=mean_tokens, num_classes=sizes.generator.num_classes
    )
    batches = packed_batches(sequences, row_tokens=sizes.row_tokens, rows=rows, max_rows=sizes.step_rows)
    elements = sum(int((each.kinds != Kind.PADDING).sum()) for each in batches)
    return Step(batches, elements / sum(each.num_sequences for each in batches))


def stepping(trainer: GeneratorTrainer, step: Step) -> Callable[[], None]:
    """A whole step, copies to the device included."""
    vocabulary = trainer.model.vocabulary

    def run() -> None:
        tensors = [to_tensors(each, trainer.device, vocabulary=vocabulary) for each in step.batches]
        trainer.step(tensors, num_codes=step.num_codes)

    return run


def run(bench: Bench) -> None:
    sizes, device = bench.sizes, bench.device
    config = TrainingConfig(steps=_STEPS, compile="yes")  # as "auto" does on a GPU
    trainer = make_trainer(sizes, device, config)
    bench.row(
        "model", weights=trainer.model.num_parameters, precision=config.precision_on(device.device),
        gflop_a_token=trainer.model.flops_per_token(1 + sizes.mean_tokens[0]) / 1e9,
    )  # fmt: skip
    rows = measure_rows(bench, trainer)
    split(bench, trainer, full_step(sizes, rows=rows, mean_tokens=sizes.mean_tokens[0]))
    for mean_tokens in sizes.mean_tokens:
        padded(bench, trainer, rows=min(rows, sizes.padded_rows), mean_tokens=mean_tokens)


def measure_rows(bench: Bench, trainer: GeneratorTrainer) -> int:
    """Full steps in micro-batches of several sizes; the fastest one."""
    sizes, device, model = bench.sizes, bench.device, trainer.model
    mean_tokens = sizes.mean_tokens[0]
    speeds: dict[int, list[float]] = {}
    for rows in sizes.microbatch_rows:
        config = TrainingConfig(steps=_STEPS, microbatch_rows=rows)
        estimate = estimate_memory(
            model, config, row_tokens=sizes.row_tokens, num_shards=1, device=device.device
        )
        needs_gib = (estimate.state_bytes + estimate.activation_bytes) / 2**30
        if device.memory_gib is not None and needs_gib > _ROOM * device.memory_gib:
            bench.note(f"train: {rows} rows a micro-batch would need {needs_gib:.0f} GiB")
            continue
        if speeds and bench.budget.is_late:
            bench.note(f"train: no time for {rows} rows a micro-batch")
            continue
        step = full_step(sizes, rows=rows, mean_tokens=mean_tokens)
        try:
            compile_s = device.timing(stepping(trainer, Step(step.batches[:1], step.mean_length))).wall_s
            device.begin_peak()
            side = bench.side(step.num_elements, stepping(trainer, step))
            num_programs = device.num_programs
            speeds[rows] = [side() for _ in range(bench.repeats(is_slow=True))]
        except torch.OutOfMemoryError:
            trainer.optimizer.zero_grad(set_to_none=True)
            device.release()
            bench.note(f"train: {rows} rows a micro-batch need more memory than there is")
            continue
        if again := device.num_programs - num_programs:
            bench.note(f"train: {again} programs were compiled while {rows} rows were timed")
        rate = statistics.median(speeds[rows])
        mfu = rate * model.flops_per_token(step.mean_length) / bench.ceiling_flops_per_s
        bench.row(
            f"{rows} rows of {sizes.row_tokens} a micro-batch", tokens_per_s=rate, mfu=mfu, fill=step.fill,
            first_step_s=compile_s, peak_gib=device.peak_gib(), estimated_gib=needs_gib,
        )  # fmt: skip
    best = max(speeds, key=lambda rows: statistics.median(speeds[rows]))
    step = full_step(sizes, rows=best, mean_tokens=mean_tokens)
    bench.utilisation(
        "train/mfu", f"training, {best} rows a micro-batch / best product", speeds[best],
        flops=model.flops_per_token(step.mean_length), target=_UTILISATION,
    )  # fmt: skip
    bench.row(
        "a full step", rows=best, tokens_per_s=statistics.median(speeds[best]), fill=step.fill,
        mean_length=step.mean_length, images_per_s=statistics.median(speeds[best]) / step.mean_length,
    )  # fmt: skip
    return best


def split(bench: Bench, trainer: GeneratorTrainer, step: Step) -> None:
    """Where the time of a step goes, and how busy it keeps the device."""
    device, vocabulary = bench.device, trainer.model.vocabulary
    watch = Stopwatch(device)
    for _ in range(_SPLITS):
        for each in step.batches:
            batch = to_tensors(each, device.device, vocabulary=vocabulary)
            watch.mark("to_device")
            with torch.autocast(device.device.type, torch.bfloat16, enabled=device.is_gpu):
                loss, _ = trainer.network(batch)
            watch.mark("forward")
            (loss / step.num_codes).backward()
            watch.mark("backward")
        nn.utils.clip_grad_norm_(trainer.model.parameters(), trainer.config.optimizer.clip_norm)
        trainer.optimizer.step()
        trainer.optimizer.zero_grad(set_to_none=True)
        watch.mark("optimizer")
    bench.row("share of each part", **watch.shares())
    few = Step(step.batches[:2], step.mean_length)
    bench.busy("a step of two micro-batches", stepping(trainer, few))


def padded(bench: Bench, trainer: GeneratorTrainer, *, rows: int, mean_tokens: float) -> None:
    """The same sequences in packed rows and in padded batches of as many elements, a step of all of them."""
    sizes, device, vocabulary = bench.sizes, bench.device, trainer.model.vocabulary
    sequences, step, per_batch = _padded_corpus(sizes, rows=rows, mean_tokens=mean_tokens)
    count, length = len(sequences), int(sequences.lengths.max())
    others = [
        PaddedBatch(
            sequences, at, at + per_batch, length=length, end=vocabulary.num_patches, device=device.device
        )
        for at in range(0, count, per_batch)
    ]
    _check_nats(trainer, step, others, vocabulary, device=device)
    num_codes = step.num_codes

    def padded_step() -> None:
        for batch in others:
            with torch.autocast(device.device.type, torch.bfloat16, enabled=device.is_gpu):
                nats = padded_nats(trainer.model, batch)
            (nats / num_codes).backward()
        nn.utils.clip_grad_norm_(trainer.model.parameters(), trainer.config.optimizer.clip_norm)
        trainer.optimizer.step()
        trainer.optimizer.zero_grad(set_to_none=True)

    bench.compare(
        f"train/packed/{mean_tokens:g}", f"training, {mean_tokens:g} tokens an image, packed / padded",
        bench.side(count, stepping(trainer, step)), bench.side(count, padded_step), unit="images/s",
        is_slow=True,
    )  # fmt: skip
    bench.row(
        f"packed and padded, {mean_tokens:g} tokens an image", images=count, longest=length,
        mean_length=step.mean_length, longest_over_mean=length / step.mean_length, fill=step.fill,
    )  # fmt: skip


def _padded_corpus(sizes: Sizes, *, rows: int, mean_tokens: float) -> tuple[Sequences, Step, int]:
    """Sequences, a step of them packed, and how many of them a padded batch has."""
    per_batch = max(1, rows * sizes.row_tokens // sizes.vocabulary.max_length)
    found: list[tuple[Sequences, Step]] = []
    for num_batches in sizes.padded_batches:
        sequences = draw_sequences(
            num_batches * per_batch, sizes.vocabulary, mean_tokens=mean_tokens,
            num_classes=sizes.generator.num_classes,
        )  # fmt: skip
        batches = packed_batches(sequences, row_tokens=sizes.row_tokens, rows=rows)
        found.append((sequences, Step(batches, float(sequences.lengths.mean()))))
    sequences, step = max(found, key=lambda each: each[1].fill)
    return sequences, step, per_batch


def _check_nats(
    trainer: GeneratorTrainer,
    step: Step,
    others: list[PaddedBatch],
    vocabulary: Vocabulary,
    *,
    device: Device,
) -> None:
    """Raises RuntimeError where packed rows and padded batches do not cost the same."""
    model, is_rough = trainer.model, device.is_gpu
    with (
        torch.no_grad(),
        torch.compiler.set_stance("force_eager"),
        torch.autocast(device.device.type, torch.bfloat16, enabled=is_rough),
    ):
        ours = sum(
            float(model(to_tensors(each, device.device, vocabulary=vocabulary)).total.sum())
            for each in step.batches
        )
        theirs = sum(float(padded_nats(model, each)) for each in others)
    if abs(ours - theirs) > (5e-3 if is_rough else 1e-4) * ours:
        raise RuntimeError(f"packed rows cost {ours:.1f} nats, padded batches {theirs:.1f}")
