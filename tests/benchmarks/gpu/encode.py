"""Tokenizing on a GPU: what encoder, entropy model and filter take, and what of it is left when the job calls them.

Weights are random. Letters: B images of S × S pixels.
"""

from __future__ import annotations

import copy
import statistics
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils.flop_counter import FlopCounterMode

from tatok_pipe.encoding.batch_encoder import BatchEncoder
from tatok_pipe.tokenizer.dtf import Filter, keep_mask
from tatok_pipe.tokenizer.model import TaTok
from tatok_pipe.tokenizer.options import TaTokConfig
from tatok_pipe.tokenizer.trainer import to_model_input
from tests.benchmarks.gpu.bench import Bench
from tests.benchmarks.gpu.device import Device, Stopwatch
from tests.benchmarks.gpu.inputs import decoded_images, noise_pixels, smooth_pixels

LANES = 2  # threads that the job has for each GPU: tatok_pipe.encoding.shard_tokenizer, which wants pyarrow
_IMAGES_PER_S = 4000.0  # that are asked for
_UTILISATION = 0.5
_SPLITS = 3
_COMPILE_S = 90.0  # that compiling all of the model may take

Encode = Callable[[Tensor], object]  # images (B, 3, S, S)


def build_tokenizer(config: TaTokConfig, device: Device) -> TaTok:
    torch.manual_seed(0)
    with device.device:
        return TaTok(config).eval().requires_grad_(False)


def count_flops(config: TaTokConfig) -> tuple[int, int]:
    """Of an image: in the encoder, and in the entropy model. Nothing is computed: tensors are fake. As for a training,
    because the counter does not know the fused attention of CPUs."""
    with FakeTensorMode():
        model = TaTok(config).eval()
        images = torch.empty(1, 3, config.image_size, config.image_size)
        model.encode(images)  # what the search makes of the weights, once and for all
        with FlopCounterMode(display=False) as encoder:
            encoded = model.encode(images)
        with FlopCounterMode(display=False) as prior:
            model.predict(encoded.globals.codes, encoded.patches.codes)
    return encoder.get_total_flops(), prior.get_total_flops()


def half_of_the_patches(model: TaTok, images: Tensor, score: str) -> Filter:
    """The threshold that half of the patches of these images are above."""
    everything = Filter("threshold", float("-inf"), score=score)
    return Filter("threshold", float(model.tokenize(images, everything).cost.median()), score=score)


def run(bench: Bench) -> None:
    device, config = bench.device, bench.sizes.tokenizer
    model = build_tokenizer(config, device)
    encoder_flops, prior_flops = count_flops(config)
    bench.row(
        "arithmetic", weights=sum(p.numel() for p in model.parameters()),
        encoder_gflop=encoder_flops / 1e9, entropy_model_gflop=prior_flops / 1e9,
    )  # fmt: skip
    images = to_model_input(noise_pixels(bench.sizes.numerics_images, config.image_size), device.device)
    filters = {score: half_of_the_patches(model, images, score) for score in ("entropy", "drop_cost")}
    flops = dict.fromkeys(variants(model, filters), encoder_flops + prior_flops) | {"encoder": encoder_flops}
    best = sweep(bench, model, filters, flops)
    split(bench, model, filters["drop_cost"], best)
    job(bench, model, filters["drop_cost"], best)
    numerics(bench, model, filters)
    total = flops["dtf_drop_cost"]
    bench.later(
        "tokenizer compiled as a whole",
        partial(compiled_whole, bench, model, filters["drop_cost"], best, flops=total),
        needs_s=_COMPILE_S,
        rank=1,
    )
    compiled_blocks(bench, model, filters["drop_cost"], best, flops=total)


def variants(model: TaTok, filters: dict[str, Filter]) -> dict[str, Encode]:
    """More and more of what the job does."""

    def entropy(images: Tensor) -> Tensor:
        encoded = model.encode(images)
        return model.patch_entropy(encoded.globals.codes, encoded.patches.codes)

    found: dict[str, Encode] = {"encoder": model.encode, "entropy": entropy}
    for score, filter in filters.items():
        found[f"dtf_{score}"] = partial(model.tokenize, filter=filter)
    return found


