"""What a plan would cost: images, tokens, output and time, with where each figure comes from. Maths only."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from tatok_pipe.commands.tokenize_corpus.plan import CorpusPlan
from tatok_pipe.report.figures import count, format_bytes

SPEED_KEY = "images_per_s_per_actor"  # in `run` of _summary.json
_NUM_SHOWN = 3


@dataclass(frozen=True)
class Sample:
    """Some images that were tokenized to see what they take."""

    num_images: int
    num_bytes: int  # of the image shard, as much of it as held these images
    num_tokens: int
    output_bytes: int
    seconds: float  # by one process on this machine


@dataclass(frozen=True)
class Rates:
    """What image shards turned into so far."""

    images_per_byte: float  # of image shards
    tokens_per_image: float
    output_bytes_per_byte: float
    bytes_per_shard: float | None  # mean size of an image shard; None where no whole shard was seen
    origin: str


@dataclass(frozen=True)
class Estimate:
    """What the shards to do will probably give and take; None where nothing says so."""

    num_images: int | None
    num_tokens: int | None
    output_bytes: int | None
    seconds: float | None
    rates_origin: str  # of images, tokens and output; empty where there is none
    speed_origin: str  # of the time


def estimate(
    plan: CorpusPlan,
    *,
    num_actors: int | None = None,
    run: Mapping[str, Any] | None = None,
    sample: Sample | None = None,
    row_name: str = "image",
) -> Estimate:
    """Extrapolate from what is known to the bytes that `plan` has still to read.

    Rates come from the committed shards, else from `sample`. The time is for `num_actors` at the speed of the
    last run (`run` of its summary, images_per_s_per_actor), else at that of `sample`; it knows nothing of
    starting actors, and assumes that every actor is as fast as the ones measured. A shard of unknown size
    counts as the mean of the committed ones; where there are none, nothing is estimated. `row_name`: what to call
    that which is counted, "image" or "crop".
    """
    if not plan.todo:
        return Estimate(0, 0, 0, 0.0, "", "")
    rates = _rates_of_index(plan) or _rates_of_sample(sample, row_name)
    num_bytes = None if rates is None else _bytes_to_read(plan, rates)
    if rates is None or num_bytes is None:
        return Estimate(None, None, None, None, "", "")
    num_images = num_bytes * rates.images_per_byte
    speed, speed_origin = _speed(run, sample)
    if speed is None or not num_actors:
        seconds, speed_origin = None, ""
    else:
        seconds = num_images / (speed * num_actors)
        speed_origin = f"{count(num_actors, 'actor')} at {speed:.3g} {row_name}s/s each, {speed_origin}"
    return Estimate(
        num_images=round(num_images),
        num_tokens=round(num_images * rates.tokens_per_image),
        output_bytes=round(num_bytes * rates.output_bytes_per_byte),
        seconds=seconds,
        rates_origin=rates.origin,
        speed_origin=speed_origin,
    )


def _rates_of_index(plan: CorpusPlan) -> Rates | None:
    index = plan.index
    num_bytes, num_rows = index.total("source_size_bytes"), index.total("num_rows")
    if not num_bytes or not num_rows:
        return None
    return Rates(
        images_per_byte=num_rows / num_bytes,
        tokens_per_image=index.total("num_tokens") / num_rows,
        output_bytes_per_byte=index.total("size_bytes") / num_bytes,
        bytes_per_shard=num_bytes / len(index),
        origin=f"{count(len(index), 'shard')} tokenized before",
    )


def _rates_of_sample(sample: Sample | None, row_name: str) -> Rates | None:
    if sample is None or not sample.num_images or not sample.num_bytes:
        return None
    return Rates(
        images_per_byte=sample.num_images / sample.num_bytes,
        tokens_per_image=sample.num_tokens / sample.num_images,
        output_bytes_per_byte=sample.output_bytes / sample.num_bytes,
        bytes_per_shard=None,
        origin=f"the first {count(sample.num_images, row_name)}, tokenized here",
    )


def _bytes_to_read(plan: CorpusPlan, rates: Rates) -> float | None:
    if not plan.num_unknown_sizes:
        return plan.bytes_to_read
    if rates.bytes_per_shard is None:
        return None
    return plan.bytes_to_read + plan.num_unknown_sizes * rates.bytes_per_shard


def _speed(run: Mapping[str, Any] | None, sample: Sample | None) -> tuple[float | None, str]:
    """Images a second of one actor, and who says so."""
    recorded = (run or {}).get(SPEED_KEY)
    if isinstance(recorded, int | float) and recorded > 0:
        return float(recorded), "as in the last run"
    if sample is not None and sample.num_images and sample.seconds > 0:
        return sample.num_images / sample.seconds, "as this machine did"
    return None, ""


def format_plan(plan: CorpusPlan, estimate: Estimate, *, row_name: str = "image") -> list[str]:
    """Lines for people: what is planned, done, changed and to do, and what it will probably take."""
    to_read = format_bytes(plan.bytes_to_read)
    if plan.num_unknown_sizes:
        unknown = count(plan.num_unknown_sizes, "shard")
        to_read = f"{to_read} and {unknown} of unknown size" if plan.bytes_to_read else "? bytes"
    lines = [
        f"{count(plan.num_planned, 'image shard')}: {plan.num_done:,} done and skipped, {len(plan.todo):,} to do, "
        f"{to_read} to read"
    ]
    if plan.changed:
        fate = "tokenized again" if plan.on_source_change == "retokenize" else "their tokens stay as they are"
        lines.append(f"{count(len(plan.changed), 'shard')} changed since tokenized: {fate}")
        lines += [f"  {change}" for change in plan.changed[:_NUM_SHOWN]]
        if len(plan.changed) > _NUM_SHOWN:
            lines.append(f"  and {len(plan.changed) - _NUM_SHOWN:,} more")
    if plan.num_other:
        lines.append(f"{count(plan.num_other, 'token shard')} there already of other input: left alone")
    if not plan.todo:
        return [*lines, "nothing to do"]
    per_image = ""
    if estimate.num_images and estimate.num_tokens is not None:
        article = "an" if row_name == "image" else "a"
        per_image = f" ({estimate.num_tokens / estimate.num_images:.1f} {article} {row_name})"
    size = "?" if estimate.output_bytes is None else format_bytes(estimate.output_bytes)
    lines.append(
        f"about {_or_unknown(estimate.num_images)} {row_name}s, {_or_unknown(estimate.num_tokens)} tokens{per_image}, "
        f"{size} of output, {_show_time(estimate.seconds)}"
    )
    origins = [
        f"{what} from {origin}"
        for what, origin in (
            (f"{row_name}s, tokens and output", estimate.rates_origin),
            ("time", estimate.speed_origin),
        )
        if origin
    ]
    return [*lines, "estimated: " + "; ".join(origins) if origins else "nothing to estimate from yet"]


def _or_unknown(number: int | None) -> str:
    return "?" if number is None else f"{number:,}"


def _show_time(seconds: float | None) -> str:
    """To two digits, as befits an estimate: `45 s`, `12 min`, `3.4 h`, `21 days`."""
    if seconds is None:
        return "? time"
    for unit, length_s, limit in (("s", 1, 90), ("min", 60, 90), ("h", 3600, 72)):
        if seconds < limit * length_s:
            return _two_digits(seconds / length_s) + " " + unit
    return _two_digits(seconds / 86400) + " days"


def _two_digits(number: float) -> str:
    return f"{number:.1f}" if 0 < number < 9.95 else f"{number:,.0f}"
