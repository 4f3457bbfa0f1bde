"""One image shard in, one committed token shard out: read, decode, encode, filter, write, commit. Knows no Ray.

Reading, decoding and encoding overlap through bounded queues, and results are taken in source order. On CPU
every batch is encoded by one thread and several batches run side by side: splitting one product over threads
would make the last bits, and so now and then a code, depend on how many CPUs an actor has.

Letters: B images a batch, S image size, K globals, N patches.
"""

from __future__ import annotations

import logging
import os
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np
import torch

from tatok_pipe import storage
from tatok_pipe.images.decode import DecodeError, PreprocessConfig, decode_image
from tatok_pipe.images.shards import ShardError, ShardLimits, read_samples
from tatok_pipe.parallel import map_ahead
from tatok_pipe.records import DecodedImage, ImageSample, Quarantined, TokenRecord
from tatok_pipe.tokenizer.checkpoint import Tokenizer, load_tokenizer
from tatok_pipe.tokenizer.dtf import Filter
from tatok_pipe.tokenizer.trainer import to_model_input
from tatok_pipe.tokens.dataset import commit_shard
from tatok_pipe.tokens.format import ShardSource, ShardWriter, token_shard_name, write_quarantine
from tatok_pipe.tokens.spec import TokenSpec

logger = logging.getLogger(__name__)

# Encoded images that may wait for a decoder, or be with one. Bounds memory where members are large.
_WAITING_BYTES = 256 << 20


def token_spec(tokenizer: Tokenizer, filter: Filter, *, encoding: dict[str, Any]) -> TokenSpec:
    """What the rows of a run with this tokenizer and filter will be."""
    model = tokenizer.model.config
    return TokenSpec(
        num_globals=model.num_globals,
        num_patches=model.num_patches,
        global_vocab=model.global_codebook.vocab_size,
        patch_vocab=model.patch_codebook.vocab_size,
        image_size=model.image_size,
        patch_size=model.patch_size,
        tokenizer_fingerprint=tokenizer.fingerprint,
        dtf=asdict(filter),
        encoding=encoding,
    )


@dataclass(frozen=True)
class ShardJob:
    """What every shard of a run has in common. Small, and the same on every actor."""

    checkpoint: str
    output_url: str
    spec: TokenSpec
    filter: Filter
    preprocess: PreprocessConfig
    limits: ShardLimits
    precision: str  # "fp32" or "bf16"
    batch_size: int
    mutual_information: bool
    patch_entropy: bool


@dataclass(frozen=True)
class ShardResult:
    """What became of a shard. `error` is empty where it is committed, by this attempt or by another one."""

    url: str
    error: str = ""
    num_images: int = 0
    num_tokens: int = 0
    num_quarantined: int = 0
    seconds: float = 0.0


@dataclass(frozen=True)
class Group:
    """Consecutive samples: at most B decoded images, with the quarantined samples among them."""

    images: list[DecodedImage]
    quarantined: list[Quarantined]


@dataclass(frozen=True)
class Progress:
    """What came since the last report, and the share of the current shard that is behind us."""

    num_images: int
    num_tokens: int
    num_quarantined: int
    share: float


Report = Callable[[Progress], None]


