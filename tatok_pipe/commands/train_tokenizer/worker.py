"""What is special to train_tokenizer in each Ray Train worker: closed form, a step on images, looks at held-out ones,
then calibration, figures and the finished tokenizer. The loop itself is `ray_runtime/training_loop.py`."""

from __future__ import annotations

import logging
import time
from contextlib import nullcontext
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import ray.train.collective
import torch
from safetensors.torch import load_file
from safetensors.torch import save as save_tensors
from torch.nn.parallel import DistributedDataParallel

from tatok_pipe import storage
from tatok_pipe.commands.train_tokenizer.options import TrainTokenizerConfig
from tatok_pipe.config.load import from_dict, to_dict
from tatok_pipe.encoding.panel import load_panel
from tatok_pipe.images.stream import TrainingImages
from tatok_pipe.ray_runtime.training_log import TrainingLog
from tatok_pipe.ray_runtime.training_task import Checkpoint, TrainingRun, Worker
from tatok_pipe.seeds import hash_seed
from tatok_pipe.storage.json_types import to_json_types
from tatok_pipe.tokenizer.calibration import calibrate_ladders
from tatok_pipe.tokenizer.checkpoint import save_tokenizer
from tatok_pipe.tokenizer.closed_form import fit_closed_form
from tatok_pipe.tokenizer.heldout import measure
from tatok_pipe.tokenizer.model import TaTok
from tatok_pipe.tokenizer.model_card import publish_card
from tatok_pipe.tokenizer.start import load_start, start_from
from tatok_pipe.tokenizer.trainer import TokenizerTrainer, to_model_input
from tatok_pipe.tokenizer.training_log import PATIENCE_STEPS, TrainingCurves, look

logger = logging.getLogger(__name__)

_STATE = "state.safetensors"  # in a checkpoint
_START_BATCH_IMAGES = 50
_START_DRAW = 1  # tells the closed form's crops from those of the training


@dataclass(frozen=True)
class TokenizerRun(TrainingRun):
    train_shards: list[str]
    held_out_shards: list[str]


