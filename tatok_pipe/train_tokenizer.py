"""Train TaTok on image shards, calibrate its filters, measure it on held-out images.

    python -m tatok_pipe.train_tokenizer configs/tokenizer/tiny.yaml \
        input.shards=… validation.shards=… output.url=…

The same command after a crash or Ctrl-C goes on from the last checkpoint in `<output.url>/checkpoints`.
"""

from __future__ import annotations

import json
import logging
import os
import tempfile
import time
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import ray.train
import ray.train.collective
import ray.train.torch
import torch
from safetensors.torch import load_file, save_file

from tatok_pipe import storage
from tatok_pipe.config import from_dict, load_config, run_entry, to_dict
from tatok_pipe.errors import EXIT_DONE, EXIT_INTERRUPTED, UserError
from tatok_pipe.images.decode import DecodeError, PreprocessConfig, decode_image
from tatok_pipe.images.shards import ShardError
from tatok_pipe.images.source import open_samples
from tatok_pipe.images.stream import TrainingImages
from tatok_pipe.options import option, section
from tatok_pipe.ray_runtime import WorkersConfig, run_training, start_ray
from tatok_pipe.ray_runtime.training import Driver
from tatok_pipe.records import ImageSample
from tatok_pipe.stop_signal import StopSignal
from tatok_pipe.tokenizer.checkpoint import load_tokenizer, save_tokenizer
from tatok_pipe.tokenizer.heldout import calibrate_ladders, measure
from tatok_pipe.tokenizer.model import TaTok, TaTokConfig
from tatok_pipe.tokenizer.model_card import model_card
from tatok_pipe.tokenizer.trainer import TokenizerTrainer, TrainingConfig, TrainingGraph, to_model_input

logger = logging.getLogger("tatok_pipe.train_tokenizer")


@dataclass(frozen=True)
class InputConfig:
    shards: str = option(
        "", help="image shards to train on: glob, braces, @list.txt or directory, on any URL"
    )


@dataclass(frozen=True)
class ValidationConfig:
    shards: str = option("", help="image shards to measure on; nothing of them is trained on")
    max_images: int = option(
        256, help="images to measure on, and of the training shards to calibrate on", unit="images"
    )


@dataclass(frozen=True)
class OutputConfig:
    url: str = option("", help="folder for checkpoints/ and the finished tokenizer/, on any URL")
    half: bool = option(False, help="store the finished weights as bfloat16, half the size")


@dataclass(frozen=True)
class LoggingConfig:
    every_steps: int = option(50, help="a line of losses this often", unit="steps")
    checkpoint_every_steps: int = option(500, help="a checkpoint to resume from this often", unit="steps")


@dataclass(frozen=True)
class TrainTokenizerConfig:
    input: InputConfig = section(InputConfig, help="what to train on")
    validation: ValidationConfig = section(ValidationConfig, help="what to measure on")
    output: OutputConfig = section(OutputConfig, help="where the results go")
    model: TaTokConfig = section(TaTokConfig, help="the tokenizer")
    training: TrainingConfig = section(TrainingConfig, help="how it is trained")
    workers: WorkersConfig = section(WorkersConfig, help="Ray Train workers")
    logging: LoggingConfig = section(LoggingConfig, help="what is logged and saved, how often")
    seed: int = option(0, help="seed of weights, order, augmentation and masks")

    def __post_init__(self) -> None:
        if self.training.batch_size % self.workers.count:
            raise ValueError(
                f"training.batch_size={self.training.batch_size}: expected a multiple of "
                f"workers.count={self.workers.count}"
            )


@dataclass
class TrainingLog:
    """What training leaves behind beside weights; it travels with the checkpoints."""

    train_s: float = 0.0  # time spent in training, over all attempts up to their last checkpoint
    curve: list[dict[str, Any]] = field(default_factory=list)  # losses, every `logging.every_steps`


