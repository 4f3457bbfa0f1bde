"""What each Ray Train worker of train_tokenizer runs: closed form or restore, step by step to the end, checkpoints on
the way, then calibration, figures and the finished tokenizer."""

from __future__ import annotations

import json
import logging
import os
import tempfile
import time
from contextlib import nullcontext
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import ray.train
import ray.train.collective
import ray.train.torch
import torch
from safetensors.torch import load_file, save_file
from torch.nn.parallel import DistributedDataParallel

from tatok_pipe import storage
from tatok_pipe.commands.train_tokenizer.options import TrainTokenizerConfig
from tatok_pipe.config.load import from_dict, to_dict
from tatok_pipe.encoding.panel import load_panel
from tatok_pipe.errors import UserError
from tatok_pipe.images.stream import TrainingImages
from tatok_pipe.ray_runtime.metrics import TrainingMetrics
from tatok_pipe.ray_runtime.training import FIRST_LINE_S, Driver
from tatok_pipe.runs.progress import format_duration
from tatok_pipe.seeds import hash_seed
from tatok_pipe.storage.json_types import to_json_types
from tatok_pipe.tokenizer.calibration import calibrate_ladders
from tatok_pipe.tokenizer.checkpoint import save_tokenizer
from tatok_pipe.tokenizer.closed_form import fit_closed_form
from tatok_pipe.tokenizer.heldout import measure
from tatok_pipe.tokenizer.model import TaTok
from tatok_pipe.tokenizer.model_card import publish_card
from tatok_pipe.tokenizer.trainer import TokenizerTrainer, to_model_input
from tatok_pipe.tokenizer.training_log import PATIENCE_STEPS, TrainingCurves, look
from tatok_pipe.tokenizer.training_options import STAGES
from tatok_pipe.training.settings import check_changes, find_changes, flatten, show_changes
from tatok_pipe.training.tensorboard import TensorBoard

logger = logging.getLogger(__name__)

_START_BATCH_IMAGES = 50
_START_DRAW = 1  # tells the closed form's crops from those of the training


class _StoppedError(Exception):
    """The driver wants to stop."""


@dataclass(frozen=True)
class TokenizerRun:
    """What the driver has found out and every worker is told."""

    config: dict[str, Any]  # TrainTokenizerConfig
    train_shards: list[str]
    held_out_shards: list[str]
    output_url: str
    command: str


def train_tokenizer(loop: dict[str, Any]) -> None:
    """The loop of one worker; see `run_training`."""
    _Worker(loop["run"], loop["driver"]).run()


