"""Scalars and pictures of a training as a run at Weights & Biases."""

from __future__ import annotations

import importlib.util
import logging
import secrets
import tempfile
import threading
from collections.abc import Callable
from pathlib import Path
from queue import SimpleQueue
from typing import Any

import numpy as np

from tatok_pipe import storage
from tatok_pipe.errors import UserError

logger = logging.getLogger(__name__)

_FOLDER = "wandb"  # in a training's output
_ID = "run_id"  # the file in it that says which run is this training's
_BEGIN_S = 30.0  # that W&B's server may take to answer at the start
_FINISH_S = 30.0  # and to take what is left at the end
_SPARE_S = 15.0  # besides, for the library itself


def check_wandb(project: str | None) -> None:
    """Raise UserError where a project is given and the package is missing."""
    spec = importlib.util.find_spec("wandb")
    # A folder ./wandb, which the library leaves where it runs, can be imported too and has no file.
    if project is not None and (spec is None or spec.origin is None):
        raise UserError(
            f"logging.wandb_project={project}: the package wandb is missing; pip install 'tatok_pipe[wandb]'"
        )


class WeightsAndBiases:
    """One run for all attempts of the training at `output_url`, whose folder wandb/ has its id, and the files that
    `wandb sync` takes where the server was not reached, or was not to be (WANDB_MODE=offline).

    All calls of the library, of which some wait for the server, are made by a thread, in turn. A first error is said,
    and is the end of it.
    """

    def __init__(self, output_url: str, *, project: str, config: dict[str, Any], first_step: int) -> None:
        self._url = storage.join(output_url, _FOLDER)
        self._folder = tempfile.TemporaryDirectory(prefix="tatok-wandb-", ignore_cleanup_errors=True)
        self._published: dict[str, int] = {}  # sizes by name
        self._run: Any = None
        self._calls: SimpleQueue[Callable[[], None] | None] = SimpleQueue()
        self._thread = threading.Thread(target=self._make_calls, name="wandb", daemon=True)
        self._thread.start()
        name = storage.redact(output_url).rstrip("/").rpartition("/")[2]
        shown = redact_all(config)
        self._calls.put(lambda: self._begin(project, name, shown, first_step))

    def scalars(self, group: str, step: int, figures: dict[str, float]) -> None:
        values = {f"{group}/{name}": value for name, value in figures.items()}
        self._calls.put(lambda: self._log(values, step))

    def picture(self, name: str, step: int, pixels: np.ndarray) -> None:
        """Pixels (H, W, 3) uint8."""

        def log() -> None:
            from wandb import Image

            self._log({name: Image(pixels)}, step)

        self._calls.put(log)

    def publish(self) -> None:
        """Put the files that the library has written so far beside the checkpoints."""
        try:
            for path in sorted(Path(self._folder.name).glob("wandb/*run-*/**/*")):
                name = str(path.relative_to(Path(self._folder.name, "wandb")))
                if path.is_file() and "/logs/" not in name:
                    self._publish(path, name)
        except OSError as error:
            told = storage.redact(f"{self._url}: the files of Weights & Biases are not written: {error}")
            logger.warning("%s", told)

    def close(self) -> None:
        self._calls.put(self._finish)
        self._calls.put(None)
        self._thread.join(_BEGIN_S + _FINISH_S + _SPARE_S)
        if self._thread.is_alive():
            logger.warning("Weights & Biases does not answer; what it was not told is not waited for")
        self.publish()
        self._folder.cleanup()

    def _make_calls(self) -> None:
        while (call := self._calls.get()) is not None:
            try:
                call()
            except Exception as error:  # the library has kinds of its own, and those of what it is made of
                self._give_up(error)

    def _begin(self, project: str, name: str, config: dict[str, Any], first_step: int) -> None:
        import wandb

        self._run = wandb.init(
            project=project,
            id=self._find_id(),
            name=name,
            config=config,
            allow_val_change=True,
            resume="allow",
            dir=self._folder.name,
            reinit="create_new",
            settings=wandb.Settings(
                init_timeout=_BEGIN_S,
                finish_timeout=_FINISH_S,
                finish_timeout_raises=True,
                console="off",
                silent=True,
                symlink=False,
                disable_git=True,
                # The command line of a Ray worker, which has the cluster's address and tokens in it.
                x_disable_meta=True,
                stop_fn=_refuse_stop,
            ),
        )
        if self._run.disabled:
            return
        files = f"`wandb sync` sends what is in {storage.redact(self._url)}"
        logger.info("Weights & Biases: %s", f"offline, {files}" if self._run.offline else self._run.url)
        if first_step < self._run.starting_step:
            logger.warning(
                "Weights & Biases: steps %d to %d stay as an attempt has told them that was lost after its last "
                "checkpoint", first_step, self._run.starting_step - 1,
            )  # fmt: skip

    def _find_id(self) -> str:
        """The id of this output's run, made where there is none. Not made of the URL alone: a training begun anew in a
        folder that was emptied is another run, and W&B never gives an id again whose run was deleted."""
        url = storage.join(self._url, _ID)
        if not storage.exists(url):
            storage.publish_bytes(secrets.token_hex(8).encode(), url, exclusive=True)
        return storage.read_bytes(url).decode()

    def _log(self, values: dict[str, Any], step: int) -> None:
        # A step that the run has cannot be told again.
        if self._run is not None and step >= self._run.starting_step:
            self._run.log(values, step=step)

    def _finish(self) -> None:
        if self._run is not None:
            self._run.finish()

    def _publish(self, path: Path, name: str) -> None:
        """As it is now: the library goes on writing."""
        data = path.read_bytes()
        if self._published.get(name) != len(data):
            storage.publish_bytes(data, storage.join(self._url, *name.split("/")), exclusive=False)
            self._published[name] = len(data)

    def _give_up(self, error: Exception) -> None:
        told = storage.redact(" ".join(str(error).split()))
        logger.warning("Weights & Biases is told no more, the training goes on: %s", told or repr(error))
        self._run = None


def redact_all(config: Any) -> Any:
    """Nested dicts and lists with credentials hidden in every text."""
    if isinstance(config, dict):
        return {key: redact_all(value) for key, value in config.items()}
    if isinstance(config, list):
        return [redact_all(value) for value in config]
    return storage.redact(config) if isinstance(config, str) else config


def _refuse_stop() -> None:
    """In place of the library's own, which would interrupt a worker, that Ray would start again."""
    logger.warning("Weights & Biases asks for a stop, which is not obeyed: end the command that trains")