def main(argv: list[str]) -> int:
    config = load_config(
        TrainTokenizerConfig,
        argv,
        prog="tatok_pipe.train_tokenizer",
        description=(__doc__ or "").split("\n\n")[0],
    )
    for key, value in (
        ("input.shards", config.input.shards),
        ("validation.shards", config.validation.shards),
        ("output.url", config.output.url),
    ):
        if not value:
            raise UserError(f"{key}: not given; expected a URL or path")
    # Absolute from here on: Ray Train's workers run in a folder of their own.
    train_shards = [storage.canonical_url(shard.url) for shard in storage.expand_shards(config.input.shards)]
    held_out = [storage.canonical_url(shard.url) for shard in storage.expand_shards(config.validation.shards)]
    output_url = storage.canonical_url(config.output.url)
    if both := set(train_shards) & set(held_out):
        raise UserError(
            f"{storage.redact(min(both))}: in input.shards and in validation.shards; give it to one of them"
        )
    if config.workers.count > len(train_shards):
        raise UserError(
            f"workers.count={config.workers.count}: expected at most one worker an image shard, "
            f"input.shards={storage.redact(config.input.shards)} has {len(train_shards)}"
        )
    start_ray(for_training=True)
    start = time.monotonic()
    command = " ".join(["python -m tatok_pipe.train_tokenizer", *map(_redact_argument, argv)])
    with StopSignal() as stop:
        told = run_training(
            _train_loop,
            {
                "config": to_dict(config),
                "train_shards": train_shards,
                "held_out": held_out,
                "output_url": output_url,
                "command": command,
            },
            num_workers=config.workers.count,
            cpus=config.workers.cpus,
            output_url=output_url,
            stop=stop,
        )
    if not told.get("is_done"):
        logger.warning(
            "interrupted at step %d of %d; the same command goes on",
            told.get("step", 0), config.training.num_steps,
        )  # fmt: skip
        return EXIT_INTERRUPTED
    tokenizer = load_tokenizer(storage.join(output_url, "tokenizer"))
    logger.info(
        "done in %.0f s: %s, fingerprint %s, held-out PSNR %.2f dB with all patches",
        time.monotonic() - start,
        storage.redact(storage.join(output_url, "tokenizer")),
        tokenizer.fingerprint[:12],
        tokenizer.training["held_out"]["psnr_none"],
    )
    return EXIT_DONE


def _redact_argument(argument: str) -> str:
    """An argument as it may stand in a model card: `key=value` without the credentials of a URL."""
    key, equals, value = argument.partition("=")
    return f"{key}={storage.redact(value)}" if equals else argument


def _train_loop(loop: dict[str, Any]) -> None:
    """What each Ray Train worker runs."""
    driver: Driver = loop["driver"]
    config = from_dict(TrainTokenizerConfig, loop["config"])
    context = ray.train.get_context()
    rank, num_ranks = context.get_world_rank(), context.get_world_size()
    device = ray.train.torch.get_device()
    if device.type == "cpu":
        torch.set_num_threads(max(1, int(os.environ.get("OMP_NUM_THREADS", "1"))))
    torch.manual_seed(config.seed)
    model = TaTok(config.model).to(device)
    graph: torch.nn.Module = TrainingGraph(model)
    if num_ranks > 1:
        graph = torch.nn.parallel.DistributedDataParallel(graph, find_unused_parameters=True)
    trainer = TokenizerTrainer(model, config.training, seed=config.seed, rank=rank, wrapped=graph)
    images = TrainingImages(
        loop["train_shards"],
        image_size=config.model.image_size,
        batch_size=config.training.batch_size // num_ranks,
        seed=config.seed,
        rank=rank,
        num_ranks=num_ranks,
    )
    log = _restore(trainer, images)
    is_done = _train(trainer, images, config, device=device, log=log, lead=rank == 0, driver=driver)
    if rank == 0:
        if is_done:
            _finish(model, loop, config, device=device, log=log)
        driver.tell({"step": trainer.num_steps_done, "is_done": is_done})


def _train(
    trainer: TokenizerTrainer,
    images: TrainingImages,
    config: TrainTokenizerConfig,
    *,
    device: torch.device,
    log: TrainingLog,
    lead: bool,
    driver: Driver,
) -> bool:
    """Whether all steps are done; False where the driver stopped the training, which is saved then."""
    total = config.training.num_steps
    start = time.monotonic()
    window_start, window_step = time.monotonic(), trainer.num_steps_done
    batches = iter(images)
    while trainer.num_steps_done < total:
        # Every worker hears of a stop at another moment, so worker 0 decides.
        if ray.train.collective.broadcast_from_rank_zero(driver.wants_stop() if lead else None):
            logger.info("stopping: checkpoint at step %d", trainer.num_steps_done)
            log.train_s += time.monotonic() - start
            _report_checkpoint(trainer, images, log)
            return False
        stage = trainer.stage
        terms = trainer.step(to_model_input(next(batches), device))
        step = trainer.num_steps_done
        if lead and (step % config.logging.every_steps == 0 or step == total):
            now = time.monotonic()
            rate = (step - window_step) / (now - window_start)
            log.curve.append(
                {"step": step, "stage": stage} | {name: round(x, 6) for name, x in terms.items()}
            )
            line = " ".join(f"{name} {value:.4g}" for name, value in terms.items())
            logger.info(
                "step %d/%d %s %s | %.1f images/s, %.0f s left",
                step, total, stage, line, rate * config.training.batch_size, (total - step) / rate,
            )  # fmt: skip
            window_start, window_step = now, step
        if step % config.logging.checkpoint_every_steps == 0 and step < total:
            log.train_s += time.monotonic() - start
            start = time.monotonic()
            _report_checkpoint(trainer, images, log)
    log.train_s += time.monotonic() - start
    return True


