"""The closed form against numpy and scikit-learn, on real pictures, on poor ones, and by several processes."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from sklearn.decomposition import PCA
from torch import Tensor

from tatok_pipe.images.decode import decode_image
from tatok_pipe.images.demo import held_out_crops
from tatok_pipe.images.options import PreprocessConfig
from tatok_pipe.tokenizer.analysis import psnr
from tatok_pipe.tokenizer.closed_form import deal_components, fit_closed_form, principal_components
from tatok_pipe.tokenizer.model import TaTok
from tatok_pipe.tokenizer.options import (
    GlobalQuantizerConfig,
    GridStackConfig,
    QuantizerConfig,
    StackConfig,
    TaTokConfig,
)
from tatok_pipe.tokenizer.trainer import to_model_input

NUM_CROPS = 96


def build(image_size: int = 32, patch_size: int = 4, num_globals: int = 4) -> TaTok:
    torch.manual_seed(0)
    grid = GridStackConfig(width=16, depth=1, heads=2)
    config = TaTokConfig(
        image_size=image_size, patch_size=patch_size, num_globals=num_globals, search_passes=1, encoder=grid,
        decoder=grid, prior=StackConfig(width=16, depth=1, heads=2),
        global_codebook=GlobalQuantizerConfig(codebook_size=16),
        patch_codebook=QuantizerConfig(codebook_size=64, code_dim=24),
    )  # fmt: skip
    return TaTok(config).eval()


@pytest.fixture(scope="module")
def pictures() -> Tensor:
    crops = held_out_crops(crops_per_source=12)
    pixels = [decode_image(crop.image, PreprocessConfig(image_size=32))[0] for crop in crops]
    return to_model_input(np.stack(pixels), "cpu")


def batches(images: Tensor) -> Iterator[Tensor]:
    while True:
        yield from images.split(16)


def quality(model: TaTok, images: Tensor, share: float = 1.0) -> float:
    encoded = model.encode(images)
    keep = encoded.gain.argsort(dim=1, descending=True).argsort(dim=1) < share * encoded.gain.shape[1]
    decoded = model.decode(encoded.globals.codes, encoded.patches.codes, keep)
    return psnr(decoded, images).mean().item()


def test_components_are_those_of_scikit_learn() -> None:
    x = torch.randn(200, 12, generator=torch.Generator().manual_seed(0)) * torch.linspace(3, 0.2, 12) + 1
    mean, values, vectors = principal_components(x)
    reference = PCA().fit(x.numpy())
    assert np.allclose(mean.numpy(), reference.mean_, atol=1e-5)
    assert np.allclose(values.numpy() * 200 / 199, reference.explained_variance_, rtol=1e-4)
    assert np.allclose(vectors.T.abs().numpy(), np.abs(np.asarray(reference.components_)), atol=1e-3)
    assert (vectors.gather(0, vectors.abs().argmax(0, keepdim=True)) > 0).all()


def test_components_are_dealt_out_so_that_places_have_like_bits() -> None:
    values = torch.tensor([2.0 ** (-2 * i) for i in range(12)], dtype=torch.float64) * 1e4
    order = deal_components(values, places=4, dim=3, codes=256)
    assert sorted(order) == list(range(12))
    bits = 0.5 * torch.log2(values[order] / 1e-4).view(4, 3).sum(1)
    assert bits.max() - bits.min() <= 4
    assert {order[0], order[3], order[6], order[9]} == {0, 1, 2, 3}  # each begins with one of the largest


def test_codes_of_real_pictures_are_worth_their_bits(pictures: Tensor) -> None:
    model = build()
    told: list[str] = []
    fit_closed_form(model, batches(pictures), num_crops=NUM_CROPS, seed=0, tell=told.append)
    alone, half, everything = (quality(model, pictures, share) for share in (0.0, 0.5, 1.0))
    assert alone > 14 and half > alone + 2 and everything > half
    assert len(told) >= 4
    assert quality(model, pictures) == quality(model, pictures)
    searched = model.encode(pictures)
    plain = model.encode(pictures, search_passes=0)
    keep = torch.ones_like(plain.patches.codes, dtype=torch.bool)
    by_passes = [
        (model.reconstruct(each.globals.vectors, each.patches.vectors, keep) - pictures).square().mean()
        for each in (plain, searched)
    ]
    assert by_passes[1] < by_passes[0]


@pytest.mark.parametrize("size", [(32, 8, 2), (32, 4, 0), (24, 8, 3)])
def test_every_size_has_a_closed_form(pictures: Tensor, size: tuple[int, int, int]) -> None:
    model = build(*size)
    images = torch.nn.functional.interpolate(pictures, size=size[0], mode="area")
    before = quality(model, images)
    fit_closed_form(model, batches(images), num_crops=NUM_CROPS, seed=0)
    assert quality(model, images) > before + 2


@pytest.mark.parametrize("kind", ["one colour", "grey", "one image", "black"])
def test_poor_images_give_correct_codebooks(pictures: Tensor, kind: str) -> None:
    images = {
        "one colour": torch.rand(8, 3, 1, 1, generator=torch.Generator().manual_seed(0)).expand(8, 3, 32, 32),
        "grey": pictures.mean(1, keepdim=True).expand(-1, 3, -1, -1),
        "one image": pictures[:1].expand(8, -1, -1, -1),
        "black": torch.zeros(8, 3, 32, 32),
    }[kind].contiguous()
    model = build()
    fit_closed_form(model, batches(images), num_crops=NUM_CROPS, seed=0)
    assert all(weight.isfinite().all() for weight in model.state_dict().values())
    assert quality(model, images) > (17 if kind == "grey" else 30)


def _one_of_two(rank: int, folder: str, images: Tensor) -> None:
    dist.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=2)
    model = build()
    fit_closed_form(model, batches(images[rank::2]), num_crops=NUM_CROPS // 2, seed=0)
    torch.save(model.state_dict(), f"{folder}/{rank}.pt")
    dist.destroy_process_group()


def test_processes_find_one_result_and_find_it_again(
    pictures: Tensor, tmp_path_factory: pytest.TempPathFactory
) -> None:
    found = []
    for _ in range(2):
        folder = str(tmp_path_factory.mktemp("processes"))
        mp.spawn(_one_of_two, args=(folder, pictures), nprocs=2)  # type: ignore[attr-defined]
        found += [torch.load(f"{folder}/{rank}.pt") for rank in (0, 1)]
    assert all(torch.equal(weight, other[name]) for other in found for name, weight in found[0].items())
    model = build()
    model.load_state_dict(found[0])
    alone = build()
    fit_closed_form(alone, batches(pictures), num_crops=NUM_CROPS, seed=0)
    assert abs(quality(model, pictures) - quality(alone, pictures)) < 0.7
