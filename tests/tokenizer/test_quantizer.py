from __future__ import annotations

import pytest
import torch

from tatok_pipe.tokenizer.options import QuantizerConfig
from tatok_pipe.tokenizer.quantizer import FSQ, VQ, build_quantizer, nearest


@pytest.mark.parametrize("levels", [[8, 8, 8], [5, 4, 3], [2, 2], [8, 8, 8, 8, 4]])
def test_fsq_codes_are_the_cells_of_the_grid(levels: list[int]) -> None:
    fsq = FSQ(QuantizerConfig(kind="fsq", levels=levels))
    codes = torch.arange(fsq.vocab_size)
    vectors = fsq.codes_to_vectors(codes)
    assert vectors.unique(dim=0).shape[0] == fsq.vocab_size
    assert vectors.abs().max() <= 1
    # Every code can be reached: latents from far out to far out on both sides meet each level of each dimension.
    latents = torch.linspace(-4, 4, 4001)[:, None].expand(-1, len(levels))
    digits = fsq.codes_to_digits(fsq.quantize(latents).codes)
    for dimension, count in enumerate(levels):
        assert digits[:, dimension].unique().tolist() == list(range(count))


def test_fsq_vectors_and_codes_say_the_same() -> None:
    fsq = FSQ(QuantizerConfig(kind="fsq", levels=[8, 5, 4]))
    quantized = fsq.quantize(torch.randn(50, 6, 3))
    assert torch.allclose(quantized.vectors, fsq.codes_to_vectors(quantized.codes), atol=1e-6)
    assert quantized.codes.min() >= 0 and quantized.codes.max() < fsq.vocab_size