def _report_checkpoint(trainer: TokenizerTrainer, images: TrainingImages, log: TrainingLog) -> None:
    """Hand the state of this rank to Ray Train: rank 0 brings model and optimizer, each its own stream."""
    rank = ray.train.get_context().get_world_rank()
    with tempfile.TemporaryDirectory() as folder:
        tensors, counters = trainer.state_dict()
        if rank == 0:
            save_file(
                {name: tensor.contiguous() for name, tensor in tensors.items()}, f"{folder}/state.safetensors"
            )
        state = {"trainer": counters, "images": images.state_dict(), "log": asdict(log)}
        Path(folder, f"rank-{rank}.json").write_text(json.dumps(state))
        ray.train.report(
            {"step": trainer.num_steps_done},
            checkpoint=ray.train.Checkpoint.from_directory(folder),
            checkpoint_dir_name=f"step-{trainer.num_steps_done:07d}",
        )


def _restore(trainer: TokenizerTrainer, images: TrainingImages) -> TrainingLog:
    """Load the newest checkpoint, if there is one, and what was logged until then."""
    checkpoint = ray.train.get_checkpoint()
    if checkpoint is None:
        return TrainingLog()
    with checkpoint.as_directory() as folder:
        state = json.loads(Path(folder, f"rank-{trainer.rank}.json").read_text())
        trainer.load_state_dict(load_file(f"{folder}/state.safetensors"), state["trainer"])
        images.load_state_dict(state["images"])
    logger.info("resumed at step %d", trainer.num_steps_done)
    return TrainingLog(**state["log"])


def _finish(
    model: TaTok,
    loop: dict[str, Any],
    config: TrainTokenizerConfig,
    *,
    device: torch.device,
    log: TrainingLog,
) -> None:
    """Calibrate on training images, measure on held-out ones, and publish checkpoint and model card."""
    model.eval()
    if config.output.half:  # measure what is stored
        model.load_state_dict(
            {n: t.bfloat16().float() if t.is_floating_point() else t for n, t in model.state_dict().items()}
        )
    calibration = load_images(loop["train_shards"], config.model.image_size, config.validation.max_images)
    held_out = load_images(loop["held_out"], config.model.image_size, config.validation.max_images)
    ladders = calibrate_ladders(model, calibration.to(device))
    figures = measure(model, held_out.to(device), ladders, seed=config.seed)
    training = {
        "command": loop["command"],
        "config": loop["config"]["training"],
        "seed": config.seed,
        "num_steps": config.training.num_steps,
        "train_s": round(log.train_s),
        "curve": log.curve,
        "device": device.type,
        "torch": torch.__version__,
        "calibration_images": len(calibration),
        "held_out": figures,
    }
    url = storage.join(loop["output_url"], "tokenizer")
    mark = save_tokenizer(url, model, ladders=ladders, training=training, half=config.output.half)
    card = model_card(
        config.model, training, fingerprint=mark, num_weights=sum(p.numel() for p in model.parameters())
    )
    storage.publish_bytes(card.encode(), storage.join(url, "README.md"), exclusive=False)


def load_images(shards: list[str], image_size: int, max_images: int) -> torch.Tensor:
    """The first readable images of `shards`, centre crops (M, 3, S, S) float32 in [0, 1].

    Raises UserError where there is none.
    """
    crops: list[torch.Tensor] = []
    preprocess = PreprocessConfig(image_size=image_size)
    for url in shards:
        try:
            with open_samples(url, info=storage.file_info(url)) as samples:
                for sample in samples:
                    if isinstance(sample, ImageSample):
                        with suppress(DecodeError):
                            crops.append(torch.from_numpy(decode_image(sample.image, preprocess)[0].copy()))
                    if len(crops) == max_images:
                        break
        except ShardError as error:
            raise UserError(str(error)) from error
        if len(crops) == max_images:
            break
    if not crops:
        raise UserError(f"{storage.redact(shards[0])} and {len(shards) - 1} more: no readable image")
    return to_model_input(torch.stack(crops).numpy(), "cpu")


if __name__ == "__main__":
    # By its importable name, so that Ray's workers import what they run; __main__ would be pickled by value.
    from tatok_pipe import train_tokenizer

    run_entry(train_tokenizer.main)