class _Worker:
    def __init__(self, run: TokenizerRun, driver: Driver) -> None:
        self._run_facts = run
        self.config = from_dict(TrainTokenizerConfig, run.config)
        context = ray.train.get_context()
        self.rank, self.num_ranks = context.get_world_rank(), context.get_world_size()
        self.device = ray.train.torch.get_device()
        if self.device.type == "cpu":
            torch.set_num_threads(max(1, int(os.environ.get("OMP_NUM_THREADS", "1"))))
        self._driver = driver

    @property
    def leads(self) -> bool:
        return self.rank == 0

    def run(self) -> None:
        """Train to the end, or to where the driver wants it to stop, and tell it which."""
        run, config = self._run_facts, self.config
        torch.manual_seed(config.seed)
        self.model = TaTok(config.model).to(self.device)
        self.curves = TrainingCurves()
        self._saved_step = -1
        logger.info("worker %d of %d: process %d", self.rank, self.num_ranks, os.getpid())
        if (
            config.training.start == "closed_form"
            and ray.train.get_checkpoint() is None
            and not self._start()
        ):
            if self.leads:
                self._driver.tell({"step": 0, "is_done": False})
            return
        self.trainer = TokenizerTrainer(
            self.model, config.training, seed=config.seed, rank=self.rank, wrap=self._wrap
        )
        self.images = self._open_images(config.training.batch_size // self.num_ranks, seed=config.seed)
        self._restore()
        self._board = self._panel = self._metrics = None
        if self.leads:
            self._metrics = TrainingMetrics("train_tokenizer")
            self._metrics.begin(step=self.trainer.num_steps_done, num_steps=config.training.num_steps)
            self._board = TensorBoard(
                storage.join(run.output_url, "tensorboard"), first_step=self.trainer.num_steps_done
            )
            self._panel = load_panel(
                run.held_out_shards, config.model.image_size, config.validation.panel_images
            ).to(self.device)
        is_done = self._train()
        if self.leads:
            if is_done:
                self._finish()
            if self._board is not None and self._metrics is not None:
                self._board.close()
                self._metrics.close()
            self._driver.tell({"step": self.trainer.num_steps_done, "is_done": is_done})

    def _open_images(self, batch_size: int, *, seed: int) -> TrainingImages:
        run, config = self._run_facts, self.config
        return TrainingImages(
            run.train_shards,
            image_size=config.model.image_size,
            batch_size=batch_size,
            seed=seed,
            rank=self.rank,
            num_ranks=self.num_ranks,
            max_scale=config.input.max_scale,
            plain_share=config.input.plain_share,
        )

    def _start(self) -> bool:
        """The closed form; False where the driver stopped it, which leaves nothing."""
        config = self.config
        num_crops = -(-config.training.start_crops // self.num_ranks)
        images = self._open_images(
            min(num_crops, _START_BATCH_IMAGES), seed=hash_seed(config.seed, _START_DRAW)
        )
        batches = (to_model_input(pixels, self.device) for pixels in images)
        begin_s = time.monotonic()

        def tell(line: str) -> None:
            if self.leads:
                logger.info("closed form: %s, %.0f s", line, time.monotonic() - begin_s)
            self._check_stop()

        try:
            fit_closed_form(self.model, batches, num_crops=num_crops, seed=config.seed, tell=tell)
        except _StoppedError:
            return False
        self.curves.start_s = time.monotonic() - begin_s
        return True

    def _check_stop(self) -> None:
        """Every worker hears of a stop at another moment, so worker 0 decides. Raises _StoppedError."""
        wants_stop = self._driver.wants_stop() if self.leads else None
        if ray.train.collective.broadcast_from_rank_zero(wants_stop):
            raise _StoppedError

    def _wrap(self, module: torch.nn.Module) -> torch.nn.Module:
        if self.num_ranks == 1:
            return module
        # Every stage leaves some parameters alone.
        return DistributedDataParallel(
            module,
            device_ids=[self.device] if self.device.type == "cuda" else None,
            find_unused_parameters=True,
        )

    def _train(self) -> bool:
        """Whether all steps are done; False where the driver stopped the training, which is saved then."""
        config, trainer = self.config, self.trainer
        total, every = config.training.num_steps, config.logging
        self._since = time.monotonic()
        window_start, window_step = self._since, trainer.num_steps_done
        begin_s, has_line = self._since, False
        batches = iter(self.images)
        if config.training.start == "closed_form" and not trainer.num_steps_done:
            self._look(0)
            self._report_checkpoint()  # so that nothing has to be computed again
        while trainer.num_steps_done < total:
            try:
                self._check_stop()
            except _StoppedError:
                logger.info("stopping: checkpoint at step %d", trainer.num_steps_done)
                self._report_checkpoint()
                return False
            stage = trainer.stage
            terms = trainer.step(to_model_input(next(batches), self.device))
            step = trainer.num_steps_done
            is_logged = step % every.every_steps == 0 or step == total
            if self.leads and not (has_line or is_logged) and time.monotonic() > begin_s + FIRST_LINE_S:
                # For whoever waits; it stands in no curve, as that must not depend on the machine.
                line = " ".join(f"{name} {value:.4g}" for name, value in terms.items())
                logger.info("step %d/%d %s %s", step, total, stage, line)
                has_line = True
            has_line = has_line or is_logged
            if self._board is not None and self._metrics is not None and is_logged:
                now = time.monotonic()
                rate = (step - window_step) / (now - window_start)
                images_per_s, left_s = rate * config.training.batch_size, (total - step) / rate
                point = {name: round(value, 6) for name, value in terms.items()}
                self.curves.losses.append({"step": step, "stage": stage} | point)
                self._board.scalars("train", step, terms)
                self._board.scalars("speed", step, {"images_per_s": images_per_s})
                self._metrics.logged(step, figures=terms | {"images_per_s": images_per_s}, eta_s=left_s)
                losses = {name: value for name, value in terms.items() if name != "learning_rate"}
                self._metrics.losses(losses, split="train")
                line = " ".join(f"{name} {value:.4g}" for name, value in terms.items())
                logger.info(
                    "step %d/%d %s %s | %.1f images/s, %s left",
                    step, total, stage, line, images_per_s, format_duration(left_s),
                )  # fmt: skip
                window_start, window_step = now, step
            if step % config.validation.every_steps == 0 or step == total:
                self._look(step)
                is_behind = self.curves.falls_behind(step)
                if stage != "prior" and ray.train.collective.broadcast_from_rank_zero(is_behind):
                    trainer.slow_down()
                    if self.leads:
                        logger.warning(
                            "step %d: held-out PSNR has been below that of the start for %d steps or more: learning "
                            "rates are halved, to %.3g of the configured ones",
                            step, PATIENCE_STEPS, trainer.rate_factor,
                        )  # fmt: skip
            if step % every.checkpoint_every_steps == 0 or step == total:
                self._report_checkpoint()
        return True

    def _look(self, step: int) -> None:
        if self._board is None or self._panel is None or self._metrics is None:
            return
        average = self.trainer.average
        with (
            torch.compiler.set_stance("force_eager"),  # no compilation for shapes that come once in a while
            average.in_place() if average is not None else nullcontext(),
        ):
            figures, pixels = look(self.model, self._panel)
        self.curves.held_out.append(
            {"step": step} | to_json_types({name: round(value, 4) for name, value in figures.items()})
        )
        self._board.scalars("held_out", step, figures)
        self._board.picture("held_out/original_all_half_quarter_globals", step, pixels)
        self._board.publish()
        by_kept = {name.removeprefix("psnr_"): value for name, value in figures.items()}
        self._metrics.psnr(by_kept)
        line = ", ".join(f"{name} {value:.2f}" for name, value in by_kept.items())
        logger.info("step %d held out (%d images): PSNR of patches %s dB", step, len(self._panel), line)

    def _count_time(self) -> None:
        now = time.monotonic()
        self.curves.train_s += now - self._since
        self._since = now

    def _report_checkpoint(self) -> None:
        """Hand the state of this rank to Ray Train: rank 0 brings weights and optimizers, each its own stream."""
        if self._saved_step == self.trainer.num_steps_done:
            return  # a stop right after a checkpoint: Ray Train would remove the one folder for both
        self._saved_step = self.trainer.num_steps_done
        self._count_time()
        if self._board is not None:
            self._board.publish()
        with tempfile.TemporaryDirectory() as folder:
            # The same on all ranks, so all of them stop, or none.
            tensors, counters = self.trainer.state_dict()
            if broken := [name for name, value in tensors.items() if not bool(value.isfinite().all())]:
                raise UserError(
                    f"step {self.trainer.num_steps_done}: {broken[0]} and {len(broken) - 1} more not finite; no "
                    "checkpoint is written of them, the last one is from before: give a smaller "
                    "training.learning_rate, and the same command goes on from there"
                )
            if self.leads:
                save_file(
                    {name: tensor.contiguous() for name, tensor in tensors.items()},
                    f"{folder}/state.safetensors",
                )
            state = {
                "trainer": counters,
                "images": self.images.state_dict(),
                "curves": asdict(self.curves),
                "model": self._run_facts.config["model"],
                "training": self._run_facts.config["training"],
                "settings": _list_settings(self._run_facts.config),
                "num_ranks": self.num_ranks,
            }
            Path(folder, f"rank-{self.rank}.json").write_text(json.dumps(state, allow_nan=False))
            ray.train.report(
                {"step": self.trainer.num_steps_done},
                checkpoint=ray.train.Checkpoint.from_directory(folder),
                checkpoint_dir_name=f"step-{self.trainer.num_steps_done:07d}",
            )
        if self._metrics is not None:
            self._metrics.saved(self.trainer.num_steps_done)

    def _restore(self) -> None:
        """Load the newest checkpoint, if there is one, and what was logged until then."""
        checkpoint = ray.train.get_checkpoint()
        if checkpoint is None:
            return
        with checkpoint.as_directory() as folder:
            state = json.loads(Path(folder, "rank-0.json").read_text())
            self._check_earlier(state)
            self.trainer.load_state_dict(load_file(f"{folder}/state.safetensors"), state["trainer"])
            if state["num_ranks"] == self.num_ranks:
                own = json.loads(Path(folder, f"rank-{self.rank}.json").read_text())
                self.images.load_state_dict(own["images"])
            else:
                self.images.load_state_dict({"epoch": state["images"]["epoch"] + 1, "offset": 0})
                if self.leads:
                    logger.warning(
                        "%d workers, %d before: what is left of the epoch is passed over",
                        self.num_ranks, state["num_ranks"],
                    )  # fmt: skip
        self._saved_step = self.trainer.num_steps_done
        if self.leads:
            logger.info("resumed at step %d", self.trainer.num_steps_done)
        curves = TrainingCurves(**state["curves"])
        if changes := self._find_changes(state):
            curves.changes.append({"step": self.trainer.num_steps_done, "settings": changes})
            if self.leads:
                logger.warning("from step %d on: %s", self.trainer.num_steps_done, show_changes(changes))
        self.curves = curves

    def _check_earlier(self, state: dict[str, Any]) -> None:
        """Learning rates, mixes and weights of losses may change on the way; what has a state may not."""
        config = self._run_facts.config
        before, now = state["training"], config["training"]
        pairs = [(f"model.{key}", value, config["model"].get(key)) for key, value in state["model"].items()]
        pairs += [
            (f"training.{stage}_steps", before[f"{stage}_steps"], now[f"{stage}_steps"]) for stage in STAGES
        ]
        pairs.append(("training.start", before["start"], now["start"]))
        changed = [f"{key}={earlier} (now {later})" for key, earlier, later in pairs if earlier != later]
        states = [("ema_decay", before["ema_decay"], now["ema_decay"])]
        states += [(f"loss.{key}", before["loss"][key], now["loss"][key]) for key in ("adversarial", "rate")]
        changed += [
            f"training.{key}={earlier} (now {later})"
            for key, earlier, later in states
            if bool(earlier) != bool(later)
        ]
        if changed:
            raise UserError(
                f"output.url={storage.redact(self._run_facts.output_url)}: holds a training with {', '.join(changed)}; "
                "give another output.url, or the same settings"
            )
        check_changes(
            self._find_changes(state),
            num_steps_done=state["trainer"]["num_steps_done"],
            num_steps=self.config.training.num_steps,
            output=storage.redact(self._run_facts.output_url),
        )

    def _find_changes(self, state: dict[str, Any]) -> dict[str, list[Any]]:
        settings = _list_settings(self._run_facts.config)
        return find_changes(state.get("settings", settings), settings)

    def _finish(self) -> None:
        """Calibrate on training images, measure on held-out ones, and publish checkpoint and model card."""
        run, config, model = self._run_facts, self.config, self.model
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
            ladders = calibrate_ladders(model, calibration.to(self.device))
            figures = measure(model, held_out.to(self.device), ladders, seed=config.seed)
        training = {
            "command": run.command,
            "config": to_dict(config.training),
            "seed": config.seed,
            "changes": self.curves.changes,
            "num_steps": config.training.num_steps,
            "start_s": round(self.curves.start_s),
            "train_s": round(self.curves.train_s),
            "curve": self.curves.losses,
            "held_out_curve": self.curves.held_out,
            "device": self.device.type,
            "precision": config.training.precision_on(self.device),
            "num_workers": self.num_ranks,
            "torch": torch.__version__,
            "calibration_images": len(calibration),
            "held_out": figures,
        }
        url = storage.join(run.output_url, "tokenizer")
        mark = save_tokenizer(url, model, ladders=ladders, training=training, half=config.output.half)
        publish_card(url, model, training, fingerprint=mark)


def _list_settings(config: dict[str, Any]) -> dict[str, Any]:
    """Of a TrainTokenizerConfig what makes the weights, but for the model."""
    parts = {name: config[name] for name in ("training", "input", "seed")}
    # How it is computed, where images lie, and what is behind.
    return flatten(
        parts,
        without=("training.microbatch_size", "training.compile", "training.start_crops", "input.shards"),
    )
