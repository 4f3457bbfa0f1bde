"""What each Ray Train worker of train_ar runs: restore, step by step to the end, checkpoints on the way.

All workers do the same number of reports, exchanges and checkpoints: whatever decides on one of them is either the
same everywhere (steps, the data, which every worker reads whole) or told by worker 0.
"""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import ray.train
import ray.train.collective
import ray.train.torch
import ray.util
import torch
from ray.train import CheckpointUploadMode, PreemptionInfo
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict

from tatok_pipe import storage
from tatok_pipe.ar.batch import BatchTensors, Vocabulary, to_tensors
from tatok_pipe.ar.checkpoint import save_generator
from tatok_pipe.ar.loss_parts import LossParts
from tatok_pipe.ar.model import Generator
from tatok_pipe.ar.parallel import parallelize
from tatok_pipe.ar.throughput import Ceiling, Throughput
from tatok_pipe.ar.trainer import GeneratorTrainer
from tatok_pipe.ar.training_log import TrainingLog, loss_line, loss_terms, speed_line
from tatok_pipe.commands.train_ar.options import TrainArConfig
from tatok_pipe.config.load import from_dict
from tatok_pipe.errors import UserError
from tatok_pipe.ray_runtime.generator_checkpoints import GeneratorCheckpoints
from tatok_pipe.ray_runtime.metrics import TrainingMetrics
from tatok_pipe.ray_runtime.training import FIRST_LINE_S, STORAGE_MARKER, Driver
from tatok_pipe.runs.progress import format_duration
from tatok_pipe.tokens.conditions import ConditionConfig
from tatok_pipe.tokens.loader import LoaderConfig, StepBatch, TokenLoader
from tatok_pipe.tokens.spec import TokenSpec
from tatok_pipe.tokens.windows import ShardRows
from tatok_pipe.training.settings import check_changes, find_changes, flatten, show_changes

logger = logging.getLogger(__name__)

# Of the section `training`: how it is computed. (`epochs` is in the number of steps.)
_NO_MATTER = tuple(
    f"training.{name}" for name in ("epochs", "microbatch_rows", "shard", "compile", "checkpoint_activations")
)
_STOPPING = "stopping"
_LEAVING = "a node is leaving"
_FAREWELL_S = 3.0  # before the end of its notice, besides what checkpoints take


@dataclass(frozen=True)
class GeneratorRun:
    """What the driver has found out and every worker is told."""

    config: dict[str, Any]  # TrainArConfig
    tokens: dict[str, Any]  # TokenSpec of the dataset
    shards: list[ShardRows]  # token shards as they were at the start
    output_url: str
    num_steps: int
    elements_per_sequence: float  # mean
    unigram_nats: dict[str, float]  # entropy of single codes, "global" and "patch"
    has_held_out: bool  # whether any image is held out
    untrained_classes: list[int]  # that no image to be trained on has
    command: str


def train_generator(loop: dict[str, Any]) -> None:
    """The loop of one worker; see `run_training`."""
    _Worker(loop["run"], loop["driver"]).run()


def list_settings(config: dict[str, Any], *, num_steps: int) -> dict[str, Any]:
    """Of a TrainArConfig what makes the weights; how long they are trained as a number of steps."""
    parts = {name: config[name] for name in ("training", "packing", "drop_condition", "seed")}
    parts["validation"] = {"share": config["validation"]["share"]}
    return flatten(parts, without=_NO_MATTER) | {"training.steps": num_steps}


