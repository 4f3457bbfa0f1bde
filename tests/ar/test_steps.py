"""Steps in C: the model's logits but for rounding, and the same bits whatever is computed beside."""

from __future__ import annotations

import copy
import ctypes
import platform
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from tatok_pipe.ar import steps
from tatok_pipe.ar.batch import Vocabulary
from tatok_pipe.ar.model import Generator
from tatok_pipe.ar.options import GeneratorConfig
from tatok_pipe.ar.steps import CompiledSteps, PlainSteps, Steps, load_step
from tatok_pipe.nn.c_library import compile_c, find_compiler
from tests.ar.packed import SMALL, VOCABULARY, widen

pytestmark = pytest.mark.skipif(find_compiler() is None, reason="there is no C compiler")

WIDE = GeneratorConfig(width=256, depth=2, heads=4, num_classes=4)
MANY = Vocabulary(num_globals=4, num_patches=60, global_vocab=300, patch_vocab=700)
TOLERANCE = 5e-5  # of logits that go up to 20; what PyTorch's own in float32 are off by is looked at too


def make_model(config: GeneratorConfig = WIDE, vocabulary: Vocabulary = MANY) -> Generator:
    torch.manual_seed(0)
    model = widen(Generator(config, vocabulary)).eval().requires_grad_(False)
    for name, weight in model.named_parameters():
        if "norm" in name:  # or nobody would see one that is left out
            weight.copy_(torch.rand_like(weight) + 0.5)
    return model


def library() -> ctypes.CDLL:
    found = load_step()
    assert found is not None
    return found


def compiled(model: Generator, *, num_rows: int) -> CompiledSteps:
    return CompiledSteps(model, library(), num_rows=num_rows)


def run(made: Steps, model: Generator, *, num_rows: int, num_steps: int) -> list[tuple[Tensor, ...]]:
    """All that is computed of made-up sequences; row r begins a new one r steps later than the others."""
    vocabulary, random = model.vocabulary, torch.Generator().manual_seed(0)
    most = min(vocabulary.global_vocab, vocabulary.patch_vocab)
    conditions = torch.randn(5, model.config.width, generator=random).to(model.patch_codes.weight.dtype)
    found = []
    for step in range(num_steps):
        order = (step + torch.arange(64)[:num_rows] * 3) % vocabulary.max_length
        codes = torch.randint(most, (64,), generator=random)[:num_rows]
        places = torch.randint(vocabulary.num_patches, (64,), generator=random)[:num_rows]
        if vocabulary.num_globals:
            places = torch.where(order <= vocabulary.num_globals, places % vocabulary.num_globals, places)
        elements = made.embed(order, codes, places, conditions, torch.arange(num_rows) % 5)
        spots = torch.where(order <= vocabulary.num_globals, order, 1 + vocabulary.num_globals + places)
        hidden = made.hidden(elements, order, spots)
        logits = made.global_logits(hidden), made.position_logits(hidden)
        found.append((elements, hidden, *logits, made.code_logits(hidden, places)))
    return found


@pytest.mark.parametrize(
    ("config", "vocabulary"),
    [
        (WIDE, MANY),
        (SMALL, VOCABULARY),
        (replace(SMALL, width=24, heads=3), VOCABULARY),  # heads and rows that fill no register
        (replace(SMALL, width=256, heads=1), VOCABULARY),
        (replace(SMALL, width=120, heads=3, depth=3), replace(VOCABULARY, num_globals=0)),
    ],
)
@pytest.mark.parametrize("num_rows", [1, 7])
def test_logits_are_those_of_the_model(
    config: GeneratorConfig, vocabulary: Vocabulary, num_rows: int
) -> None:
    model = make_model(config, vocabulary)
    ours = run(compiled(model, num_rows=num_rows), model, num_rows=num_rows, num_steps=70)
    plain = PlainSteps(model, num_rows=num_rows, is_static=True, rotary=model.rotary)
    theirs = run(plain, model, num_rows=num_rows, num_steps=70)
    exact = copy.deepcopy(model).double()
    oracle = PlainSteps(exact, num_rows=num_rows, is_static=True, rotary=model.rotary)
    errors = torch.zeros(2)
    for found, other, expected in zip(
        *(sum(each, ()) for each in (ours, theirs, run(oracle, exact, num_rows=num_rows, num_steps=70))),
        strict=True,
    ):
        assert found.shape == expected.shape
        torch.testing.assert_close(found.double(), expected, rtol=0, atol=TOLERANCE)
        errors = torch.maximum(
            errors, torch.stack([(each - expected).abs().max() for each in (found, other)])
        )
    assert errors[0] < 2 * errors[1]


@pytest.mark.parametrize("num_threads", [1, 2])
def test_a_row_is_the_same_in_any_batch_by_any_number_of_threads(
    num_threads: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(steps, "_LEAST_PRODUCTS", 0)  # threads even for a model as small as this
    model = make_model()
    alone = run(compiled(model, num_rows=1), model, num_rows=1, num_steps=20)
    torch.set_num_threads(num_threads)
    try:
        for num_rows in (2, 6, 13):
            among = run(compiled(model, num_rows=num_rows), model, num_rows=num_rows, num_steps=20)
            for found, expected in zip(among, alone, strict=True):
                assert all(torch.equal(one[:1], other) for one, other in zip(found, expected, strict=True))
    finally:
        torch.set_num_threads(1)


@pytest.mark.skipif(platform.machine() != "x86_64", reason="about x86-64")
@pytest.mark.parametrize(("processor", "is_same"), [("x86-64-v3", True), ("x86-64", False)])
def test_other_processors(
    processor: str, is_same: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With AVX2 the same bits as with AVX-512; without fused multiply-adds others, in the same tolerance."""
    if " avx2 " not in Path("/proc/cpuinfo").read_text():
        pytest.skip("this processor has no AVX2")
    model, compiler = make_model(), find_compiler()
    assert compiler is not None
    ours = run(compiled(model, num_rows=7), model, num_rows=7, num_steps=40)
    other = tmp_path / "other.so"
    compile_c(steps._SOURCE, other, (*compiler, f"-march={processor}"))
    monkeypatch.setattr(steps, "load_c_library", lambda source: ctypes.CDLL(str(other)))
    theirs = run(compiled(model, num_rows=7), model, num_rows=7, num_steps=40)
    same = [torch.equal(*pair) for pair in zip(sum(ours, ()), sum(theirs, ()), strict=True)]
    assert all(same) == is_same
    for one, another in zip(sum(ours, ()), sum(theirs, ()), strict=True):
        torch.testing.assert_close(one, another, rtol=0, atol=TOLERANCE)