def on(device: Device, encode: Encode, images: Tensor) -> Callable[[], object]:
    """As the job calls a model: without gradients, in bf16."""

    def run() -> object:
        with torch.inference_mode(), device.autocast():
            return encode(images)

    return run


def sweep(bench: Bench, model: TaTok, filters: dict[str, Filter], flops: dict[str, int]) -> int:
    """Every variant at every batch size, images on the device; the batch size that all of it is fastest at."""
    device, size = bench.device, bench.sizes.tokenizer.image_size
    speeds: dict[tuple[str, int], list[float]] = {}
    for batch in bench.sizes.batch_sizes:
        if speeds and bench.budget.is_late:
            bench.note(f"encode: no time for batches of {batch}")
            continue
        try:
            images = to_model_input(noise_pixels(batch, size), device.device)
            for name, encode in variants(model, filters).items():
                device.begin_peak()
                found = bench.speeds(batch, on(device, encode, images))
                peak = device.peak_gib()
                speeds[name, batch] = found
                rate = statistics.median(found)
                mfu = rate * flops[name] / bench.ceiling_flops_per_s
                bench.row(f"{name}, batch {batch}", images_per_s=rate, mfu=mfu, peak_gib=peak)
        except torch.OutOfMemoryError:
            bench.note(f"encode: batches of {batch} need more memory than there is")
            device.release()
    whole = {
        batch: statistics.median(each) for (name, batch), each in speeds.items() if name == "dtf_drop_cost"
    }
    best = max(whole, key=lambda batch: whole[batch])
    titles = {
        "encoder": "encoder", "entropy": "encoder + entropy model",
        "dtf_entropy": "tokenize, DTF on entropy", "dtf_drop_cost": "tokenize, DTF on drop_cost",
    }  # fmt: skip
    for name, title in titles.items():
        own = {batch: statistics.median(each) for (which, batch), each in speeds.items() if which == name}
        fastest = max(own, key=lambda batch: own[batch])
        bench.utilisation(
            f"encode/mfu/{name}", f"{title}, {fastest} a batch / best product", speeds[name, fastest],
            flops=flops[name], target=_UTILISATION,
        )  # fmt: skip
    bench.against(
        "encode/images_per_s", f"tokenize, {best} a batch, images on the device / asked for",
        speeds["dtf_drop_cost", best], _IMAGES_PER_S, unit="images/s", target=1.0,
    )  # fmt: skip
    images = to_model_input(noise_pixels(best, size), device.device)
    bench.busy("tokenize", on(device, variants(model, filters)["dtf_drop_cost"], images))
    return best


def split(bench: Bench, model: TaTok, filter: Filter, batch: int) -> None:
    """The parts of `TaTok.tokenize`, and of what comes before it."""
    device = bench.device
    pixels = noise_pixels(batch, bench.sizes.tokenizer.image_size)
    watch = Stopwatch(device)
    for number in range(_SPLITS + 1):
        if number == 1:  # the first round warmed up
            watch = Stopwatch(device)
        images = to_model_input(pixels, device.device)
        watch.mark("to_device")
        with torch.inference_mode(), device.autocast():
            encoded = model.encode(images)
            watch.mark("encoder")
            entropy = model.patch_entropy(encoded.globals.codes, encoded.patches.codes)
            watch.mark("entropy_model")
            keep_mask(model.cost(filter.score, images, encoded, entropy=entropy), filter)
            watch.mark("filter")
    bench.row(f"share of each part, batch {batch}", **watch.shares())


