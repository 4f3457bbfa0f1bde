"""Generation on this machine: images of the tokens they need, beside the same model at a patch for every place.

Images get the number and the places of patches that real images have: those of the demo corpus, as the packaged
tokenizer makes it; codes are drawn. Beside it, in turn, with the same weights:

- *all places*: our sampler, a patch at every one of the N places;
- *fixed*: a loop as LlamaGen has it: a static batch, every sequence N + K codes long, keys and values cached, no
  positions drawn, and as many codes read of the cache as there are.

Rates are those of the steady state, when the first images of every slot are through; for the fixed loop those of
whole batches. On CPUs they are those of one thread, as `generate` has an actor a core where there is work for them; on
a GPU all sides are compiled.
"""

from __future__ import annotations

import copy
import itertools
import statistics
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from tatok_pipe.ar.batch import Vocabulary
from tatok_pipe.ar.draws import draw, uniforms
from tatok_pipe.ar.model import Generator
from tatok_pipe.ar.options import DrawConfig, GeneratorConfig, SamplingConfig
from tatok_pipe.ar.requests import ImageRequest, Place
from tatok_pipe.ar.sampler import Sampler
from tatok_pipe.nn.prepacked import prepack
from tatok_pipe.tokens.dataset import TokenDataset
from tests.benchmarks.measure import Results, from_pairs
from tests.benchmarks.training import write_tokens

PAIRS = 3
SECONDS = 3.0
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
SLOTS = {"cpu": (1, 16), "cuda": (1, 64, 256)}[DEVICE]
DTYPE = {"cpu": torch.float32, "cuda": torch.bfloat16}[DEVICE]
TINY = GeneratorConfig(width=256, depth=4, heads=4, num_classes=20)
BASE = GeneratorConfig(num_classes=20)  # 85 M weights in its blocks: more than any cache holds


class Steady:
    """A sampler with more requests than it can ever finish."""

    def __init__(self, model: Generator, patches: list[np.ndarray], *, num_slots: int) -> None:
        self._sampler = Sampler(model, SamplingConfig(), num_slots=num_slots, dtype=DTYPE)
        self._images = self._sampler.sample(self._requests(patches))
        self._mean = statistics.mean(
            1 + model.vocabulary.num_globals + int((p != Place.ABSENT).sum()) for p in patches
        )
        self.occupancies: list[float] = []
        for _ in range(num_slots):
            next(self._images)

    @staticmethod
    def _requests(patches: list[np.ndarray]) -> Iterator[ImageRequest]:
        for number in itertools.count():
            yield ImageRequest(number, seed=number, label=number % 20, patches=patches[number % len(patches)])

    def images_per_s(self) -> float:
        done = self._sampler.statistics
        elements, steps, start = done.num_elements, done.num_steps, time.perf_counter()
        while time.perf_counter() - start < SECONDS:
            next(self._images)
        elements, steps = done.num_elements - elements, done.num_steps - steps
        self.occupancies.append(elements / (steps * done.num_slots))
        return elements / (time.perf_counter() - start) / self._mean


