"""One image shard in, one committed token shard out: read, decode, encode, filter, write, commit. Knows no Ray.

Several shards may be under way at once, each called from a thread of its own: while the last batches of one are
encoded, written and uploaded, the next one is read and decoded, and the first bytes of that were fetched before.
The threads are shared and results are taken in source order, so a shard's bytes do not depend on its neighbours. On
CPU every batch is encoded by one thread and several batches run side by side: splitting one product over threads
would make the last bits, and so now and then a code, depend on how many CPUs an actor has.
"""

from __future__ import annotations

import hashlib
import logging
import os
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from typing import Any, ClassVar

import torch

from tatok_pipe import storage
from tatok_pipe.encoding.allocator import keep_freed_memory
from tatok_pipe.encoding.batch_encoder import BatchEncoder
from tatok_pipe.encoding.sample_pipeline import Encoded, Group, SamplePipeline
from tatok_pipe.errors import UserError
from tatok_pipe.images.crops import CropConfig
from tatok_pipe.images.decode import DecodeError, decode_crops
from tatok_pipe.images.limits import ShardLimits
from tatok_pipe.images.notices import Notices
from tatok_pipe.images.options import PreprocessConfig
from tatok_pipe.images.shard_errors import InterleavedShard, LastingShardError, ShardError, UnusableShard
from tatok_pipe.images.source import open_samples, shard_info
from tatok_pipe.records import DecodedImage, ImageSample, Quarantined, TokenRecord
from tatok_pipe.runs.activity import Activity, Track
from tatok_pipe.runs.shard_work import ShardResult, describe_error
from tatok_pipe.storage.temporary import temporary_folder
from tatok_pipe.tokenizer.checkpoint import Tokenizer, load_tokenizer
from tatok_pipe.tokenizer.dtf import Filter
from tatok_pipe.tokens.checking.check import verify_written
from tatok_pipe.tokens.commit import commit_shard
from tatok_pipe.tokens.format import ShardSource, ShardWriter, token_shard_name, write_quarantine
from tatok_pipe.tokens.removed import Removed, read_removed
from tatok_pipe.tokens.spec import FilterSpec, TokenSpec

logger = logging.getLogger(__name__)

# On a GPU a second thread prepares and unpacks a batch while the device computes the other.
_GPU_LANES = 2
# Errors of a whole shard are tried again here before they are reported. Storage has tried every single request
# again by then. A damaged shard is the same when read again, so once is enough to know.
_NUM_TRIES = 3
_NUM_TRIES_DAMAGED = 2
_FIRST_PAUSE_S = 1.0
_FINAL_ERRORS = (FileNotFoundError, PermissionError, IsADirectoryError, UserError, LastingShardError)
_NUM_REASONS = 3  # why a shard gave no image, by the most frequent ones


def token_spec(
    tokenizer: Tokenizer, filter: Filter, *, encoding: dict[str, Any], class_names: tuple[str, ...] = ()
) -> TokenSpec:
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
        dtf=FilterSpec(**asdict(filter)),
        encoding=encoding,
        class_names=class_names,
    )


def check_images(shard: str, num_images: int, refusals: Notices) -> None:
    """Raise UnusableShard where a shard has samples, and none of them gave an image: something is wrong with all of
    it, so it is not done. An empty shard is."""
    if num_images or not refusals.all:
        return
    reasons = sorted(refusals.all, key=lambda reason: -reason.num_samples)
    num_samples = sum(reason.num_samples for reason in reasons)
    shown = "; ".join(
        f"{reason.num_samples} {reason.text}, first {reason.example}" for reason in reasons[:_NUM_REASONS]
    )
    raise UnusableShard(
        shard,
        num_samples,
        f"none of {num_samples} samples gives a row ({shown})",
        "mend the shard, or leave it out of input.shards",
    )


@dataclass(frozen=True)
class TokenizeJob:
    """What every shard of a run has in common. Small, and the same on every actor."""

    entry: ClassVar[str] = "tokenize_corpus"
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
    crops: CropConfig = CropConfig()
    replaces: bool = False  # token shards that are there, not only where none is

    def start_worker(self, *, device: str, num_threads: int) -> ShardTokenizer:
        return ShardTokenizer(self, device=device, num_threads=num_threads)


def _check_unchanged(url: str, info: storage.SourceInfo) -> None:
    """Raise OSError where a file without ETag was written to since `info` was asked for."""
    now = shard_info(url)
    if (now.size_bytes, now.mtime_ns) != (info.size_bytes, info.mtime_ns):
        raise OSError(f"{storage.redact(url)}: changed while it was read")


def _without(removed: Removed, name: str, encoded: Encoded) -> Encoded:
    """What a token shard gets of its samples. Those that were removed are encoded like the others, since what is beside
    an image in its batch must not decide its codes."""
    if not removed.hashes:
        return encoded
    return replace(
        encoded,
        records=[record for record in encoded.records if not removed.has(name, record.key)],
        quarantined=[row for row in encoded.quarantined if not removed.has(name, row.key)],
    )


