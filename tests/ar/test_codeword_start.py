"""Codes that begin as their codewords."""

from __future__ import annotations

import pytest
import torch

from tatok_pipe.ar.codeword_start import start_from_codewords
from tatok_pipe.ar.model import Generator
from tests.ar.packed import SMALL, VOCABULARY, draw, tensors


def started(codewords: torch.Tensor, *, seed: int = 0) -> Generator:
    torch.manual_seed(seed)
    model = Generator(SMALL, VOCABULARY)
    start_from_codewords(model, codewords)
    return model


@pytest.mark.parametrize("size", [3, 32, 48])  # of a width of 32
def test_codes_are_as_far_apart_as_their_codewords(size: int) -> None:
    codewords = torch.randn(7, size, generator=torch.Generator().manual_seed(1)) + 5
    model = started(codewords)
    rows = model.patch_codes.weight.detach()
    assert torch.equal(rows, model.code_head.out.weight)
    assert rows.square().mean().sqrt().item() == pytest.approx(0.02, rel=1e-5)
    if size <= 32:  # else there is not room for all of what they are
        far, expected = torch.cdist(rows, rows), torch.cdist(codewords, codewords)
        torch.testing.assert_close(far / far.max(), expected / expected.max(), rtol=1e-4, atol=1e-5)


def test_the_start_is_the_seeds() -> None:
    codewords = torch.randn(7, 3)
    one, same, other = (started(codewords, seed=seed).patch_codes.weight for seed in (1, 1, 2))
    assert torch.equal(one, same) and not torch.equal(one, other)


def test_all_else_is_as_without_it() -> None:
    model = started(torch.randn(7, 3))
    torch.manual_seed(0)
    plain = Generator(SMALL, VOCABULARY)
    changed = {
        name for name, value in plain.state_dict().items() if not value.equal(model.state_dict()[name])
    }
    assert changed == {"patch_codes.weight", "code_head.out.weight"}
    assert model(tensors([draw(3)], row_tokens=60)).total.isfinite().all()


def test_codewords_that_are_all_alike_say_nothing() -> None:
    rows = started(torch.ones(7, 3)).patch_codes.weight
    assert rows.isfinite().all() and not rows.any()


def test_codewords_of_other_codes_are_refused() -> None:
    with pytest.raises(ValueError, match="6 codewords: expected 7"):
        started(torch.randn(6, 3))
