"""One shard of images: drawn, decoded, encoded as files, committed. Knows no Ray.

Shards share one sampler, in a thread of its own: while the last images of one are drawn, decoded and published, free
slots are at the first ones of the next. Pixels are decoded in groups of neighbours in number, always the same ones, so
that the bytes of an image depend on the plan and the models alone.
"""

from __future__ import annotations

import contextlib
import logging
import queue
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import ClassVar

import torch

from tatok_pipe import storage
from tatok_pipe.ar.checkpoint import load_generator
from tatok_pipe.ar.generation.exports import encode_image
from tatok_pipe.ar.generation.job import GenerationPlan, Requests
from tatok_pipe.ar.generation.layout import GeneratedImage, commit_shard
from tatok_pipe.ar.requests import ImageRequest, ImageTokens
from tatok_pipe.ar.sampler import Sampler
from tatok_pipe.errors import UserError
from tatok_pipe.nn.prepacked import prepack
from tatok_pipe.runs.activity import Activity, Track
from tatok_pipe.runs.shard_work import ShardResult, describe_error
from tatok_pipe.tokenizer.checkpoint import load_tokenizer
from tatok_pipe.tokens.dataset import records_to_tensors

logger = logging.getLogger(__name__)

_GROUP_IMAGES = 16  # decoded together
_LOOK_S = 1.0


@dataclass(frozen=True)
class GenerateJob:
    """What every shard of a run has in common. Small, and the same on every actor."""

    entry: ClassVar[str] = "generate"
    generator: str  # folder of the checkpoint
    tokenizer: str
    generator_fingerprint: str
    tokenizer_fingerprint: str
    output_url: str
    plan: GenerationPlan
    layout: str
    image_format: str
    num_slots: int
    precision: str  # "fp32" or "bf16"
    steps: str  # what computes them: "c" or "torch"

    def start_worker(self, *, device: str, num_threads: int) -> ImageWorker:
        return ImageWorker(self, device=device, num_threads=num_threads)


class _Inbox:
    """Requests of all shards. As an iterator it ends where there is none for now, and goes on when there is one."""

    def __init__(self) -> None:
        self._requests: queue.SimpleQueue[ImageRequest] = queue.SimpleQueue()
        self._first: ImageRequest | None = None

    def put(self, request: ImageRequest) -> None:
        self._requests.put(request)

    def wait(self) -> None:
        """Until there is one."""
        self._first = self._requests.get()

    def __iter__(self) -> Iterator[ImageRequest]:
        return self

    def __next__(self) -> ImageRequest:
        if self._first is not None:
            request, self._first = self._first, None
            return request
        try:
            return self._requests.get_nowait()
        except queue.Empty:
            raise StopIteration from None