def job(bench: Bench, model: TaTok, filter: Filter, best: int) -> None:
    """BatchEncoder, in as many threads as the job has: pixels from the host's memory, rows back to it."""
    device, size = bench.device, bench.sizes.tokenizer.image_size
    with ThreadPoolExecutor(LANES) as pool:

        def encode(batch: int) -> tuple[int, Callable[[], object]]:
            encoder = BatchEncoder(
                model, filter, device=device.device, precision="bf16", batch_size=batch, mutual_information=False,
                patch_entropy=False,
            )  # fmt: skip
            batches = [decoded_images(noise_pixels(batch, size))] * (2 * LANES)
            return batch * len(batches), lambda: list(pool.map(encoder, batches))

        for batch in bench.sizes.batch_sizes:
            if batch < best and not bench.budget.is_late:
                rate = statistics.median(bench.speeds(*encode(batch)))
                bench.row(f"job, batch {batch}", images_per_s=rate)
        amount, function = encode(best)
        images = to_model_input(noise_pixels(best, size), device.device)
        bare = on(device, partial(model.tokenize, filter=filter), images)
        bench.compare(
            "encode/job", f"BatchEncoder in {LANES} threads, {best} a batch / images on the device",
            bench.side(amount, function), bench.side(best, bare), unit="images/s",
        )  # fmt: skip
        bench.busy("BatchEncoder", function)


def numerics(bench: Bench, model: TaTok, filters: dict[str, Filter]) -> None:
    """Codes, entropies of the same codes, and masks in bf16 beside those in float32."""
    device, sizes = bench.device, bench.sizes
    for kind, draw in (("noise", noise_pixels), ("smooth", smooth_pixels)):
        images = to_model_input(draw(sizes.numerics_images, sizes.tokenizer.image_size), device.device)
        exact = model.tokenize(images, filters["drop_cost"])
        with device.autocast():
            rough = model.tokenize(images, filters["drop_cost"])
            entropy = model.patch_entropy(exact.global_codes, exact.patch_codes)
        entropy_error = (entropy - exact.patch_entropy).abs()
        equal = _share(rough.patch_codes == exact.patch_codes)
        bench.row(
            f"bf16 beside float32, {kind}", patch_codes_equal=equal,
            global_codes_equal=_share(rough.global_codes == exact.global_codes),
            keep_equal=_share(rough.keep == exact.keep),
            entropy_error_nats=float(entropy_error.mean()), worst_entropy_error_nats=float(entropy_error.max()),
        )  # fmt: skip
        bench.against(
            f"encode/codes_equal/{kind}", f"patch codes in bf16 as in float32, {kind} / all", [equal], 1.0, unit="share"
        )  # fmt: skip


def compiled_blocks(bench: Bench, model: TaTok, filter: Filter, batch: int, *, flops: int) -> None:
    """Blocks alone, as trainings compile them: one program for each stack."""
    own = copy.deepcopy(model)
    bench.device.release()
    assert own.encoder is not None
    for stack in (own.encoder.blocks, own.prior.transformer):
        for block in stack.blocks:
            block.compile(dynamic=False)
    encode = partial(own.tokenize, filter=filter)
    _compiled(bench, "blocks", encode, model, filter, batch, flops=flops)


def compiled_whole(bench: Bench, model: TaTok, filter: Filter, batch: int, *, flops: int) -> None:
    bench.device.release()
    encode = torch.compile(partial(model.tokenize, filter=filter), dynamic=False)
    _compiled(bench, "whole", encode, model, filter, batch, flops=flops)


def _compiled(
    bench: Bench, what: str, encode: Encode, model: TaTok, filter: Filter, batch: int, *, flops: int
) -> None:
    device = bench.device
    images = to_model_input(noise_pixels(batch, bench.sizes.tokenizer.image_size), device.device)
    ours, eager = on(device, encode, images), on(device, partial(model.tokenize, filter=filter), images)
    compile_s = device.timing(ours).wall_s
    device.begin_peak()
    figure = bench.compare(
        f"encode/compiled/{what}", f"tokenize, {batch} a batch, {what} compiled / eager",
        bench.side(batch, ours), bench.side(batch, eager), unit="images/s",
    )  # fmt: skip
    bench.row(
        f"compiled, {what}, batch {batch}", compile_s=compile_s, images_per_s=figure.ours,
        mfu=figure.ours * flops / bench.ceiling_flops_per_s,
    )  # fmt: skip
    bench.busy(f"tokenize, {what} compiled", ours)


def _share(equal: Tensor) -> float:
    return float(equal.float().mean())
