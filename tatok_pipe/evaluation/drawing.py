"""A generator with the tokenizer of its tokens: images by number, as `generate` draws them.

Letters: B images, S image size in pixels.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from functools import cached_property

from torch import Tensor

from tatok_pipe.ar.checkpoint import LoadedGenerator
from tatok_pipe.ar.generation.conditions import trained_classes
from tatok_pipe.ar.generation.job import GenerationPlan, Requests
from tatok_pipe.ar.options import DrawConfig, SamplingConfig
from tatok_pipe.ar.requests import ImageTokens
from tatok_pipe.ar.sampler import Sampler
from tatok_pipe.tokenizer.checkpoint import Tokenizer
from tatok_pipe.tokenizer.dtf import Filter
from tatok_pipe.tokens.dataset import records_to_tensors

# On GPUs an image is the same for a given number of slots only, so it is one number for all. With half as many slots
# as a part has images, short ones leave few of them idle.
_NUM_SLOTS = 16
PART_IMAGES = 32
_GROUP_IMAGES = 16  # decoded together: always the same neighbours in number


@dataclass(frozen=True)
class Drawn:
    """A group of images, in order of their numbers."""

    tokens: list[ImageTokens]
    labels: list[int | None]
    images: Tensor  # (B, 3, S, S) in [0, 1], on the device


class Drawing:
    """Image i is a function of (seed, guidance, i), those classes taken in turn that training had images of: on CPUs,
    the one that `generate` makes."""

    def __init__(
        self, generator: LoadedGenerator, tokenizer: Tokenizer, *, num_images: int, seed: int, guidance: float
    ) -> None:
        self.generator = generator
        self._tokenizer = tokenizer
        draw = DrawConfig(guidance=guidance)
        self._plan = GenerationPlan(
            num_images=num_images,
            images_per_shard=PART_IMAGES,
            seed=seed,
            classes=trained_classes(generator),
            sampling=SamplingConfig(codes=draw, positions=draw),
            num_patches=None,
            embeddings_url=None,
            start=None,
        )

    @property
    def num_classes(self) -> int:
        """Those that are drawn, given images enough; 0: the generator is told no class."""
        return len(self._plan.classes)

    def has_filter(self, filter: Filter) -> bool:
        """Whether the generator was trained on what this filter leaves."""
        return asdict(self.generator.tokens.dtf) == asdict(filter)

    def groups(self, part: int, *, touch: Callable[[int], None] = lambda _: None) -> Iterator[Drawn]:
        """The images of a part. `touch` is told of each that is drawn."""
        requests = list(self._requests.shard(part))
        drawn: dict[int, ImageTokens] = {}
        for tokens in self._sampler.sample(requests):
            drawn[tokens.number] = tokens
            touch(1)
        spec, device = self.generator.tokens, self.generator.model.rotary.device
        for start in range(0, len(requests), _GROUP_IMAGES):
            group = requests[start : start + _GROUP_IMAGES]
            tokens = [drawn[request.number] for request in group]
            tensors = records_to_tensors(tokens, num_globals=spec.num_globals, num_patches=spec.num_patches)
            images = self._tokenizer.model.decode(*(each.to(device) for each in tensors))
            yield Drawn(tokens, [request.label for request in group], images)

    @cached_property
    def _requests(self) -> Requests:
        return Requests(self._plan, grid_side=self._tokenizer.model.config.grid_side, embedding_dim=0)

    @cached_property
    def _sampler(self) -> Sampler:
        # Not compiled: that takes a minute of every actor, more than so few images do.
        return Sampler(self.generator.model, self._plan.sampling, num_slots=_NUM_SLOTS, compile=False)