def make_loader(
    run: GeneratorRun, config: TrainArConfig, *, rank: int, num_ranks: int, split: str
) -> TokenLoader:
    """The batches of a worker; `split` is "train" or "held_out"."""
    model = config.model
    return TokenLoader(
        config.input.url,
        TokenSpec.from_json(run.tokens),
        run.shards,
        LoaderConfig(
            row_tokens=config.packing.row_tokens,
            rows_per_step=config.rows_per_step,
            rows_per_microbatch=config.training.microbatch_rows,
            window_sequences=config.packing.window_sequences,
            held_out_share=config.validation.share,
            on_dataset_change=config.input.on_dataset_change,
        ),
        condition=ConditionConfig(
            kind=model.condition,
            num_classes=model.num_classes,
            embeddings_url=config.input.condition_url or "",
            embedding_size=model.embedding_dim,
            drop_condition=config.drop_condition,
        ),
        rank=rank,
        num_ranks=num_ranks,
        seed=config.seed,
        split=split,
    )


class _Worker:
    def __init__(self, run: GeneratorRun, driver: Driver) -> None:
        self.run_facts = run
        self.config = from_dict(TrainArConfig, run.config)
        context = ray.train.get_context()
        self.rank, self.num_ranks = context.get_world_rank(), context.get_world_size()
        self.device = ray.train.torch.get_device()
        if self.device.type == "cpu":
            torch.set_num_threads(max(1, int(os.environ.get("OMP_NUM_THREADS", "1"))))
        self._driver = driver
        self._leaving: set[str] = set()  # nodes for which a checkpoint was made
        self._is_farewell_due = False  # one more, when their time is nearly over
        self._save_s = 0.0  # the longest that a checkpoint took

    @property
    def leads(self) -> bool:
        return self.rank == 0

    def run(self) -> None:
        """Train to the end, or to where the driver wants it to stop, and tell it which."""
        run, config = self.run_facts, self.config
        checkpoints_url = storage.join(run.output_url, "checkpoints")
        if not storage.exists(storage.join(checkpoints_url, STORAGE_MARKER)):
            raise UserError(
                f"output.url={storage.redact(run.output_url)}: node {ray.util.get_node_ip_address()} sees another "
                "folder there than the driver; give one that all nodes share, or an object store"
            )
        tokens = TokenSpec.from_json(run.tokens)
        torch.manual_seed(config.seed)
        model = Generator(config.model, Vocabulary.from_spec(tokens)).to(self.device)
        parallel = parallelize(model, config.training, device=self.device, num_ranks=self.num_ranks)
        self.trainer = GeneratorTrainer(
            model,
            parallel.network,
            config.training,
            num_steps=run.num_steps,
            device=self.device,
            seed=config.seed,
            rank=self.rank,
            num_ranks=self.num_ranks,
            set_sync=parallel.set_sync,
        )
        logger.info("worker %d of %d: process %d", self.rank, self.num_ranks, os.getpid())
        self.loader = make_loader(run, config, rank=self.rank, num_ranks=self.num_ranks, split="train")
        self.window = LossParts.zeros(model.vocabulary, device=self.device)  # since the last logged line
        self.metrics = TrainingMetrics("train_ar") if self.leads else None
        self.checkpoints = GeneratorCheckpoints(
            checkpoints_url,
            self.trainer,
            self.metrics,
            attempt=ray.train.collective.broadcast_from_rank_zero(os.urandom(4).hex()),
            num_to_keep=config.checkpoints.keep,
            driver=self._driver,
        )
        extra = self.checkpoints.restore()
        self.settings, self.changes = list_settings(run.config, num_steps=run.num_steps), []
        if extra:
            self._take_changes(extra)
            self.loader.load_state_dict(extra["loader"])
            self.window.sums.copy_(torch.tensor(extra["window"], dtype=torch.float64))
        self.log = (
            TrainingLog(
                storage.join(run.output_url, "tensorboard"),
                curve=extra.get("curve", []),
                first_step=self.trainer.num_steps_done,
            )
            if self.leads
            else None
        )
        if self.metrics is not None:
            self.metrics.begin(step=self.trainer.num_steps_done, num_steps=run.num_steps)
        is_done = self._train(model)
        if is_done:
            self._save(CheckpointUploadMode.SYNC)
            self._export(model)
        if self.log is not None and self.metrics is not None:
            self.log.close()
            self.metrics.close()
            figures = self.log.last_losses | {"workers": self.num_ranks}
            self._driver.tell({"step": self.trainer.num_steps_done, "is_done": is_done, "figures": figures})

    def _take_changes(self, extra: dict[str, Any]) -> None:
        """Write down what is other than in the checkpoint, from this step on. Raises RefusedError where no step is left
        that would be done so."""
        run, step = self.run_facts, self.trainer.num_steps_done
        changes = find_changes(extra.get("settings", self.settings), self.settings)
        check_changes(
            changes, num_steps_done=step, num_steps=run.num_steps, output=storage.redact(run.output_url)
        )
        self.changes = [
            *extra.get("changes", []),
            *([{"step": step, "settings": changes}] if changes else []),
        ]
        if changes and self.leads:
            logger.warning("from step %d on: %s", step, show_changes(changes))

    def _train(self, model: Generator) -> bool:
        """Whether all steps are done; False where the driver stopped the training, which is saved then."""
        run, config, trainer = self.run_facts, self.config, self.trainer
        ceiling = Ceiling(self.device, precision=config.training.precision_on(self.device))
        flops = model.flops_per_token(run.elements_per_sequence)
        speed = Throughput()
        batches = iter(self.loader)
        begin_s, has_line = time.monotonic(), False
        last_norm = torch.zeros(())
        while trainer.num_steps_done < run.num_steps:
            if self._must_stop():
                return False
            start = time.perf_counter()
            batch = next(batches)
            speed.waited(time.perf_counter() - start)
            try:
                result = trainer.step(self._tensors(batch), num_codes=batch.num_codes)
            except UserError:
                self.checkpoints.settle()
                raise
            self.window.sums.add_(result.losses.sums)
            last_norm = result.grad_norm
            speed.did(elements=batch.num_elements, slots=batch.num_slots, sequences=batch.num_sequences)
            step, is_last = trainer.num_steps_done, trainer.num_steps_done == run.num_steps
            is_logged = step % config.logging.every_steps == 0 or is_last
            if self.leads and not (has_line or is_logged) and time.monotonic() > begin_s + FIRST_LINE_S:
                # For whoever waits; it stands in no curve, as that must not depend on the machine.
                logger.info("step %d/%d %s", step, run.num_steps, loss_line(self.window.figures()))
                has_line = True
            has_line = has_line or is_logged
            if is_logged:
                figures = self.window.figures()
                figures |= {"grad_norm": float(last_norm), "learning_rate": result.learning_rate}
                self.window.sums.zero_()
                if self.log is not None and self.metrics is not None:
                    rates = speed.take(
                        flops_per_element=flops, peak_flops_per_s=self.num_ranks * ceiling.flops_per_s()
                    )
                    self.log.train(step, figures, rates)
                    left_s = (run.num_steps - step) * rates["step_s"]
                    self.metrics.logged(step, figures=figures | rates, eta_s=left_s)
                    self.metrics.losses(loss_terms(figures), split="train")
                    logger.info(
                        "step %d/%d epoch %d %s | %s, %s left",
                        step, run.num_steps, batch.epoch, loss_line(figures), speed_line(rates),
                        format_duration(left_s),
                    )  # fmt: skip
            if run.has_held_out and (step % config.validation.every_steps == 0 or is_last):
                self._validate()
                speed = Throughput()
            if step % config.checkpoints.every_steps == 0 and not is_last:
                self._save(
                    CheckpointUploadMode.ASYNC
                    if config.checkpoints.upload == "async"
                    else CheckpointUploadMode.SYNC
                )
        return True

    def _tensors(self, batch: StepBatch) -> list[BatchTensors]:
        return [
            to_tensors(each, self.device, vocabulary=self.trainer.model.vocabulary)
            for each in batch.microbatches
        ]

    def _must_stop(self) -> bool:
        """Whether the driver wants an end; saves then, and also when a node of ours is about to leave."""
        leaving = ray.train.get_preemption_info()  # the same for all workers
        # Clocks and the driver's word are not, so worker 0 decides.
        action = self._choose(leaving) if self.leads else None
        action = ray.train.collective.broadcast_from_rank_zero(action)
        if action is None:
            return False
        if self.leads:
            logger.info("%s: checkpoint at step %d", action, self.trainer.num_steps_done)
        start = time.monotonic()
        self._save(CheckpointUploadMode.SYNC)
        self._save_s = max(self._save_s, time.monotonic() - start)
        return action == _STOPPING

    def _choose(self, leaving: PreemptionInfo | None) -> str | None:
        """Why a checkpoint is due before the next step: at the first news of a node that leaves, and once more when
        its time is nearly over, so that what is done in between is not lost."""
        if self._driver.wants_stop():
            return _STOPPING
        if leaving is None:
            return None
        news = set(leaving.preempted_node_ids) - self._leaving
        if news:
            self._leaving |= news
            self._is_farewell_due = leaving.deadline_ms is not None
            return _LEAVING
        if self._is_farewell_due and leaving.deadline_ms is not None:
            left_s = leaving.deadline_ms / 1000 - time.time()
            if left_s < _FAREWELL_S + 3 * self._save_s:
                self._is_farewell_due = False
                return _LEAVING
        return None

    def _validate(self) -> None:
        config, step = self.config, self.trainer.num_steps_done
        loader = make_loader(
            self.run_facts, config, rank=self.rank, num_ranks=self.num_ranks, split="held_out"
        )

        def batches() -> Iterator[Sequence[BatchTensors]]:
            for number, batch in enumerate(loader):
                if number == config.validation.max_steps:
                    return
                yield self._tensors(batch)

        losses = self.trainer.validate(batches())
        if self.log is None or self.metrics is None:
            return
        figures, unigram = losses.figures(), self.run_facts.unigram_nats
        self.log.held_out(step, figures)
        self.metrics.losses(loss_terms(figures), split="held_out")
        self.log.publish()
        logger.info(
            "step %d held out (%d images): %s; %.1f bits/image; single codes alone: global %.3f, patch %.3f",
            step, losses.num_sequences, loss_line(figures), figures["bits_per_image"], unigram["global"],
            unigram["patch"],
        )  # fmt: skip

    def _save(self, mode: CheckpointUploadMode) -> None:
        extra = {
            "loader": self.loader.state_dict(),
            "window": self.window.sums.tolist(),
            "curve": self.log.curve if self.log is not None else [],
            "model": self.run_facts.config["model"],
            "tokens": self.run_facts.tokens,
            "settings": self.settings,
            "changes": self.changes,
        }
        self.checkpoints.save(extra, mode)
        if self.log is not None:
            self.log.publish()

    def _export(self, model: Generator) -> None:
        """Write the finished generator; every worker brings its part of the weights."""
        average = self.trainer.average
        with average.in_place() if average is not None else nullcontext():
            weights: dict[str, Any] = get_model_state_dict(
                model, options=StateDictOptions(full_state_dict=True, cpu_offload=True)
            )
            weights = {name: tensor.clone() for name, tensor in weights.items()}
        if self.log is None:
            return
        run = self.run_facts
        training = {
            "command": run.command,
            "config": {name: value for name, value in run.config.items() if name != "model"},
            "changes": self.changes,
            "num_steps": run.num_steps,
            "curve": self.log.curve,
            "held_out": next((each for each in self.log.curve[::-1] if each["split"] == "held_out"), None),
            "untrained_classes": run.untrained_classes,
            "unigram_nats": run.unigram_nats,
            "device": self.device.type,
            "num_workers": self.num_ranks,
            "torch": torch.__version__,
        }
        url = storage.join(run.output_url, "generator")
        save_generator(
            url, weights, config=self.config.model, tokens=TokenSpec.from_json(run.tokens), training=training
        )
        logger.info("generator: %s", storage.redact(url))
