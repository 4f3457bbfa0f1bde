from __future__ import annotations

import pytest
import torch

from tatok_pipe.tokenizer.quantizer import FSQ, CosineVQ, QuantizerConfig, build_quantizer


@pytest.mark.parametrize("levels", [[8, 8, 8], [5, 4, 3], [2, 2], [8, 8, 8, 8, 4]])
def test_fsq_codes_are_the_cells_of_the_grid(levels: list[int]) -> None:
    fsq = FSQ(QuantizerConfig(levels=levels))
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
    fsq = FSQ(QuantizerConfig(levels=[8, 5, 4]))
    quantized = fsq.quantize(torch.randn(50, 6, 3))
    assert torch.allclose(quantized.vectors, fsq.codes_to_vectors(quantized.codes), atol=1e-6)
    assert quantized.codes.min() >= 0 and quantized.codes.max() < fsq.vocab_size


@pytest.mark.parametrize("levels", [[8, 5, 4], [2, 3], [7]])
def test_unevenness_is_zero_where_every_code_is_used_alike(levels: list[int]) -> None:
    fsq = FSQ(QuantizerConfig(levels=levels))
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
    fsq = FSQ(QuantizerConfig(levels=[8, 8]))
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
    FSQ(QuantizerConfig(levels=[8, 8, 8])).quantize(latents).vectors.sum().backward()
    assert latents.grad is not None and (latents.grad != 0).all()


def test_vq_picks_the_nearest_code_and_moves_it_towards_its_latents() -> None:
    torch.manual_seed(0)
    vq = CosineVQ(QuantizerConfig(kind="vq", codebook_size=4, code_dim=2, ema_decay=0.5, revive_below=0.0))
    latents = torch.tensor([[1.0, 0.1], [1.0, -0.1], [0.9, 0.0]])
    before = vq.quantize(latents)
    nearest = (torch.nn.functional.normalize(latents, dim=-1) @ vq.codebook.t()).argmax(-1)
    vq.eval()
    assert torch.equal(vq.quantize(latents).codes, nearest)
    vq.train()
    for _ in range(20):
        after = vq.quantize(latents)
    assert after.regularizer < before.regularizer
    assert after.regularizer < 0.02
    assert torch.allclose(vq.codebook.norm(dim=-1), torch.ones(4), atol=1e-5)


def test_vq_revives_dead_codes_and_stands_still_in_eval() -> None:
    torch.manual_seed(0)
    vq = CosineVQ(QuantizerConfig(kind="vq", codebook_size=64, code_dim=4, ema_decay=0.8, revive_below=0.1))
    latents = torch.randn(512, 4)
    latents[:, 0] = latents[:, 0].abs() + 3  # all on one side: most random codes are far away
    first = vq.quantize(latents).codes.unique().numel()
    for _ in range(40):
        codes = vq.quantize(latents).codes
    assert codes.unique().numel() > max(40, first)
    frozen = vq.codebook.clone()
    vq.eval().quantize(latents)
    assert torch.equal(vq.codebook, frozen)


def test_sizes_follow_the_kind() -> None:
    assert build_quantizer(QuantizerConfig()).vocab_size == 16384
    vq = build_quantizer(QuantizerConfig(kind="vq", codebook_size=100, code_dim=7))
    assert (vq.vocab_size, vq.dim) == (100, 7)


@pytest.mark.parametrize("options", [{"kind": "pq"}, {"levels": []}, {"levels": [8, 1]}, {"ema_decay": 1.0}])
def test_impossible_codebooks_are_refused(options: dict[str, object]) -> None:
    with pytest.raises(ValueError):
        QuantizerConfig(**options)  # type: ignore[arg-type]
