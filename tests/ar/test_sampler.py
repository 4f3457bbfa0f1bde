"""The sampler against a slow reference without a cache, one image at a time; and that images do not depend on each
other."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor

from tatok_pipe.ar.batch import Vocabulary, to_tensors
from tatok_pipe.ar.draws import uniforms
from tatok_pipe.ar.model import Generator
from tatok_pipe.ar.options import DrawConfig, GeneratorConfig, SamplingConfig
from tatok_pipe.ar.requests import ImageRequest, ImageTokens, Place
from tatok_pipe.ar.sampler import Sampler, Slots
from tatok_pipe.nn.c_library import find_compiler
from tests.ar.packed import SMALL, VOCABULARY, Tokens, every_sequence, pack, widen
from tests.ar.reference_sampler import Reference

GREEDY = SamplingConfig(codes=DrawConfig(temperature=0), positions=DrawConfig(temperature=0))
COSINE = SamplingConfig(
    codes=DrawConfig(guidance=3.0), positions=DrawConfig(guidance=1.5), guidance_schedule="cosine"
)


def make_model(config: GeneratorConfig = SMALL, vocabulary: Vocabulary = VOCABULARY) -> Generator:
    torch.manual_seed(0)
    return widen(Generator(config, vocabulary)).eval()


def sample(
    model: Generator, requests: Iterable[ImageRequest], config: SamplingConfig, *, num_slots: int = 4
) -> dict[int, ImageTokens]:
    found = list(Sampler(model, config, num_slots=num_slots).sample(requests))
    by_number = {image.number: image for image in found}
    assert len(by_number) == len(found)
    return by_number


def make_requests(count: int, *, num_classes: int = 4) -> list[ImageRequest]:
    return [
        ImageRequest(number, seed=1000 + number, label=number % num_classes if number % 3 else None)
        for number in range(count)
    ]


def assert_same(found: dict[int, ImageTokens], expected: dict[int, ImageTokens]) -> None:
    assert found.keys() == expected.keys()
    for number, image in expected.items():
        for name in ("global_codes", "patch_codes", "patch_positions"):
            ours, theirs = getattr(found[number], name), getattr(image, name)
            assert np.array_equal(ours, theirs), f"image {number}: {name} {ours}, expected {theirs}"


@pytest.fixture(params=["compiled", "plain"])
def both_steps(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """With a C compiler, and on a machine without."""
    if request.param == "plain":
        monkeypatch.setenv("CC", "no-such-compiler")
    elif find_compiler() is None:
        pytest.skip("there is no C compiler")


CONFIGS = {
    "greedy": GREEDY,
    "drawn": SamplingConfig(),
    "guided": SamplingConfig(codes=DrawConfig(guidance=2.0), positions=DrawConfig(guidance=0.5)),
    "codes guided": SamplingConfig(codes=DrawConfig(guidance=2.0)),
    "cosine": COSINE,
    "truncated": SamplingConfig(
        codes=DrawConfig(top_k=3, temperature=1.3), positions=DrawConfig(top_p=0.8, temperature=0.9)
    ),
    "short": SamplingConfig(max_patches=3),
}


@pytest.mark.usefixtures("both_steps")
@pytest.mark.parametrize("name", CONFIGS)
def test_images_are_those_of_the_reference_token_for_token(name: str) -> None:
    model, config = make_model(), CONFIGS[name]
    requests = make_requests(24)
    found = sample(model, requests, config)
    reference = Reference(model, config)
    assert_same(found, {request.number: reference(request) for request in requests})
    lengths = {len(image.patch_codes) for image in found.values()}
    assert len(lengths) > 2 or name == "greedy"  # greedy images differ by class alone


@pytest.mark.parametrize(
    ("config", "vocabulary"),
    [
        (replace(SMALL, condition="none"), VOCABULARY),
        (replace(SMALL, condition="embedding", embedding_dim=6), VOCABULARY),
        (SMALL, replace(VOCABULARY, num_globals=0)),
        (SMALL, Vocabulary(num_globals=5, num_patches=2, global_vocab=9, patch_vocab=3)),
        (replace(SMALL, num_budgets=3), VOCABULARY),
    ],
)
def test_every_kind_of_generator(config: GeneratorConfig, vocabulary: Vocabulary) -> None:
    model = make_model(config, vocabulary)
    requests = make_requests(12)
    if config.condition != "class":
        requests = [replace(request, label=None) for request in requests]
    if config.condition == "embedding":
        random = np.random.default_rng(0)
        requests = [
            replace(request, embedding=random.normal(size=6).astype(np.float32)) if request.number % 3 else
            replace(request, embedding=np.zeros(6, np.float32))
            for request in requests
        ]  # fmt: skip
    if config.num_budgets:
        requests = [replace(request, num_patches=request.number % 10) for request in requests]
    reference = Reference(model, SamplingConfig())
    assert_same(
        sample(model, requests, SamplingConfig()),
        {request.number: reference(request) for request in requests},
    )


@pytest.mark.usefixtures("both_steps")
def test_given_tokens_stay_and_the_rest_is_drawn() -> None:
    model, random = make_model(), np.random.default_rng(0)
    requests = []
    for request in make_requests(24):
        patches = random.choice([*map(int, Place), *range(7)], 9, p=[0.5, 0.1, 0.1, *[0.3 / 7] * 7])
        given = np.where(random.random(2) < 0.5, random.integers(0, 5, 2), int(Place.FREE))
        requests.append(replace(request, patches=patches, global_codes=given))
    for config in (SamplingConfig(), SamplingConfig(max_patches=7), GREEDY, COSINE):
        found = sample(model, requests, config)
        reference = Reference(model, config)
        assert_same(found, {request.number: reference(request) for request in requests})
        for request in requests:
            image = found[request.number]
            codes = np.full(9, -1)
            codes[image.patch_positions] = image.patch_codes
            patches, given = request.patches, request.global_codes
            assert patches is not None and given is not None
            assert (codes[patches >= 0] == patches[patches >= 0]).all()
            assert (codes[patches == Place.DRAWN] >= 0).all() and (codes[patches == Place.ABSENT] < 0).all()
            assert (image.global_codes[given >= 0] == given[given >= 0]).all()


def test_a_patch_at_every_place() -> None:
    everywhere = np.full(9, int(Place.DRAWN))
    requests = [replace(request, patches=everywhere) for request in make_requests(6)]
    for image in sample(make_model(), requests, SamplingConfig()).values():
        assert image.patch_positions.tolist() == list(range(9)) and image.num_tokens == 11


class Recorder(Sampler):
    """Keeps the logits that everything is drawn from, by the image's first uniform number and element."""

    def sample(self, requests: Iterable[ImageRequest]) -> Iterator[ImageTokens]:
        self.logits: dict[tuple[float, int, int], bytes] = {}
        return super().sample(requests)

    def _guided(self, logits: Tensor, at: Slots, settled: Tensor, config: DrawConfig) -> Tensor:
        guided = super()._guided(logits, at, settled, config)
        firsts = self._requests.uniforms[self._request[at], 0].tolist()
        for first, order, row in zip(firsts, self._order[at].tolist(), guided, strict=True):
            self.logits[first, order, len(row)] = row.numpy().tobytes()
        return guided


