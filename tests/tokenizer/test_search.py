"""Codes by synthesis: never worse, the best of all codewords at every place, and images do not see each other."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from tatok_pipe.tokenizer.linear import LinearCodec
from tatok_pipe.tokenizer.search import Neighbourhood, ProjectedDecoder, pad_errors, search_codes

SIDE, PATCH, DIM, SIZE = 7, 4, 12, 40


@pytest.fixture
def codec() -> LinearCodec:
    torch.manual_seed(0)
    codec = LinearCodec(grid_side=SIDE, patch_size=PATCH, num_globals=2, global_dim=3, patch_dim=DIM)
    with torch.no_grad():
        codec.neighbours.normal_(std=0.03)
    return codec.requires_grad_(False)


@pytest.fixture
def codebook() -> Tensor:
    return torch.randn(SIZE, DIM, generator=torch.Generator().manual_seed(1))


def errors(codec: LinearCodec, codebook: Tensor, codes: Tensor, target: Tensor) -> Tensor:
    picture = torch.full_like(target, 0.5)
    return target - codec.all_residuals(codebook[codes], picture)


def draw(codec: LinearCodec, codebook: Tensor, num_images: int) -> tuple[Tensor, Tensor]:
    """Residuals (B, N, P), and the nearest codes (B, N)."""
    random = torch.Generator().manual_seed(2)
    target = torch.randn(num_images, SIDE**2, 3 * PATCH**2, generator=random) * 0.7
    latents = target @ codec.patch_basis
    return target, torch.cdist(latents, codebook[None].expand(num_images, -1, -1)).argmin(2)


def test_the_jacobian_is_how_a_code_moves_the_patches_around_it(codec: LinearCodec, codebook: Tensor) -> None:
    codes = torch.zeros(1, SIDE**2, dtype=torch.long)
    target = torch.zeros(1, SIDE**2, 3 * PATCH**2)
    changed = codes.clone()
    place = 3 * SIDE + 2
    changed[0, place] = 5
    moved = errors(codec, codebook, codes, target) - errors(codec, codebook, changed, target)
    change = codebook[5] - codebook[0]
    for index, weights in enumerate(codec.jacobian()):
        # The patch whose j-th neighbour is the one that changed.
        row, column = 3 + 1 - index // 3, 2 + 1 - index % 3
        assert torch.allclose(moved[0, row * SIDE + column], change @ weights, atol=1e-5)
        moved[0, row * SIDE + column] = 0
    assert moved.abs().max() < 1e-6


def test_no_codeword_is_better_where_the_search_has_ended(
    codec: LinearCodec, codebook: Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tatok_pipe.tokenizer.search._DIRECTIONS_PER_DIM", 4)  # all of them
    target, nearest = draw(codec, codebook, 2)
    neighbourhood = Neighbourhood(codec.jacobian(), codebook)
    error = [errors(codec, codebook, nearest, target).square().sum((1, 2))]
    codes = nearest
    for _ in range(8):
        found = errors(codec, codebook, codes, target)
        codes = search_codes(codes, pad_errors(found, neighbourhood, SIDE), neighbourhood, num_passes=1)
        error.append(errors(codec, codebook, codes, target).square().sum((1, 2)))
    assert (error[1] < 0.98 * error[0]).all()
    assert (torch.stack(error).diff(dim=0) <= 1e-3).all()
    # By trying every codeword at every inner place, which no code but our own arithmetic is asked for.
    for row in range(1, SIDE - 1):
        for column in range(1, SIDE - 1):
            trial = codes[:1].repeat(SIZE, 1)
            trial[:, row * SIDE + column] = torch.arange(SIZE)
            sums = errors(codec, codebook, trial, target[:1].expand(SIZE, -1, -1)).square().sum((1, 2))
            assert sums[codes[0, row * SIDE + column]] <= sums.min() * 1.001


def test_images_do_not_depend_on_each_other(codec: LinearCodec, codebook: Tensor) -> None:
    target, nearest = draw(codec, codebook, 5)
    neighbourhood = Neighbourhood(codec.jacobian(), codebook)

    def search(rows: list[int]) -> Tensor:
        found = errors(codec, codebook, nearest[rows], target[rows])
        padded = pad_errors(found, neighbourhood, SIDE)
        return search_codes(nearest[rows], padded, neighbourhood, num_passes=2)

    together = search([0, 1, 2, 3, 4])
    assert torch.equal(search([3, 0]), together[[3, 0]])
    assert torch.equal(search([2]), together[[2]])
    assert not torch.equal(together, nearest)


def test_no_pass_changes_nothing(codec: LinearCodec, codebook: Tensor) -> None:
    target, nearest = draw(codec, codebook, 1)
    found = errors(codec, codebook, nearest, target)
    neighbourhood = Neighbourhood(codec.jacobian(), codebook)
    padded = pad_errors(found, neighbourhood, SIDE)
    assert torch.equal(search_codes(nearest, padded, neighbourhood, num_passes=0), nearest)


def test_errors_in_some_directions_are_those_of_the_whole_decoder(
    codec: LinearCodec, codebook: Tensor
) -> None:
    target, nearest = draw(codec, codebook, 2)
    picture = torch.rand(target.shape, generator=torch.Generator().manual_seed(3))
    vectors = codebook[nearest]
    neighbourhood = Neighbourhood(codec.jacobian(), codebook)
    expected = target - codec.all_residuals(vectors, picture)
    found = ProjectedDecoder(codec, neighbourhood.basis).errors(target, vectors, picture)
    assert found.shape == (2, SIDE + 2, SIDE + 2, neighbourhood.basis.shape[1])
    torch.testing.assert_close(found, pad_errors(expected, neighbourhood, SIDE), atol=1e-5, rtol=1e-5)
