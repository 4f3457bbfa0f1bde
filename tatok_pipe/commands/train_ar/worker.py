"""What is special to train_ar in each Ray Train worker: a step on packed rows of tokens, held-out losses, and the
finished generator. The loop itself is `ray_runtime/training_loop.py`."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict

from tatok_pipe import storage
from tatok_pipe.ar import training_state
from tatok_pipe.ar.batch import BatchTensors, Vocabulary, to_tensors
from tatok_pipe.ar.checkpoint import save_generator
from tatok_pipe.ar.codeword_start import start_from_codewords
from tatok_pipe.ar.loss_parts import LossParts
from tatok_pipe.ar.model import Generator
from tatok_pipe.ar.parallel import parallelize
from tatok_pipe.ar.throughput import Ceiling, Throughput
from tatok_pipe.ar.trainer import GeneratorTrainer
from tatok_pipe.ar.training_log import last_losses, loss_line, loss_terms, speed_line
from tatok_pipe.commands.train_ar.options import TrainArConfig
from tatok_pipe.config.load import from_dict
from tatok_pipe.ray_runtime.training_log import TrainingLog
from tatok_pipe.ray_runtime.training_task import Checkpoint, TrainingRun, Worker
from tatok_pipe.storage.json_types import to_json_types
from tatok_pipe.tokens.loading.conditions import ConditionConfig
from tatok_pipe.tokens.loading.mixing import Mixing
from tatok_pipe.tokens.loading.sources import Source
from tatok_pipe.tokens.loading.step_loader import LoaderConfig, StepBatch, StepLoader
from tatok_pipe.tokens.spec import TokenSpec

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class GeneratorRun(TrainingRun):
    tokens: dict[str, Any]  # TokenSpec of the dataset
    dataset: dict[
        str, Any
    ]  # its version: number, where it has one, and digest; of a mix as `TrainingData.to_json`
    sources: list[Source]  # the datasets with their token shards as they were at the start
    mixing: Mixing | None
    elements_per_sequence: float  # mean
    unigram_nats: dict[str, float]  # entropy of single codes, "global" and "patch"
    untrained_classes: list[int]  # that no image to be trained on has
    codewords: np.ndarray | None  # (V, C) float32 of the patch codes, which begin as them; None: at random


class GeneratorTraining:
    """See `Training`."""

    def __init__(self, run: GeneratorRun, worker: Worker) -> None:
        self._run = run
        self._worker = worker
        self._config = from_dict(TrainArConfig, run.config)
        self._curve: list[dict[str, Any]] = []  # what does not depend on the machine
        self._counts = np.zeros(
            len(run.sources), np.int64
        )  # images of each dataset, since the training began

    @property
    def num_steps_done(self) -> int:
        return self._trainer.num_steps_done

    def begin(self, checkpoint: Checkpoint | None) -> bool:
        run, config, worker = self._run, self._config, self._worker
        torch.manual_seed(config.seed)
        vocabulary = Vocabulary.from_spec(TokenSpec.from_json(run.tokens))
        model = Generator(config.model, vocabulary)
        if run.codewords is not None:
            start_from_codewords(model, torch.from_numpy(run.codewords))
        self._model = model.to(worker.device)
        parallel = parallelize(self._model, config.training, device=worker.device, num_ranks=worker.num_ranks)
        self._trainer = GeneratorTrainer(
            self._model, parallel.network, config.training, num_steps=run.num_steps, device=worker.device,
            seed=config.seed, rank=worker.rank, num_ranks=worker.num_ranks, set_sync=parallel.set_sync,
        )  # fmt: skip
        self._loader = self._open_loader("train")
        self._window = LossParts.zeros(vocabulary, device=worker.device)  # since the last logged line
        if checkpoint is not None:
            training_state.load(checkpoint.folder, self._trainer, checkpoint.counters)
            extra = checkpoint.extras[0]
            # A mix that takes the place of one dataset goes by the steps that were done.
            self._loader.load_state_dict({"step": self.num_steps_done, **extra["loader"]})
            self._window.sums.copy_(torch.tensor(extra["window"], dtype=torch.float64))
            self._curve = extra["curve"] if worker.leads else []
            if len(counts := extra.get("images_of_sources", [])) == len(self._counts):
                self._counts += np.array(counts, np.int64)
        self._batches = iter(self._loader)
        self._ceiling = Ceiling(worker.device, precision=config.training.precision_on(worker.device))
        self._flops = self._model.flops_per_token(run.elements_per_sequence)
        self._speed = Throughput()
        return False

    def step(self) -> None:
        start = time.perf_counter()
        batch = self._batch = next(self._batches)
        self._speed.waited(time.perf_counter() - start)
        self._result = self._trainer.step(self._tensors(batch), num_codes=batch.num_codes)
        self._window.sums.add_(self._result.losses.sums)
        self._counts += np.array(batch.num_sequences_of, np.int64)
        self._speed.did(elements=batch.num_elements, slots=batch.num_slots, sequences=batch.num_sequences)

    def losses_line(self) -> str:
        return loss_line(self._window.figures())

    def log_steps(self, log: TrainingLog | None) -> None:
        figures, result = self._window.figures(), self._result
        figures |= {"grad_norm": float(result.grad_norm), "learning_rate": result.learning_rate}
        self._window.sums.zero_()
        if log is None:
            return
        peak = self._worker.num_ranks * self._ceiling.flops_per_s()
        speed = self._speed.take(flops_per_element=self._flops, peak_flops_per_s=peak)
        self._tell(figures, split="train")
        line = f"{self._progress_line()} {loss_line(figures)} | {speed_line(speed)}"
        log.steps(self.num_steps_done, line, figures, losses=loss_terms(figures), speed=speed)

    def validate(self, log: TrainingLog | None) -> None:
        loader = self._open_loader("held_out")

        def batches() -> Iterator[Sequence[BatchTensors]]:
            for number, batch in enumerate(loader):
                if number == self._config.validation.max_steps:
                    return
                yield self._tensors(batch)

        losses = self._trainer.validate(batches())
        if log is not None:
            figures, unigram = losses.figures(), self._run.unigram_nats
            self._tell(figures, split="held_out")
            line = (
                f"({losses.num_sequences} images): {loss_line(figures)}; {figures['bits_per_image']:.1f} bits/image; "
                f"single codes alone: global {unigram['global']:.3f}, patch {unigram['patch']:.3f}"
            )
            log.held_out(self.num_steps_done, line, figures, losses=loss_terms(figures))
        self._speed = Throughput()

    def find_broken(self) -> str:
        return self._trainer.find_broken()

    def save(self, folder: Path) -> dict[str, Any]:
        return training_state.save(folder, self._trainer)

    def extra(self) -> dict[str, Any]:
        return {
            "loader": self._loader.state_dict(),
            "window": self._window.sums.tolist(),
            "curve": self._curve,
            **self._images(),
            "model": self._run.config["model"],
            "tokens": self._run.tokens,
            "dataset": self._run.dataset,
            "from_codewords": self._run.codewords is not None,
        }

    def finish(self, changes: list[dict[str, Any]]) -> str:
        """Write the finished generator; every worker brings its part of the weights."""
        average = self._trainer.average
        with average.in_place() if average is not None else nullcontext():
            weights: dict[str, Any] = get_model_state_dict(
                self._model, options=StateDictOptions(full_state_dict=True, cpu_offload=True)
            )
            weights = {name: tensor.clone() for name, tensor in weights.items()}
        run, url = self._run, storage.join(self._run.output_url, "generator")
        if not self._worker.leads:
            return ""
        training = {
            "command": run.command,
            "config": {name: value for name, value in run.config.items() if name != "model"},
            "dataset": run.dataset,
            **self._images(),
            "changes": changes,
            "num_steps": run.num_steps,
            "curve": self._curve,
            "held_out": next((each for each in self._curve[::-1] if each["split"] == "held_out"), None),
            "untrained_classes": run.untrained_classes,
            "unigram_nats": run.unigram_nats,
            "device": self._worker.device.type,
            "num_workers": self._worker.num_ranks,
            "torch": torch.__version__,
        }
        save_generator(
            url, weights, config=self._config.model, tokens=TokenSpec.from_json(run.tokens), training=training
        )
        logger.info("generator: %s", storage.redact(url))
        return storage.redact(url)

    def figures(self) -> dict[str, Any]:
        return last_losses(self._curve)

    def _images(self) -> dict[str, list[int]]:
        """How many images of each dataset of a mix were trained on; nothing to tell where there is one."""
        return {} if self._run.mixing is None else {"images_of_sources": self._counts.tolist()}

    def _progress_line(self) -> str:
        if self._run.mixing is None:
            return f"epoch {self._batch.epoch}"
        urls = [storage.redact(source.url).rstrip("/") for source in self._run.sources]
        short = [url.rpartition("/")[2] for url in urls]
        names = short if len(set(short)) == len(short) else urls
        told = [f"{count} of {name}" for count, name in zip(self._counts, names, strict=True)]
        return f"images {', '.join(told)};"

    def _open_loader(self, split: str) -> StepLoader:
        run, config, model = self._run, self._config, self._config.model
        return StepLoader(
            run.sources,
            TokenSpec.from_json(run.tokens),
            LoaderConfig(
                row_tokens=config.packing.row_tokens, rows_per_step=config.rows_per_step,
                rows_per_microbatch=config.training.microbatch_rows,
                window_sequences=config.packing.window_sequences, held_out_share=config.validation.share,
                on_dataset_change=config.input.on_dataset_change,
            ),
            condition=ConditionConfig(
                kind=model.condition, num_classes=model.num_classes,
                embeddings_url=run.sources[0].embeddings_url,
                embeddings_column=config.input.condition_column or "", embedding_size=model.embedding_dim,
                drop_condition=config.drop_condition,
            ),
            mixing=run.mixing, rank=self._worker.rank, num_ranks=self._worker.num_ranks, seed=config.seed, split=split,
        )  # fmt: skip

    def _tell(self, figures: dict[str, float], *, split: str) -> None:
        self._curve.append({"step": self.num_steps_done, "split": split} | to_json_types(figures))

    def _tensors(self, batch: StepBatch) -> list[BatchTensors]:
        return [
            to_tensors(each, self._worker.device, vocabulary=self._model.vocabulary)
            for each in batch.microbatches
        ]