@pytest.mark.usefixtures("both_steps")
@pytest.mark.parametrize(
    ("config", "num_threads"),
    [(SamplingConfig(), 1), (COSINE, 1), pytest.param(SamplingConfig(), 2, marks=pytest.mark.slow)],
)
def test_an_image_is_the_same_in_any_batch_slot_and_order(config: SamplingConfig, num_threads: int) -> None:
    """Not only what is drawn, which small differences change rarely, but bit for bit what it is drawn from; of a model
    that is wide enough for the kernels that large ones get."""
    vocabulary = Vocabulary(num_globals=4, num_patches=60, global_vocab=300, patch_vocab=700)
    torch.manual_seed(0)
    model = Generator(GeneratorConfig(width=256, depth=2, heads=4, num_classes=4), vocabulary)
    requests = make_requests(12)
    recorder = Recorder(model, config, num_slots=8)
    expected = {image.number: image for image in recorder.sample(requests)}
    drawn = {
        (uniforms(torch.tensor(requests[number].seed), torch.tensor(0)).item(), order)
        for number, image in expected.items()
        for order in range(image.num_tokens)
    }
    torch.set_num_threads(num_threads)
    try:
        for num_slots in (1, 3, 16):
            shuffled = list(np.random.default_rng(num_slots).permutation(len(requests)))
            other = Recorder(model, config, num_slots=num_slots)
            assert_same(
                {image.number: image for image in other.sample(requests[i] for i in shuffled)}, expected
            )
            for (first, order, size), logits in other.logits.items():
                is_drawn = (first, order) in drawn  # an idle slot has a number too
                assert not is_drawn or logits == recorder.logits[first, order, size], (num_slots, order, size)
    finally:
        torch.set_num_threads(1)
    assert len({len(image.patch_codes) for image in expected.values()}) > 3