class _Stopped(Exception):
    """The shard's turn came after `stop_taking`."""


class ShardTokenizer:
    """Holds the model on a device and tokenizes shards. Calls from several threads overlap as told above."""

    def __init__(self, job: TokenizeJob, *, device: str, num_threads: int) -> None:
        self.job = job
        self.device = torch.device(device)
        num_threads, is_cpu = max(1, num_threads), self.device.type == "cpu"
        if is_cpu:
            torch.set_num_threads(1)
            keep_freed_memory()
        num_lanes = num_threads if is_cpu else _GPU_LANES
        self.tokenizer: Tokenizer = load_tokenizer(job.checkpoint, device=self.device)
        if self.tokenizer.fingerprint != job.spec.tokenizer_fingerprint:
            raise RuntimeError(
                f"{storage.redact(job.checkpoint)} has fingerprint {self.tokenizer.fingerprint[:12]} on this machine, "
                f"the run was planned with {job.spec.tokenizer_fingerprint[:12]}; give a URL that all nodes share"
            )
        self._encode_batch = BatchEncoder(
            self.tokenizer.model,
            job.filter,
            device=self.device,
            precision=job.precision,
            batch_size=job.batch_size,
            mutual_information=job.mutual_information,
            patch_entropy=job.patch_entropy,
            scores=job.spec.has_scores,
        )
        self.activity = Activity(num_lanes=num_lanes)
        self._pipeline = SamplePipeline(
            lambda sample: self._decode(sample),
            lambda group: self._encode(group),
            batch_size=job.batch_size,
            num_lanes=num_lanes,
            num_decoders=0 if is_cpu else num_threads,
            images_per_sample=job.crops.num_crops,
        )
        self._reading = threading.Lock()  # held by the shard whose samples are being read
        self._stopping = threading.Event()

    def __call__(self, url: str, *, max_tries: int = _NUM_TRIES) -> ShardResult:
        """Tokenize and commit one shard. An error of the shard is a result; nothing is raised for it."""
        start = time.monotonic()
        with self.activity.follow(url) as track:
            return replace(self._try(url, track, max_tries), seconds=time.monotonic() - start)

    def sample(self, url: str, *, max_images: int, max_s: float) -> ShardResult:
        """Tokenize the beginning of a shard and commit nothing: what its images turn into, and how fast.

        About `max_images` rows, fewer where they take more than `max_s` seconds; `bytes_in` are those of their
        images, or of the whole shard where it has no more. Raises what an unreadable shard raises.
        """
        start = time.monotonic()
        is_whole = False
        max_samples = -(-max_images // self.job.crops.num_crops)

        def beginning(samples: Iterator[ImageSample | Quarantined]) -> Iterator[ImageSample | Quarantined]:
            nonlocal is_whole
            for number, sample in enumerate(samples):
                if number == max_samples or time.monotonic() - start > max_s:
                    return
                yield sample
            is_whole = True

        info = shard_info(url)
        with (
            self.activity.follow(url) as track,
            open_samples(url, info=info, limits=self.job.limits, part_bytes=1 << 20) as samples,
            temporary_folder() as folder,
        ):
            path = os.path.join(folder, "data.parquet")
            num_quarantined = image_bytes = 0
            with ShardWriter(
                path, self.job.spec, ShardSource(storage.canonical_url(url), info.size_bytes)
            ) as writer:
                for encoded in self._stream(beginning(samples), track):
                    writer.append(encoded.records)
                    num_quarantined += len(encoded.quarantined)
                    image_bytes += encoded.image_bytes
            return ShardResult(
                url,
                num_images=writer.statistics.num_images,
                num_tokens=writer.statistics.num_tokens,
                num_quarantined=num_quarantined,
                bytes_in=info.size_bytes if is_whole else image_bytes,
                bytes_out=os.path.getsize(path),
                seconds=time.monotonic() - start,
            )

    def stop_taking(self) -> None:
        """Shards whose turn has not come come back at once, not begun. Those under way go on to their end."""
        self._stopping.set()

    def close(self) -> None:
        """End the threads. No call may be under way."""
        self._pipeline.close()

    def _try(self, url: str, track: Track, max_tries: int) -> ShardResult:
        """The shard, and again with growing pauses where its error may pass."""
        attempt, regroup = 1, False
        while True:
            try:
                return self._tokenize(url, track, regroup=regroup)
            except _Stopped:
                return ShardResult(url, was_begun=False)
            except InterleavedShard as error:
                if regroup:
                    return ShardResult(url, error=describe_error(error))
                logger.warning("%s; reading it twice", storage.redact(str(error)))
                regroup = True
            except (Exception, SystemExit) as error:  # SystemExit: a library's, it must not end the actor
                num_tries = min(
                    max_tries, _NUM_TRIES_DAMAGED if isinstance(error, ShardError) else _NUM_TRIES
                )
                if isinstance(error, _FINAL_ERRORS) or attempt >= num_tries:
                    if not isinstance(error, (ShardError, OSError, UserError)):
                        logger.error("%s", storage.redact(url), exc_info=error)
                    return ShardResult(url, error=describe_error(error))
                logger.warning(
                    "%s: %s; attempt %d of %d", storage.redact(url), describe_error(error), attempt, num_tries
                )
                track.wait()
                if self._stopping.wait(_FIRST_PAUSE_S * 2 ** (attempt - 1)):
                    return ShardResult(url, was_begun=False)
                attempt += 1

    def _tokenize(self, url: str, track: Track, *, regroup: bool) -> ShardResult:
        name, removed = token_shard_name(url), read_removed(self.job.output_url)
        info = shard_info(url)
        source = ShardSource(storage.canonical_url(url), info.size_bytes, info.etag)
        hasher = None if info.etag else hashlib.sha256()
        quarantined: list[Quarantined] = []
        notices, refusals = Notices(), Notices()
        num_encoded = num_images = num_tokens = bytes_read = 0
        with (
            open_samples(
                url,
                info=info,
                limits=self.job.limits,
                regroup=regroup,
                notices=notices,
                class_names=self.job.spec.class_names,
                hasher=hasher,
            ) as samples,
            temporary_folder() as folder,
        ):
            data_path = os.path.join(folder, "data.parquet")
            with ShardWriter(data_path, self.job.spec, source) as writer:
                for whole in self._stream(samples, track):
                    num_encoded += len(whole.records)
                    encoded = _without(removed, name, whole)
                    writer.append(encoded.records)
                    writer.add_quarantined(encoded.quarantined)
                    quarantined += encoded.quarantined
                    for row in encoded.quarantined:
                        refusals.add(row.error, f"{row.key!r}: {row.message}")
                    images, tokens, bad = len(encoded.records), encoded.num_tokens, len(encoded.quarantined)
                    num_images += images
                    num_tokens += tokens
                    bytes_read += encoded.image_bytes + sum(row.num_bytes for row in encoded.quarantined)
                    track.advance(
                        images=images,
                        tokens=tokens,
                        quarantined=bad,
                        share=min(1.0, bytes_read / max(1, info.size_bytes)),
                    )
                check_images(storage.redact(url), num_encoded, refusals)
                if hasher is not None:
                    source = writer.source = replace(source, sha256=hasher.hexdigest())
                    _check_unchanged(url, info)
            verify_written(writer)
            track.touch()
            quarantine_path = None
            if quarantined:
                quarantine_path = os.path.join(folder, "quarantine.parquet")
                write_quarantine(quarantine_path, quarantined)
            if read_removed(self.job.output_url) != removed:
                raise OSError(f"{storage.redact(url)}: rows of the dataset were removed while it was read")
            commit_shard(
                self.job.output_url,
                name,
                data_path,
                quarantine_path,
                spec=self.job.spec,
                source=source,
                replaces=self.job.replaces,
            )
            bytes_out = os.path.getsize(data_path)
        return ShardResult(
            url,
            num_images=num_images,
            num_tokens=num_tokens,
            num_quarantined=len(quarantined),
            bytes_in=info.size_bytes,
            bytes_out=bytes_out,
            notices=notices.all,
            refusals=refusals.all,
        )

    def _stream(self, samples: Iterator[ImageSample | Quarantined], track: Track) -> Iterator[Encoded]:
        """The rows of the samples, a batch at a time, in source order, once it is this shard's turn."""
        with self._turn(track) as give_up_turn:

            def read() -> Iterator[ImageSample | Quarantined]:
                for sample in samples:
                    track.touch()
                    yield sample
                give_up_turn()

            yield from self._pipeline.run(read(), track.depths)

    @contextmanager
    def _turn(self, track: Track) -> Iterator[Any]:
        """Wait until no other shard is being read. Gives the function that lets the next one begin."""
        while not self._reading.acquire(timeout=0.1):
            if self._stopping.is_set():
                raise _Stopped
        is_held = True

        def give_up_turn() -> None:
            nonlocal is_held
            if is_held:
                is_held = False
                self._reading.release()

        try:
            if self._stopping.is_set():
                raise _Stopped
            track.begin()
            yield give_up_turn
        finally:
            give_up_turn()

    def _decode(self, sample: ImageSample | Quarantined) -> list[DecodedImage | Quarantined]:
        """All crops of an image, in their order, or its one quarantine row."""
        if isinstance(sample, Quarantined):
            return [sample]
        try:
            decoded = decode_crops(sample.image, self.job.preprocess, self.job.crops, key=sample.key)
        except DecodeError as error:
            return [Quarantined(sample.key, "decode", error.error, str(error), len(sample.image))]
        return [
            DecodedImage(
                key=sample.key,
                label=sample.label,
                caption=sample.caption,
                meta=sample.meta,
                num_bytes=len(sample.image),
                pixels=pixels,
                width=decoded.width,
                height=decoded.height,
                crop=crop,
            )
            for crop, pixels in enumerate(decoded.pixels)
        ]

    def _encode(self, group: Group) -> list[TokenRecord]:
        with self.activity.encoding():
            return self._encode_batch(group.images)