class ImageWorker:
    """Holds generator and tokenizer on a device and makes shards of images."""

    def __init__(self, job: GenerateJob, *, device: str, num_threads: int) -> None:
        self.job = job
        self._device = torch.device(device)
        if self._device.type == "cpu":
            torch.set_num_threads(max(1, num_threads))
        generator = load_generator(job.generator, device=self._device)
        tokenizer = load_tokenizer(job.tokenizer, device=self._device)
        for url, found, planned in (
            (job.generator, generator.fingerprint, job.generator_fingerprint),
            (job.tokenizer, tokenizer.fingerprint, job.tokenizer_fingerprint),
        ):
            if found != planned:
                raise RuntimeError(
                    f"{storage.redact(url)} has fingerprint {found[:12]} on this machine, the run was planned with "
                    f"{planned[:12]}; give a URL that all nodes share"
                )
        self._spec = generator.tokens
        self._requests = Requests(
            job.plan,
            grid_side=tokenizer.model.config.grid_side,
            embedding_dim=generator.model.config.embedding_dim,
        )
        self._tokenizer = tokenizer.model
        prepack(self._tokenizer)  # so that pixels do not depend on the number of threads
        self._decoding = threading.Lock()
        self._sampler = Sampler(
            generator.model,
            job.plan.sampling,
            num_slots=job.num_slots,
            dtype={"fp32": torch.float32, "bf16": torch.bfloat16}[job.precision],
            steps=job.steps,
        )
        self.activity = Activity(num_lanes=1)
        self._stopping = threading.Event()
        self._inbox = _Inbox()
        self._outboxes: dict[int, queue.SimpleQueue[ImageTokens]] = {}  # by number of the image
        self._failure: BaseException | None = None  # of the sampler, whose state is lost then
        threading.Thread(target=self._draw, name="sampler", daemon=True).start()

    def __call__(self, url: str, *, max_tries: int) -> ShardResult:
        """Make and commit the shard of this name. An error of the shard is a result; nothing is raised for it."""
        start = time.monotonic()
        with self.activity.follow(url) as track:
            if self._stopping.is_set():
                return ShardResult(url, was_begun=False)
            track.begin()
            try:
                result = self._make(url, track)
            except Exception as error:
                if not isinstance(error, (OSError, UserError)):
                    logger.error("shard %s", url, exc_info=error)
                result = ShardResult(url, error=describe_error(error))
        return replace(result, seconds=time.monotonic() - start)

    def stop_taking(self) -> None:
        """Shards whose turn has not come come back at once, not begun. Those under way go on to their end."""
        self._stopping.set()

    def _make(self, name: str, track: Track) -> ShardResult:
        job, num_tokens = self.job, 0
        requests = {request.number: request for request in self._requests.shard(int(name))}
        images: list[GeneratedImage] = []
        group: list[ImageTokens] = []
        for tokens in self._in_order(requests, track):
            num_tokens += tokens.num_tokens
            group.append(tokens)
            if len(group) == _GROUP_IMAGES or len(images) + len(group) == len(requests):
                images += self._encode(group, requests)
                group = []
                track.touch()
        num_bytes = commit_shard(
            job.output_url, name, images, layout=job.layout, image_format=job.image_format
        )
        return ShardResult(name, num_images=len(images), num_tokens=num_tokens, bytes_out=num_bytes)

    def _in_order(self, requests: dict[int, ImageRequest], track: Track) -> Iterator[ImageTokens]:
        """The tokens of the images in order of their numbers; they come in another one."""
        outbox: queue.SimpleQueue[ImageTokens] = queue.SimpleQueue()
        for number, request in requests.items():
            self._outboxes[number] = outbox
            self._inbox.put(request)
        waiting: dict[int, ImageTokens] = {}
        num_steps, num_drawn = self._sampler.statistics.num_steps, 0
        for number in requests:
            while number not in waiting:
                if self._failure is not None:
                    raise RuntimeError(f"the sampler failed: {self._failure}") from self._failure
                # Where the slots are at another shard, that is a sign of life too.
                if self._sampler.statistics.num_steps != num_steps:
                    num_steps = self._sampler.statistics.num_steps
                    track.touch()
                with contextlib.suppress(queue.Empty):
                    tokens = outbox.get(timeout=_LOOK_S)
                    waiting[tokens.number] = tokens
                    num_drawn += 1
                    share = num_drawn / len(requests)
                    track.advance(images=1, tokens=tokens.num_tokens, quarantined=0, share=share)
            yield waiting.pop(number)

    def _encode(
        self, group: list[ImageTokens], requests: dict[int, ImageRequest]
    ) -> Iterator[GeneratedImage]:
        with self._decoding:
            tensors = records_to_tensors(
                group, num_globals=self._spec.num_globals, num_patches=self._spec.num_patches
            )
            tensors = [each.to(self._device) for each in tensors]
            pictures = self._tokenizer.decode(*tensors)  # (B, 3, S, S)
        pixels = (pictures.permute(0, 2, 3, 1) * 255).round().to(torch.uint8).cpu().numpy()
        for tokens, picture in zip(group, pixels, strict=True):
            request = requests[tokens.number]
            yield GeneratedImage(
                number=tokens.number,
                seed=request.seed,
                label=request.label,
                global_codes=tokens.global_codes.tolist(),
                patch_codes=tokens.patch_codes.tolist(),
                patch_positions=tokens.patch_positions.tolist(),
                image=encode_image(picture, self.job.image_format),
            )

    def _draw(self) -> None:
        """The sampler's thread."""
        try:
            while True:
                self._inbox.wait()
                with self.activity.encoding():
                    for tokens in self._sampler.sample(self._inbox):
                        outbox = self._outboxes.pop(tokens.number, None)
                        # None: an attempt that failed asked for it too, and it was given out then.
                        if outbox is not None:
                            outbox.put(tokens)
        except BaseException as error:
            self._failure = error
            raise