def chi_square(counts: np.ndarray, expected: np.ndarray) -> tuple[float, int]:
    """Statistic and degrees of freedom; outcomes that are expected less than 5 times count as one."""
    rare = expected < 5
    counts = np.append(counts[~rare], counts[rare].sum())
    expected = np.append(expected[~rare], expected[rare].sum())
    return float(((counts - expected) ** 2 / expected).sum()), len(counts) - 1


@pytest.mark.parametrize("guidance", [1.0, 1.5])
def test_ten_thousand_images_follow_the_distribution_of_the_model(guidance: float) -> None:
    """All 54 sequences of a tiny vocabulary have a probability, by the model's own loss, or with guidance, by hand."""
    vocabulary = Vocabulary(num_globals=1, num_patches=3, global_vocab=2, patch_vocab=2)
    model = make_model(replace(SMALL, num_classes=1), vocabulary)
    sequences = every_sequence()
    guided = DrawConfig(guidance=guidance)
    config = SamplingConfig(codes=guided, positions=guided)
    expected = np.array([probability(model, tokens, guidance) for tokens in sequences])
    assert expected.sum() == pytest.approx(1, abs=1e-4)
    requests = (ImageRequest(number, seed=number, label=0) for number in range(10_000))
    counts = np.zeros(len(sequences))
    index = {(*tokens.globals, *tokens.patches): i for i, tokens in enumerate(sequences)}
    for image in Sampler(model, config, num_slots=500).sample(requests):
        patches = zip(image.patch_positions.tolist(), image.patch_codes.tolist(), strict=True)
        counts[index[(*image.global_codes.tolist(), *patches)]] += 1
    statistic, freedom = chi_square(counts, 10_000 * expected / expected.sum())
    # Wilson and Hilferty's approximation of the 99.9 % quantile.
    limit = freedom * (1 - 2 / (9 * freedom) + 3.09 * (2 / (9 * freedom)) ** 0.5) ** 3
    assert freedom > 15 and statistic < limit, f"{statistic:.1f}, expected at most {limit:.1f}"
    # And the test would see another distribution.
    other = np.array([probability(model, tokens, guidance + 0.5) for tokens in sequences])
    assert chi_square(counts, 10_000 * other / other.sum())[0] > limit


@torch.no_grad()
def probability(model: Generator, tokens: Tokens, guidance: float) -> float:
    length = 1 + len(tokens.globals) + len(tokens.patches)
    hidden = []
    for is_conditional in (True, False):
        batch = pack([[replace(tokens, is_conditional=is_conditional)]], row_tokens=length)
        tensors = to_tensors(batch, "cpu", vocabulary=model.vocabulary)
        if is_conditional and guidance == 1:
            return float((-model(tensors).total.sum()).exp())
        hidden.append(model.hidden(tensors))

    def chosen(logits: Sequence[Tensor], target: int) -> float:
        with_it, without = logits
        mixed = torch.where(torch.isfinite(with_it), without + guidance * (with_it - without), with_it)
        return mixed[0].log_softmax(-1)[target].item()

    total, last = 0.0, -1
    for index, code in enumerate(tokens.globals):
        total += chosen([model.global_logits(h[[index]]) for h in hidden], code)
    end = (model.vocabulary.num_patches, 0)
    for index, (position, code) in enumerate([*tokens.patches, end], len(tokens.globals)):
        before = torch.tensor([last])
        total += chosen([model.position_logits(h[[index]], before) for h in hidden], position)
        if position < model.vocabulary.num_patches:
            at = torch.tensor([position])
            total += chosen([model.code_logits(h[[index]], at) for h in hidden], code)
        last = position
    return float(np.exp(total))