@pytest.mark.parametrize("levels", [[8, 5, 4], [2, 3], [7]])
def test_unevenness_is_zero_where_every_code_is_used_alike(levels: list[int]) -> None:
    fsq = FSQ(QuantizerConfig(kind="fsq", levels=levels))
    digits = fsq.codes_to_digits(torch.arange(fsq.vocab_size))
    target = (digits - fsq.levels // 2).float()
    offset = torch.where(fsq.levels % 2 == 0, 0.5, 0.0)
    reach = (fsq.levels - 1) / 2 * (1 + 1e-3)
    latents = torch.atanh((target + offset) / reach) - torch.atanh(offset / reach)
    quantized = fsq.quantize(latents)
    assert torch.equal(quantized.codes, torch.arange(fsq.vocab_size))
    assert float(quantized.regularizer) == pytest.approx(0, abs=1e-6)
    assert float(fsq.quantize(torch.zeros(50, len(levels))).regularizer) > 0.1
    copies = latents[:, :1].expand(-1, len(levels))  # all dimensions say the same
    if len(levels) > 1:
        assert float(fsq.quantize(copies).regularizer) > 0.05


def test_unevenness_spreads_latents_that_sit_together() -> None:
    fsq = FSQ(QuantizerConfig(kind="fsq", levels=[8, 8]))
    latents = (0.1 * torch.randn(500, 1, generator=torch.Generator().manual_seed(0))).expand(-1, 2).clone()
    latents += 0.02 * torch.randn(500, 2, generator=torch.Generator().manual_seed(1))
    latents.requires_grad_()
    before = fsq.quantize(latents).codes.unique().numel()
    optimizer = torch.optim.Adam([latents], lr=0.05)
    for _ in range(200):
        optimizer.zero_grad()
        fsq.quantize(latents).regularizer.backward()
        optimizer.step()
    assert fsq.quantize(latents).codes.unique().numel() > 3 * before


def test_fsq_passes_gradients_straight_through() -> None:
    latents = torch.randn(10, 3, requires_grad=True)
    FSQ(QuantizerConfig(kind="fsq", levels=[8, 8, 8])).quantize(latents).vectors.sum().backward()
    assert latents.grad is not None and (latents.grad != 0).all()


def vq(size: int, dim: int, *, places: int | None = None, **options: float) -> VQ:
    torch.manual_seed(0)
    return VQ(QuantizerConfig(codebook_size=size, code_dim=dim, **options), num_places=places)  # type: ignore[arg-type]


def test_vq_picks_the_nearest_codeword() -> None:
    quantizer = vq(50, 7).eval()
    latents = torch.randn(30, 5, 7)
    distances = torch.cdist(latents.flatten(0, 1).double(), quantizer.codebook[0].detach().double())
    quantized = quantizer.quantize(latents)
    assert torch.equal(quantized.codes.flatten(), distances.argmin(1))
    assert torch.equal(quantized.vectors, quantizer.codes_to_vectors(quantized.codes))
    # Of codewords that are equally near the first one.
    quantizer.codebook.data[0, 20] = quantizer.codebook.data[0, 3]
    assert 20 not in quantizer.quantize(latents).codes


def test_every_place_has_a_codebook_of_its_own() -> None:
    quantizer = vq(9, 4, places=3).eval()
    latents = torch.randn(6, 3, 4)
    found = quantizer.quantize(latents)
    for place in range(3):
        codebook = quantizer.codebook[place].detach()
        nearest = torch.cdist(latents[:, place].double(), codebook.double()).argmin(1)
        assert torch.equal(found.codes[:, place], nearest)
        assert torch.equal(found.vectors[:, place], codebook[nearest])
    size = (found.vectors.detach() * quantizer.scale()).square().mean()
    assert 0.3 < float(size) < 3


def test_gradients_reach_latents_and_codewords() -> None:
    quantizer = vq(4, 2)
    latents = torch.randn(10, 2, requires_grad=True)
    quantized = quantizer.quantize(latents)
    quantized.vectors.sum().backward(retain_graph=True)
    assert latents.grad is not None and torch.equal(latents.grad, torch.ones(10, 2))
    uses = torch.bincount(quantized.codes, minlength=4).float()
    assert quantizer.codebook.grad is not None
    assert torch.equal(quantizer.codebook.grad[0], uses[:, None].expand(4, 2))
    before = quantized.regularizer.detach()
    optimizer = torch.optim.SGD([latents, quantizer.codebook], lr=0.2)
    for _ in range(40):
        optimizer.zero_grad()
        quantizer.quantize(latents).regularizer.backward()
        optimizer.step()
    assert quantizer.quantize(latents).regularizer < 0.5 * before


def test_vq_revives_dead_codes_and_stands_still_in_eval() -> None:
    quantizer = vq(64, 4, ema_decay=0.8, revive_below=0.1)
    latents = torch.randn(512, 4)
    latents[:, 0] = latents[:, 0].abs() + 3  # all on one side: most random codewords are far away
    first = quantizer.quantize(latents).codes.unique().numel()
    for _ in range(40):
        codes = quantizer.quantize(latents).codes
    assert codes.unique().numel() > max(40, first)
    frozen = quantizer.codebook.clone()
    quantizer.eval().quantize(latents)
    assert torch.equal(quantizer.codebook, frozen)


def test_sizes_follow_the_kind() -> None:
    assert build_quantizer(QuantizerConfig()).vocab_size == 16384
    vq = build_quantizer(QuantizerConfig(codebook_size=100, code_dim=7))
    assert (vq.vocab_size, vq.dim) == (100, 7)


@pytest.mark.parametrize("options", [{"kind": "pq"}, {"levels": []}, {"levels": [8, 1]}, {"ema_decay": 1.0}])
def test_impossible_codebooks_are_refused(options: dict[str, object]) -> None:
    with pytest.raises(ValueError):
        QuantizerConfig(**options)  # type: ignore[arg-type]


@pytest.mark.parametrize("size", [50, 128, 2048])  # with blocks of 64 and without
def test_the_nearest_codeword_is_the_first_of_the_nearest(size: int) -> None:
    random = torch.Generator().manual_seed(0)
    codebook = torch.randint(-2, 3, (size, 3), generator=random).float()  # of 125 different ones
    vectors = torch.randint(-2, 3, (700, 3), generator=random).float()
    distances = (vectors[:, None] - codebook).square().sum(dim=2)
    first = torch.tensor([row.tolist().index(float(row.min())) for row in distances])
    assert torch.equal(nearest(vectors, codebook), first)
    assert len(first.unique()) > 20
