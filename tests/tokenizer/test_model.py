"""The model's contracts: what depends on what, shapes, precision, and the entropies it reports."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from tatok_pipe.tokenizer.dtf import Filter
from tatok_pipe.tokenizer.model import TaTok
from tatok_pipe.tokenizer.options import GlobalQuantizerConfig, GridStackConfig, StackConfig, TaTokConfig
from tatok_pipe.tokenizer.prior import entropy_nats, surprisal_nats
from tests.tokenizer.conftest import small_config

ALL = Filter("none", 0)


def test_patches_go_back_where_they_came_from(model: TaTok, images: Tensor) -> None:
    patches = model.patchify(images)
    assert patches.shape == (4, 16, 192)
    assert torch.equal(model.unpatchify(patches), images)
    # Patch 5 of a 4 × 4 grid is row 1, column 1.
    assert torch.equal(patches[0, 5].view(3, 8, 8), images[0, :, 8:16, 8:16])


def test_tokenize_gives_codes_entropies_and_a_mask(model: TaTok, images: Tensor) -> None:
    tokens = model.tokenize(images, Filter("top_k", 5, score="entropy"), with_mutual_information=True)
    assert tokens.global_codes.shape == (4, 3) and tokens.patch_codes.shape == (4, 16)
    assert tokens.keep.sum(1).tolist() == [5] * 4
    assert (tokens.patch_entropy >= 0).all()
    assert tokens.mutual_information is not None and tokens.mutual_information.shape == (4,)
    kept = [tokens.patch_entropy[i][tokens.keep[i]].min() for i in range(4)]
    dropped = [tokens.patch_entropy[i][~tokens.keep[i]].max() for i in range(4)]
    assert all(k >= d for k, d in zip(kept, dropped, strict=True))


def test_decoding_does_not_read_dropped_codes(model: TaTok, images: Tensor) -> None:
    tokens = model.tokenize(images, Filter("top_k", 5))
    reference = model.decode(tokens.global_codes, tokens.patch_codes, tokens.keep)
    assert reference.shape == images.shape
    garbage = torch.where(tokens.keep, tokens.patch_codes, 0)
    assert torch.equal(model.decode(tokens.global_codes, garbage, tokens.keep), reference)
    changed = torch.where(tokens.keep, (tokens.patch_codes + 1) % 64, 0)
    assert not torch.equal(model.decode(tokens.global_codes, changed, tokens.keep), reference)


def test_globals_read_patches_and_patches_read_globals(images: Tensor, model: TaTok) -> None:
    encoder = model.encoder
    assert encoder is not None
    latents, patches = torch.randn(4, 3, model.global_quantizer.dim), model.patchify(images)
    changed = patches.clone()
    changed[:, 5] = 1 - changed[:, 5]
    others = latents + 1
    with torch.no_grad():
        for output in encoder(latents, patches)[:2]:
            assert not output.any()  # it begins at nothing
        for parameter in encoder.parameters():
            parameter.normal_(std=0.3)
        of_globals, of_patches, _ = encoder(latents, patches)
        assert not torch.allclose(encoder(latents, changed)[0], of_globals)
        read = encoder(others, patches)[1]
    far = (read - of_patches).abs().amax(dim=(0, 2))
    assert (far > 1e-4).all()  # every patch, by attention


def test_networks_begin_at_the_linear_codec(model: TaTok, images: Tensor) -> None:
    """At first the picture is that of the linear maps, whatever is kept, and the latents are theirs."""
    encoded = model.encode(images)
    keep = torch.rand(4, 16, generator=torch.Generator().manual_seed(0)) < 0.5
    linear = model.linear
    torch.nn.init.normal_(linear.neighbours, std=0.02)
    picture = linear.render(encoded.globals.vectors)
    patches = linear.patchify(picture)
    expected = picture + linear.unpatchify(linear.residuals(encoded.patches.vectors, patches, keep))
    output = model.reconstruct(encoded.globals.vectors, encoded.patches.vectors, keep)
    assert torch.equal(output, expected)
    everything = torch.ones_like(keep)
    assert torch.allclose(
        linear.residuals(encoded.patches.vectors, patches, everything),
        linear.all_residuals(encoded.patches.vectors, patches),
        atol=1e-6,
    )


def test_gain_is_what_the_codeword_takes_off_the_error(model: TaTok, images: Tensor) -> None:
    encoded = model.encode(images)
    picture = model.patchify(model.linear.render(encoded.globals.vectors))
    with_code = picture + model.linear.own(encoded.patches.vectors, torch.ones(4, 16, dtype=torch.bool))
    truth = model.patchify(images)
    expected = (truth - picture).square().mean(2) - (truth - with_code).square().mean(2)
    assert torch.allclose(encoded.gain, expected, atol=1e-6)


def test_the_entropy_of_a_code_depends_on_what_precedes_it_alone(model: TaTok, images: Tensor) -> None:
    torch.nn.init.normal_(model.prior.patch_head.rows, std=0.5)
    tokens = model.tokenize(images, ALL)
    changed = tokens.patch_codes.clone()
    changed[:, 7] = (changed[:, 7] + 1) % 64

    def entropy(codes: Tensor) -> Tensor:
        return entropy_nats(model.predict(tokens.global_codes, codes).patch_logits)

    with torch.no_grad():
        same = torch.isclose(entropy(tokens.patch_codes), entropy(changed), atol=1e-6)
    assert same[:, :8].all()
    assert not same[:, 8:].all()


def test_hidden_globals_do_not_matter_and_shown_ones_do(model: TaTok, images: Tensor) -> None:
    torch.nn.init.normal_(model.prior.patch_head.rows, std=0.5)
    tokens = model.tokenize(images, ALL)
    others = (tokens.global_codes + 1) % 25
    for hidden in (True, False):
        mask = torch.full((4,), hidden)
        with torch.no_grad():
            first = model.predict(tokens.global_codes, tokens.patch_codes, without_globals=mask).patch_logits
            second = model.predict(others, tokens.patch_codes, without_globals=mask).patch_logits
        assert torch.allclose(first, second, atol=1e-6) == hidden


@pytest.mark.parametrize("num_rows", [1, 7, 1000])
@pytest.mark.parametrize("kind", ["fsq", "vq"])
def test_patch_entropy_is_that_of_the_logits_however_many_at_once(
    kind: str, num_rows: int, images: Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    torch.manual_seed(0)
    stack = StackConfig(width=32, depth=2, heads=2)
    grid = GridStackConfig(width=32, depth=2, heads=2, attend_every=1)
    quantizer = GlobalQuantizerConfig(kind=kind, levels=[4, 4, 4], codebook_size=50, code_dim=4)
    config = TaTokConfig(
        image_size=32, patch_size=8, num_globals=3, search_passes=0, encoder=grid, decoder=grid, prior=stack,
        global_codebook=quantizer, patch_codebook=quantizer,
    )  # fmt: skip
    model = TaTok(config).eval()
    torch.nn.init.normal_(model.prior.patch_head.rows, std=0.5)
    monkeypatch.setattr("tatok_pipe.tokenizer.prior._CHUNK_BYTES", {"cpu": 1, "cuda": 1})
    monkeypatch.setattr("tatok_pipe.tokenizer.prior._MIN_CHUNK_ROWS", num_rows)
    tokens = model.tokenize(images, ALL)
    for hidden in (None, torch.tensor([True, False, True, False])):
        with torch.no_grad():
            output = model.predict(tokens.global_codes, tokens.patch_codes, without_globals=hidden)
        found = model.patch_entropy(tokens.global_codes, tokens.patch_codes, without_globals=hidden)
        assert found.dtype == torch.float32 and found.std() > 0.01
        torch.testing.assert_close(found, entropy_nats(output.patch_logits))


def test_entropy_and_surprisal_are_in_nats() -> None:
    uniform = torch.zeros(2, 3, 8)
    codes = torch.zeros(2, 3, dtype=torch.int64)
    assert torch.allclose(entropy_nats(uniform), torch.full((2, 3), 8.0).log())
    assert torch.allclose(surprisal_nats(uniform, codes), torch.full((2, 3), 8.0).log())
    certain = torch.tensor([[200.0, 0.0, 0.0]])
    assert entropy_nats(certain).item() == pytest.approx(0, abs=1e-6)
    # Over a model's own draws, mean surprisal is its entropy.
    logits = torch.randn(1, 1, 10, generator=torch.Generator().manual_seed(0))
    mean = (
        logits.softmax(-1) * torch.stack([surprisal_nats(logits, torch.tensor([[i]])) for i in range(10)], -1)
    ).sum()
    assert mean.item() == pytest.approx(entropy_nats(logits).item(), rel=1e-5)


def test_a_batch_row_is_what_the_image_gives_alone(model: TaTok, images: Tensor) -> None:
    together = model.tokenize(images, Filter("threshold", 4.0))
    for i in range(4):
        alone = model.tokenize(images[i : i + 1], Filter("threshold", 4.0))
        assert torch.equal(alone.patch_codes[0], together.patch_codes[i])
        assert torch.allclose(alone.patch_entropy[0], together.patch_entropy[i], atol=1e-5)


def test_bf16_runs_and_stays_close(model: TaTok, images: Tensor) -> None:
    exact = model.tokenize(images, ALL)
    with torch.autocast("cpu", torch.bfloat16):
        rough = model.tokenize(images, ALL)
    assert rough.patch_entropy.dtype == torch.float32
    assert (rough.patch_codes == exact.patch_codes).float().mean() > 0.8


def test_no_globals_at_all_is_a_patch_only_tokenizer(images: Tensor) -> None:
    model = TaTok(small_config("vq", num_globals=0))
    tokens = model.eval().tokenize(images, ALL)
    assert tokens.global_codes.shape == (4, 0)
    assert model.decode(tokens.global_codes, tokens.patch_codes, tokens.keep).shape == images.shape


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_gpu_agrees_with_cpu(model: TaTok, images: Tensor) -> None:
    exact = model.tokenize(images, Filter("budget", 20.0))
    on_gpu = model.cuda().tokenize(images.cuda(), Filter("budget", 20.0))
    assert (on_gpu.patch_codes.cpu() == exact.patch_codes).float().mean() > 0.98
    with torch.autocast("cuda", torch.bfloat16):
        model.tokenize(images.cuda(), ALL)