class ShardTokenizer:
    """Holds the model on a device and tokenizes shards, one after the other."""

    def __init__(self, job: ShardJob, *, device: str, num_threads: int) -> None:
        self.job = job
        self.device = torch.device(device)
        self.num_threads = max(1, num_threads)
        if self.device.type == "cpu":
            torch.set_num_threads(1)
        self.num_lanes = self.num_threads if self.device.type == "cpu" else 1
        self.tokenizer: Tokenizer = load_tokenizer(job.checkpoint, device=self.device)
        if self.tokenizer.fingerprint != job.spec.tokenizer_fingerprint:
            raise RuntimeError(
                f"{storage.redact(job.checkpoint)} has fingerprint {self.tokenizer.fingerprint[:12]} on this machine, "
                f"the run was planned with {job.spec.tokenizer_fingerprint[:12]}; give a URL that all nodes share"
            )

    def __call__(self, url: str, report: Report | None = None) -> ShardResult:
        """Tokenize and commit one shard. An error of the shard is a result; nothing is raised for it."""
        start = time.monotonic()
        try:
            result = self._tokenize(url, report or (lambda progress: None))
        except (ShardError, OSError) as error:
            result = ShardResult(url, error=" ".join(str(error).split()) or type(error).__name__)
        except Exception as error:
            logger.exception("%s", storage.redact(url))
            result = ShardResult(url, error=f"{type(error).__name__}: {' '.join(str(error).split())}")
        return replace(result, seconds=time.monotonic() - start)

    def _tokenize(self, url: str, report: Report) -> ShardResult:
        info = storage.file_info(url)
        source = ShardSource(url=storage.redact(url), size_bytes=info.size_bytes, etag=info.etag)
        quarantined: list[Quarantined] = []
        num_images = num_tokens = bytes_read = 0
        with tempfile.TemporaryDirectory(prefix="tatok-") as folder:
            data_path = os.path.join(folder, "data.parquet")
            with ShardWriter(data_path, self.job.spec, source) as writer:
                for group, records in self._stream(url, info):
                    writer.append(records)
                    writer.add_quarantined(group.quarantined)
                    quarantined += group.quarantined
                    tokens = sum(record.num_tokens for record in records)
                    num_images += len(records)
                    num_tokens += tokens
                    bytes_read += sum(len(image.sample.image) for image in group.images)
                    bytes_read += sum(row.num_bytes for row in group.quarantined)
                    share = min(1.0, bytes_read / max(1, info.size_bytes))
                    report(Progress(len(records), tokens, len(group.quarantined), share))
            quarantine_path = None
            if quarantined:
                quarantine_path = os.path.join(folder, "quarantine.parquet")
                write_quarantine(quarantine_path, quarantined)
            commit_shard(self.job.output_url, token_shard_name(url), data_path, quarantine_path)
        return ShardResult(
            url, num_images=num_images, num_tokens=num_tokens, num_quarantined=len(quarantined)
        )

    def _stream(self, url: str, info: storage.SourceInfo) -> Iterator[tuple[Group, list[TokenRecord]]]:
        """Groups of samples and the rows of their images, in source order."""
        with (
            storage.open_stream(url, info=info) as stream,
            ThreadPoolExecutor(self.num_threads, "decode") as decoders,
            ThreadPoolExecutor(self.num_lanes, "encode") as lanes,
        ):
            samples = read_samples(stream, shard=storage.redact(url), limits=self.job.limits)
            decoded = map_ahead(
                decoders,
                self._decode,
                samples,
                max_items=2 * self.job.batch_size * self.num_lanes,
                weigh=lambda sample: len(sample.image) if isinstance(sample, ImageSample) else 0,
                max_weight=_WAITING_BYTES,
            )
            groups = gather(decoded, self.job.batch_size)
            yield from map_ahead(
                lanes, lambda group: (group, self._encode(group)), groups, max_items=self.num_lanes + 1
            )

    def _decode(self, sample: ImageSample | Quarantined) -> DecodedImage | Quarantined:
        if isinstance(sample, Quarantined):
            return sample
        try:
            pixels, width, height = decode_image(sample.image, self.job.preprocess)
        except DecodeError as error:
            return Quarantined(sample.key, "decode", error.error, str(error), len(sample.image))
        return DecodedImage(sample, pixels, width, height)

    def _encode(self, group: Group) -> list[TokenRecord]:
        job, images = self.job, group.images
        if not images:
            return []
        size = job.preprocess.image_size
        # Always the full batch: kernels differ by shape, and an image's codes should not depend on its neighbours.
        pixels = np.zeros((job.batch_size, size, size, 3), np.uint8)
        for row, image in enumerate(images):
            pixels[row] = image.pixels
        with (
            torch.inference_mode(),
            torch.autocast(self.device.type, torch.bfloat16, enabled=job.precision == "bf16"),
        ):
            tokens = self.tokenizer.model.tokenize(
                to_model_input(pixels, self.device),
                job.filter,
                with_mutual_information=job.mutual_information,
            )
        global_codes = tokens.global_codes.cpu().numpy()  # (B, K)
        patch_codes = tokens.patch_codes.cpu().numpy()  # (B, N)
        keep = tokens.keep.cpu().numpy()  # (B, N)
        entropy = tokens.patch_entropy.cpu().numpy()  # (B, N)
        information = None if tokens.mutual_information is None else tokens.mutual_information.cpu().numpy()
        if not np.isfinite(entropy[: len(images)]).all():
            raise RuntimeError(
                "the entropy model gave values that are not finite; check the checkpoint's weights"
            )
        exact = entropy.astype(np.float64)
        records = []
        for row, image in enumerate(images):
            kept = keep[row]
            records.append(
                TokenRecord(
                    key=image.sample.key,
                    label=image.sample.label,
                    caption=image.sample.caption,
                    meta=image.sample.meta,
                    width=image.width,
                    height=image.height,
                    crop=image.crop,
                    global_codes=global_codes[row],
                    patch_codes=patch_codes[row, kept],
                    patch_positions=np.flatnonzero(kept),
                    entropy_total=float(exact[row].sum()),
                    entropy_dropped=float(exact[row, ~kept].sum()),
                    mutual_information=None if information is None else float(information[row]),
                    patch_entropy=entropy[row].astype(np.float16) if job.patch_entropy else None,
                )
            )
        return records


def gather(decoded: Iterable[DecodedImage | Quarantined], batch_size: int) -> Iterator[Group]:
    """Groups of `batch_size` images, the last one smaller; quarantined samples go with the images around them."""
    group = Group([], [])
    for item in decoded:
        if isinstance(item, Quarantined):
            group.quarantined.append(item)
        else:
            group.images.append(item)
        # The second condition keeps a shard of nothing but bad images from growing one group without end.
        if len(group.images) == batch_size or len(group.quarantined) >= 1024:
            yield group
            group = Group([], [])
    if group.images or group.quarantined:
        yield group