class FixedLoop:
    """The blocks and heads of the model, one code of every sequence of a batch at a time."""

    def __init__(self, model: Generator, *, batch: int) -> None:
        self._model = copy.deepcopy(model).eval().requires_grad_(False).to(DTYPE)
        if DEVICE == "cpu":
            prepack(self._model)
        self._rotary = model.rotary
        config, vocabulary = model.config, model.vocabulary
        self._length = 1 + vocabulary.num_globals + vocabulary.num_patches
        shape = (config.depth, batch, config.heads, self._length, config.width // config.heads)
        self._keys, self._values = (torch.zeros(shape, device=DEVICE, dtype=DTYPE) for _ in range(2))
        self._batch = batch
        self._step = self._next if DEVICE == "cpu" else torch.compile(self._next, dynamic=False)

    @torch.no_grad()
    def images_per_s(self) -> float:
        model, start, done = self._model, time.perf_counter(), 0
        zeros = torch.zeros(self._batch, dtype=torch.int64, device=DEVICE)
        while time.perf_counter() - start < SECONDS or not done:
            x = model.embed_condition(zeros, zeros == 0, zeros - 1)
            for order in range(self._length - 1):
                code = self._step(x, order)
                index = zeros + order
                if order < model.vocabulary.num_globals:
                    x = model.embed_global(code, index)
                else:
                    x = model.embed_patch(code, index - model.vocabulary.num_globals)
            float(x.sum())  # waits for a GPU
            done += self._batch
        return done / (time.perf_counter() - start)

    def _next(self, x: Tensor, order: int) -> Tensor:
        model = self._model
        rotary = self._rotary[order].expand(self._batch, -1, -1)
        for layer, block in enumerate(model.blocks):

            def attend(query: Tensor, key: Tensor, value: Tensor, layer: int = layer) -> Tensor:
                keys, values = self._keys[layer], self._values[layer]
                keys[:, :, order], values[:, :, order] = key, value
                seen = slice(0, order + 1)
                return F.scaled_dot_product_attention(
                    query[:, :, None], keys[:, :, seen], values[:, :, seen]
                )[:, :, 0]

            x = block(x, rotary, attend)
        hidden, num_globals = model.norm(x), model.vocabulary.num_globals
        index = torch.full((self._batch,), order, device=hidden.device)
        is_global = order < num_globals
        logits = model.global_logits(hidden) if is_global else model.code_logits(hidden, index - num_globals)
        return draw(logits, uniforms(torch.arange(self._batch, device=hidden.device), index), DrawConfig())


def bandwidth_bytes_per_s() -> float:
    """Of reading a memory that no cache holds, once."""
    numbers = torch.ones(1 << 27, device=DEVICE)  # 512 MiB
    best = 0.0
    for _ in range(5):
        start = time.perf_counter()
        float(numbers.sum())
        best = max(best, numbers.numel() * 4 / (time.perf_counter() - start))
    return best


def compare(results: Results, model: Generator, real: list[np.ndarray], *, num_slots: int) -> None:
    vocabulary = model.vocabulary
    everywhere = np.full(vocabulary.num_patches, int(Place.DRAWN))
    ours = Steady(model, real, num_slots=num_slots)
    sides = {
        "all_places": Steady(model, [everywhere], num_slots=num_slots),
        "fixed": FixedLoop(model, batch=num_slots),
    }
    names = {"all_places": "a patch everywhere", "fixed": "a loop of fixed length"}
    rates: dict[str, list[tuple[float, float]]] = {key: [] for key in sides}
    for _ in range(PAIRS):
        rate = ours.images_per_s()
        for key, side in sides.items():
            rates[key].append((rate, side.images_per_s()))
    for key, pairs in rates.items():
        results.add(
            from_pairs(
                f"sample/{key}/{num_slots}",
                f"images drawn, {num_slots} slots / {names[key]}",
                pairs,
                unit="images/s",
            )
        )
    results.note(f"slots at work {statistics.median(ours.occupancies):.3f}")


def occupancy(model: Generator, real: list[np.ndarray], *, num_slots: int) -> float:
    """Of a run from its first image to its last: the end, when there is nothing more to begin, included."""
    sampler = Sampler(model, SamplingConfig(), num_slots=num_slots, dtype=DTYPE)
    requests = (
        ImageRequest(number, seed=number, label=0, patches=real[number % len(real)])
        for number in range(20 * num_slots)
    )
    for _ in sampler.sample(requests):
        pass
    return sampler.statistics.occupancy


def memory_share(config: GeneratorConfig, vocabulary: Vocabulary) -> tuple[float, float]:
    """Of the limit that memory sets to one image at a time: every step reads all weights of blocks and heads."""
    torch.manual_seed(0)
    model = Generator(config, vocabulary).to(DEVICE)
    everywhere = np.full(vocabulary.num_patches, int(Place.DRAWN))
    sampler = Sampler(model, SamplingConfig(), num_slots=1, dtype=DTYPE)
    images = sampler.sample([ImageRequest(0, seed=0, label=0, patches=everywhere)])
    start = time.perf_counter()
    for _ in images:
        pass
    step_s = (time.perf_counter() - start) / sampler.statistics.num_steps
    heads = (model.position_head, model.code_head.mlp, model.code_head.out)
    weights = sum(p.numel() for part in (model.blocks, *heads) for p in part.parameters())
    return weights * DTYPE.itemsize / step_s / bandwidth_bytes_per_s(), step_s


def run(results: Results) -> None:
    with tempfile.TemporaryDirectory(prefix="tatok-generation-") as folder:
        dataset = TokenDataset(write_tokens(Path(folder)))
        vocabulary = Vocabulary.from_spec(dataset.spec)
        real = []
        for record in dataset.rows():
            patches = np.full(vocabulary.num_patches, int(Place.ABSENT))
            patches[record.patch_positions] = int(Place.DRAWN)
            real.append(patches)
    torch.set_num_threads(1)
    real = [real[i] for i in np.random.default_rng(0).permutation(len(real))]
    torch.manual_seed(0)
    model = Generator(TINY, vocabulary).eval().to(DEVICE)
    tokens = statistics.mean(vocabulary.num_globals + int((p != Place.ABSENT).sum()) for p in real)
    fixed = vocabulary.num_globals + vocabulary.num_patches
    results.note(
        f"{model.num_parameters / 1e6:.1f} M weights, one thread; {tokens:.1f} tokens an image of {fixed}: "
        f"{fixed / tokens:.2f} times less"
    )
    for num_slots in SLOTS:
        compare(results, model, real, num_slots=num_slots)
    share = occupancy(model, real, num_slots=SLOTS[-1])
    results.add(
        from_pairs(
            "sample/occupancy", f"slots at work, {20 * SLOTS[-1]} images in {SLOTS[-1]} slots, start to end / all",
            [(share, 1.0)], unit="share",
        )
    )  # fmt: skip
    for name, config in (("tiny", TINY), ("b", BASE)):
        share, step_s = memory_share(config, vocabulary)
        results.add(
            from_pairs(
                f"sample/memory/{name}", f"one image at a time, {name}: tokens / what reading the weights allows",
                [(1 / step_s, 1 / step_s / share)], unit="tokens/s",
            )
        )  # fmt: skip
