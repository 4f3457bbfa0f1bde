"""Training images: an endless, seeded stream of augmented crops from image shards on any URL.

Order and augmentation depend on (seed, epoch, position) alone, never on threads or timing; the position can be
saved and restored. Letters: B batch, S image size in pixels.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import islice

import numpy as np

from tatok_pipe import storage
from tatok_pipe.errors import UserError
from tatok_pipe.images.decode import DecodeError, decode_image
from tatok_pipe.images.limits import IMAGES_ONLY
from tatok_pipe.images.options import PreprocessConfig
from tatok_pipe.images.shard_errors import InterleavedShard, ShardError
from tatok_pipe.images.source import open_samples, shard_info
from tatok_pipe.parallel import map_ahead
from tatok_pipe.records import ImageSample

logger = logging.getLogger(__name__)


class TrainingImages:
    """Batches (B, S, S, 3) uint8, without end.

    Shards are shuffled each epoch and split over ranks, samples pass a shuffle buffer of encoded images, each image
    is decoded at a random scale and cut and flipped at random; instead of `plain_share` of them comes one random
    colour. Images that do not decode are skipped and logged. Raises UserError where there are fewer shards than ranks,
    no readable image, or a shard that cannot be read to its end.
    """

    def __init__(
        self,
        shards: list[str],
        *,
        image_size: int,
        batch_size: int,
        seed: int,
        rank: int = 0,
        num_ranks: int = 1,
        num_threads: int = 2,
        buffer_images: int = 1024,
        max_scale: float = 1.6,
        plain_share: float = 0.0,
    ):
        if len(shards) < num_ranks:
            raise UserError(
                f"{len(shards)} image shards for {num_ranks} workers: expected at least one a worker"
            )
        self.shards = shards
        self.image_size = image_size
        self.batch_size = batch_size
        self.seed = seed
        self.rank = rank
        self.num_ranks = num_ranks
        self.num_threads = num_threads
        self.buffer_images = buffer_images
        self.max_scale = max_scale
        self.plain_share = plain_share
        self.epoch = 0
        self.offset = 0  # samples of this epoch that batches were made of

    def state_dict(self) -> dict[str, int]:
        return {"epoch": self.epoch, "offset": self.offset}

    def load_state_dict(self, state: dict[str, int]) -> None:
        self.epoch, self.offset = state["epoch"], state["offset"]

    def __iter__(self) -> Iterator[np.ndarray]:
        batch: list[np.ndarray] = []
        with ThreadPoolExecutor(self.num_threads) as pool:
            while True:
                found, is_whole = False, self.offset == 0
                for offset, pixels in self._decode_epoch(pool):
                    self.offset = offset + 1
                    if pixels is None:
                        continue
                    found = True
                    batch.append(pixels)
                    if len(batch) == self.batch_size:
                        yield np.stack(batch)
                        batch = []
                if is_whole and not found:
                    raise UserError(f"no readable image in the {len(self.shards)} shards of input.shards")
                self.epoch, self.offset = self.epoch + 1, 0

    def _decode_epoch(self, pool: ThreadPoolExecutor) -> Iterator[tuple[int, np.ndarray | None]]:
        epoch = self.epoch
        samples = islice(enumerate(self._shuffled(epoch)), self.offset, None)

        def decode(item: tuple[int, ImageSample]) -> tuple[int, np.ndarray | None]:
            offset, sample = item
            return offset, self._augment(sample, np.random.default_rng([self.seed, epoch, self.rank, offset]))

        yield from map_ahead(pool, decode, samples, max_items=8 * self.num_threads)

    def _shuffled(self, epoch: int) -> Iterator[ImageSample]:
        order = np.random.default_rng([self.seed, epoch]).permutation(len(self.shards))
        random = np.random.default_rng([self.seed, epoch, self.rank])
        buffer: list[ImageSample] = []
        for index in order[self.rank :: self.num_ranks]:
            for sample in self._read(self.shards[index]):
                buffer.append(sample)
                if len(buffer) >= self.buffer_images:
                    pick = int(random.integers(len(buffer)))
                    buffer[pick], buffer[-1] = buffer[-1], buffer[pick]
                    yield buffer.pop()
        yield from (buffer[i] for i in random.permutation(len(buffer)))

    def _read(self, url: str) -> Iterator[ImageSample]:
        """The images of a shard, each key once.

        Where the files of a sample turn out not to follow one another, the images that came already are as
        good as any, since training takes nothing else of a sample: the second reading goes on with the rest.
        """
        given: set[str] = set()
        info = shard_info(url)
        for regroup in (False, True):
            try:
                with open_samples(url, info=info, limits=IMAGES_ONLY, regroup=regroup) as samples:
                    for sample in samples:
                        if not isinstance(sample, ImageSample):
                            shard = storage.redact(url)
                            logger.warning("%s: %s skipped: %s", shard, sample.key, sample.message)
                        elif sample.key not in given:
                            given.add(sample.key)
                            yield sample
                return
            except InterleavedShard as error:
                logger.info("%s", error)
            except ShardError as error:
                raise UserError(str(error)) from error

    def _augment(self, sample: ImageSample, random: np.random.Generator) -> np.ndarray | None:
        size = self.image_size
        scaled = int(round(size * random.uniform(1.0, self.max_scale)))
        try:
            pixels, _, _ = decode_image(sample.image, PreprocessConfig(image_size=scaled))
        except DecodeError as error:
            logger.warning("%s skipped: %s: %s", sample.key, error.error, error)
            return None
        top, left = random.integers(scaled - size + 1, size=2)
        pixels = pixels[top : top + size, left : left + size]
        if random.random() < 0.5:
            pixels = pixels[:, ::-1]
        if random.random() < self.plain_share:
            pixels = np.broadcast_to(random.integers(0, 256, 3, dtype=np.uint8), pixels.shape)
        return pixels