def test_slots_are_not_idle_while_there_is_something_to_do() -> None:
    sampler = Sampler(make_model(), SamplingConfig(), num_slots=8)
    images = list(sampler.sample(make_requests(400)))
    done = sampler.statistics
    assert done.num_images == len(images) == 400
    assert done.num_elements == sum(1 + image.num_tokens for image in images)
    assert done.occupancy == done.num_elements / (8 * done.num_steps)
    assert done.occupancy > 0.97


def test_requests_are_taken_as_there_is_room() -> None:
    taken = 0

    def endless() -> Iterable[ImageRequest]:
        nonlocal taken
        for request in itertools.count():
            taken += 1
            yield ImageRequest(request, seed=request)

    images = Sampler(make_model(), SamplingConfig(), num_slots=2).sample(endless())
    for _ in range(30):
        next(images)
    assert taken <= 30 + 2 * 4 + 2


def test_a_sampler_can_be_used_again() -> None:
    sampler, requests = Sampler(make_model(), SamplingConfig(), num_slots=3), make_requests(7)
    first, second = ({image.number: image for image in sampler.sample(requests)} for _ in range(2))
    assert_same(second, first)
    assert list(sampler.sample([])) == []
    # Not read to the end, or ended by a request that cannot be: nothing of it comes later.
    abandoned = sampler.sample([replace(request, number=100 + request.number) for request in requests])
    next(abandoned)
    assert_same({image.number: image for image in sampler.sample(requests)}, first)
    with pytest.raises(ValueError, match="label 9"):
        list(sampler.sample([*make_requests(30), ImageRequest(50, seed=0, label=9)]))
    assert_same({image.number: image for image in sampler.sample(requests)}, first)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"label": 4}, "image 7: label 4: expected 0 to 3"),
        ({"label": -1}, "label -1: expected 0 to 3"),
        ({"embedding": np.zeros(3)}, r"embedding of shape \(3,\): the generator's condition is class"),
        ({"num_patches": 3}, "num_patches=3: the generator knows no budgets"),
        ({"global_codes": np.zeros(3, np.int64)}, r"global_codes of shape \(3,\), 0 to 0: expected \(2,\)"),
        ({"global_codes": np.array([0, 5])}, r"0 to 5: expected \(2,\), codes up to 4"),
        ({"patches": np.full(9, 7)}, r"0 to 7: expected \(9,\), codes up to 6"),
        ({"patches": np.full(9, -4)}, r"-4 to 0: expected \(9,\)"),
        ({"patches": np.full(9, int(Place.DRAWN))}, "9 patches are given or asked for: .* max_patches=8"),
    ],
)
def test_requests_that_cannot_be(changes: dict[str, object], message: str) -> None:
    sampler = Sampler(make_model(), SamplingConfig(max_patches=8), num_slots=2)
    with pytest.raises(ValueError, match=message):
        list(sampler.sample([replace(ImageRequest(7, seed=0), **changes)]))  # type: ignore[arg-type]


def test_samplers_that_cannot_be() -> None:
    with pytest.raises(ValueError, match="num_slots=0: expected at least 1"):
        Sampler(make_model(), SamplingConfig(), num_slots=0)
    with pytest.raises(ValueError, match="trained without a condition"):
        Sampler(make_model(replace(SMALL, condition="none")), COSINE, num_slots=1)
    with pytest.raises(ValueError, match="max_patches=-1: expected at least 0"):
        SamplingConfig(max_patches=-1)


@pytest.mark.slow
@pytest.mark.parametrize("config", [SamplingConfig(), COSINE])
def test_a_compiled_step_draws_the_same_images(config: SamplingConfig) -> None:
    """The program that GPUs run: nothing in it waits for the host, or depends on what the slots are at."""
    model, requests = make_model(), make_requests(20)
    torch._dynamo.reset()
    with torch._dynamo.config.patch(error_on_recompile=True):
        compiled = Sampler(model, config, num_slots=4, compile=True)
        found = {image.number: image for image in compiled.sample(requests)}
    assert_same(found, sample(model, requests, config))


@pytest.mark.gpu
@pytest.mark.parametrize("compile", [False, True])
def test_a_cuda_graph_draws_the_same_images(compile: bool) -> None:
    model, requests = make_model(), make_requests(40)
    expected = sample(model, requests, SamplingConfig())
    sampler = Sampler(make_model().cuda(), SamplingConfig(), num_slots=8, compile=compile)
    assert_same({image.number: image for image in sampler.sample(requests)}, expected)
