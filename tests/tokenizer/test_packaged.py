"""The tokenizer that comes with the package does on pictures it never saw what a tokenizer is for."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from tatok_pipe.images.decode import decode_image
from tatok_pipe.images.demo import held_out_crops, write_demo_corpus
from tatok_pipe.images.options import PreprocessConfig
from tatok_pipe.images.webdataset.samples import read_samples
from tatok_pipe.records import ImageSample
from tatok_pipe.tokenizer.analysis import analyse, decode, psnr
from tatok_pipe.tokenizer.checkpoint import Tokenizer, load_tokenizer
from tatok_pipe.tokenizer.dtf import Filter, keep_mask
from tatok_pipe.tokenizer.heldout import measure
from tatok_pipe.tokenizer.options import DTFConfig
from tatok_pipe.tokenizer.trainer import to_model_input


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return load_tokenizer()


def load(samples: list[bytes], tokenizer: Tokenizer) -> Tensor:
    preprocess = PreprocessConfig(image_size=tokenizer.model.config.image_size)
    return to_model_input(np.stack([decode_image(data, preprocess)[0] for data in samples]), "cpu")


@pytest.fixture(scope="module")
def crops(tokenizer: Tokenizer) -> Tensor:
    """Of a photograph, a texture and a scanned text, none of them in the demo corpus or the training data."""
    return load([crop.image for crop in held_out_crops(crops_per_source=8)], tokenizer)


def test_a_flat_image_is_cheap_and_a_page_of_text_is_dear(tokenizer: Tokenizer, tmp_path: Path) -> None:
    filter = tokenizer.filter(DTFConfig())
    grey = io.BytesIO()
    Image.new("RGB", (200, 160), (128, 128, 128)).save(grey, "PNG")
    corpus = write_demo_corpus(tmp_path / "corpus", num_shards=1, crops_per_source=4)
    with open(corpus.shards[0], "rb") as stream:
        samples = [s for s in read_samples(stream, shard="corpus") if isinstance(s, ImageSample)]
    pages = [sample.image for sample in samples if sample.key.startswith("page")]
    images = load([grey.getvalue(), *pages], tokenizer)
    flat, *printed = tokenizer.model.tokenize(images, filter).keep.sum(1).tolist()
    assert len(printed) == 4
    assert flat <= 13  # a twentieth of 256
    assert all(flat < count for count in printed)
    assert sum(printed) / 4 > 3 * flat


def test_it_reconstructs_and_more_tokens_show_more(tokenizer: Tokenizer, crops: Tensor) -> None:
    means = []
    for kept in (0, 32, 64, 128, 256):
        tokens = tokenizer.model.tokenize(crops, Filter("top_k", kept, min_patches=0))
        decoded = tokenizer.model.decode(tokens.global_codes, tokens.patch_codes, tokens.keep)
        means.append(psnr(decoded, crops).mean().item())
    assert means == sorted(means)
    flat = crops.mean(dim=(2, 3), keepdim=True).expand_as(crops)
    assert means[-1] > psnr(flat, crops).mean().item() + 2


def test_a_target_is_met_on_pictures_like_those_it_was_calibrated_on(tokenizer: Tokenizer) -> None:
    figures = tokenizer.training["held_out"]
    config = tokenizer.model.config
    assert figures["default_tokens_mean"] == pytest.approx(
        config.num_globals + config.num_patches / 2, rel=0.2
    )


def test_the_card_tells_what_the_measure_gives(tokenizer: Tokenizer, crops: Tensor) -> None:
    figures = measure(tokenizer.model, crops, tokenizer.ladders, seed=0)
    assert set(figures) == set(tokenizer.training["held_out"])
    with torch.no_grad():
        assert figures["psnr_globals_only"] > figures["psnr_globals_shuffled"]
    assert abs(figures["surprisal_mean_nats"] / figures["entropy_mean_nats"] - 1) < 0.5


def test_its_scores_find_the_patches_that_matter(tokenizer: Tokenizer, crops: Tensor) -> None:
    found = analyse(tokenizer.model, crops)
    for kept in (64, 128):
        quality = {
            name: psnr(
                decode(tokenizer.model, found, keep_mask(cost, Filter("top_k", kept))), crops
            ).mean().item()
            for name, cost in found.costs.items()
        }  # fmt: skip
        assert quality["drop_cost"] > quality["random"] + 1
        assert quality["synthesis"] > max(quality["entropy"], quality["variance"], quality["one_shot"])