class TokenizerTraining:
    """See `Training`."""

    def __init__(self, run: TokenizerRun, worker: Worker) -> None:
        self._run = run
        self._worker = worker
        self._config = from_dict(TrainTokenizerConfig, run.config)
        self._curves = TrainingCurves()
        self._source: dict[str, Any] | None = None  # what it goes on from
        self._figures: dict[str, Any] = {}

    @property
    def num_steps_done(self) -> int:
        return self._trainer.num_steps_done

    def begin(self, checkpoint: Checkpoint | None) -> bool:
        config, worker = self._config, self._worker
        torch.manual_seed(config.seed)
        self._model = TaTok(config.model).to(worker.device)
        if checkpoint is None:
            self._start()
        self._trainer = TokenizerTrainer(
            self._model, config.training, seed=config.seed, rank=worker.rank, wrap=self._wrap
        )
        self._images = self._open_images(config.training.batch_size // worker.num_ranks, seed=config.seed)
        if checkpoint is not None:
            self._restore(checkpoint)
        self._batches = iter(self._images)
        if worker.leads:
            num_images = config.validation.panel_images
            panel = load_panel(self._run.held_out_shards, config.model.image_size, num_images)
            self._panel = panel.to(worker.device)
        self._counted_s = self._logged_s = time.monotonic()
        self._logged_step = self.num_steps_done
        return checkpoint is None and config.training.starts_with_codes

    def _start(self) -> None:
        training = self._config.training
        if training.start_from is not None:
            self._source = start_from(self._model, load_start(training.start_from, self._config.model))
        elif training.starts_in_closed_form:
            self._fit_closed_form()

    def step(self) -> None:
        self._stage = self._trainer.stage
        self._terms = self._trainer.step(to_model_input(next(self._batches), self._worker.device))

    def losses_line(self) -> str:
        return " ".join([self._stage, *(f"{name} {value:.4g}" for name, value in self._terms.items())])

    def log_steps(self, log: TrainingLog | None) -> None:
        if log is None:
            return
        step, terms, now_s = self.num_steps_done, self._terms, time.monotonic()
        step_s = (now_s - self._logged_s) / (step - self._logged_step)
        self._logged_s, self._logged_step = now_s, step
        point = {name: round(value, 6) for name, value in terms.items()}
        self._curves.losses.append({"step": step, "stage": self._stage} | point)
        images_per_s = self._config.training.batch_size / step_s
        line = f"{self.losses_line()} | {images_per_s:.1f} images/s"
        losses = {name: value for name, value in terms.items() if name != "learning_rate"}
        speed = {"images_per_s": images_per_s, "step_s": step_s}
        log.steps(step, line, terms, losses=losses, speed=speed)

    def validate(self, log: TrainingLog | None) -> None:
        """A look at the panel, and half the learning rates where it has been worse than at the start for long."""
        step, trainer = self.num_steps_done, self._trainer
        if log is not None:
            self._look(log)
        is_behind = ray.train.collective.broadcast_from_rank_zero(self._curves.falls_behind(step))
        if is_behind and self._stage != "prior":
            trainer.slow_down()
            if log is not None:
                logger.warning(
                    "step %d: held-out PSNR has been below that of the start for %d steps or more: learning "
                    "rates are halved, to %.3g of the configured ones",
                    step, PATIENCE_STEPS, trainer.rate_factor,
                )  # fmt: skip

    def find_broken(self) -> str:
        tensors, _ = self._trainer.state_dict()
        broken = [name for name, value in tensors.items() if not bool(value.isfinite().all())]
        return f"{broken[0]} and {len(broken) - 1} more" if broken else ""

    def save(self, folder: Path) -> dict[str, Any]:
        """All workers have the same tensors, and worker 0 writes them."""
        tensors, counters = self._trainer.state_dict()
        if self._worker.leads:
            contiguous = {name: tensor.contiguous() for name, tensor in tensors.items()}
            # Not safetensors' own file, whose error does not say that the disk is full.
            (folder / _STATE).write_bytes(save_tensors(contiguous))
        return counters

    def extra(self) -> dict[str, Any]:
        now_s = time.monotonic()
        self._curves.train_s += now_s - self._counted_s
        self._counted_s = now_s
        return {
            "images": self._images.state_dict(),
            "curves": asdict(self._curves),
            "start_from": self._source,
            "model": self._run.config["model"],
        }

    def finish(self, changes: list[dict[str, Any]]) -> str:
        """Worker 0: calibrate on training images, measure on held-out ones, and publish checkpoint and model card."""
        if not self._worker.leads:
            return ""
        run, config, model, device = self._run, self._config, self._model, self._worker.device
        model.eval()
        if config.output.half:  # measure what is stored
            model.load_state_dict(
                {
                    name: tensor.bfloat16().float() if tensor.is_floating_point() else tensor
                    for name, tensor in model.state_dict().items()
                }
            )
        size, max_images = config.model.image_size, config.validation.max_images
        calibration = load_panel(run.train_shards, size, max_images)
        held_out = load_panel(run.held_out_shards, size, max_images)
        logger.info("calibrating on %d images, measuring on %d", len(calibration), len(held_out))
        with torch.compiler.set_stance("force_eager"):
            ladders = calibrate_ladders(model, calibration.to(device))
            figures = measure(model, held_out.to(device), ladders, seed=config.seed)
        training = {
            "command": run.command,
            "config": to_dict(config.training),
            "seed": config.seed,
            "changes": changes,
            "num_steps": config.training.num_steps,
            "start_s": round(self._curves.start_s),
            "train_s": round(self._curves.train_s),
            "curve": self._curves.losses,
            "held_out_curve": self._curves.held_out,
            "device": device.type,
            "precision": config.training.precision_on(device),
            "num_workers": self._worker.num_ranks,
            "torch": torch.__version__,
            "calibration_images": len(calibration),
            "held_out": figures,
        } | ({"start_from": self._source} if self._source else {})
        url = storage.join(run.output_url, "tokenizer")
        mark = save_tokenizer(url, model, ladders=ladders, training=training, half=config.output.half)
        publish_card(url, model, training, fingerprint=mark)
        psnr = figures["psnr_none"]
        self._figures = {"tokenizer": mark[:12], "held_out_psnr_db": round(psnr, 3)}
        return f"{storage.redact(url)}, fingerprint {mark[:12]}, held-out PSNR {psnr:.2f} dB with all patches"

    def figures(self) -> dict[str, Any]:
        return self._figures

    def _fit_closed_form(self) -> None:
        config, worker = self._config, self._worker
        num_crops = -(-config.training.start_crops // worker.num_ranks)
        images = self._open_images(
            min(num_crops, _START_BATCH_IMAGES), seed=hash_seed(config.seed, _START_DRAW)
        )
        batches = (to_model_input(pixels, worker.device) for pixels in images)
        begin_s = time.monotonic()

        def tell(line: str) -> None:
            if worker.leads:
                logger.info("closed form: %s, %.0f s", line, time.monotonic() - begin_s)
            worker.check_stop()

        fit_closed_form(self._model, batches, num_crops=num_crops, seed=config.seed, tell=tell)
        self._curves.start_s = time.monotonic() - begin_s

    def _open_images(self, batch_size: int, *, seed: int) -> TrainingImages:
        config, worker = self._config, self._worker
        return TrainingImages(
            self._run.train_shards, image_size=config.model.image_size, batch_size=batch_size, seed=seed,
            rank=worker.rank, num_ranks=worker.num_ranks, max_scale=config.input.max_scale,
            plain_share=config.input.plain_share,
        )  # fmt: skip

    def _wrap(self, module: torch.nn.Module) -> torch.nn.Module:
        if self._worker.num_ranks == 1:
            return module
        devices = [self._worker.device] if self._worker.device.type == "cuda" else None
        # Every stage leaves some parameters alone.
        return DistributedDataParallel(module, device_ids=devices, find_unused_parameters=True)

    def _restore(self, checkpoint: Checkpoint) -> None:
        worker, extras = self._worker, checkpoint.extras
        self._trainer.load_state_dict(load_file(checkpoint.folder / _STATE), checkpoint.counters)
        self._curves = TrainingCurves(**extras[0]["curves"])
        self._source = extras[0].get("start_from")
        if len(extras) == worker.num_ranks:
            self._images.load_state_dict(extras[worker.rank]["images"])
            return
        self._images.load_state_dict({"epoch": extras[0]["images"]["epoch"] + 1, "offset": 0})
        if worker.leads:
            logger.warning(
                "%d workers, %d before: what is left of the epoch is passed over",
                worker.num_ranks, len(extras),
            )  # fmt: skip

    def _look(self, log: TrainingLog) -> None:
        average = self._trainer.average
        with (
            torch.compiler.set_stance("force_eager"),  # no compilation for shapes that come once in a while
            average.in_place() if average is not None else nullcontext(),
        ):
            figures, pixels = look(self._model, self._panel)
        step = self.num_steps_done
        self._curves.held_out.append(
            {"step": step} | to_json_types({name: round(value, 4) for name, value in figures.items()})
        )
        by_kept = {name.removeprefix("psnr_"): value for name, value in figures.items()}
        line = ", ".join(f"{name} {value:.2f}" for name, value in by_kept.items())
        line = f"({len(self._panel)} images): PSNR of patches {line} dB"
        panel = "original_all_half_quarter_globals", pixels
        log.held_out(step, line, figures, psnr=by_kept, panel=panel)
