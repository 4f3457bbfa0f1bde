"""Some images of a corpus, tokenized here to see what all of them will take; and some samples of many of its shards,
decoded to see what will be refused."""

from __future__ import annotations

import logging
import time
from collections.abc import Sequence
from dataclasses import dataclass, field

import torch

from tatok_pipe import storage
from tatok_pipe.commands.corpus_findings import Findings
from tatok_pipe.commands.tokenize_corpus.estimate import Sample
from tatok_pipe.encoding.shard_tokenizer import ShardTokenizer, TokenizeJob, check_images
from tatok_pipe.images.decode import DecodeError, decode_crops
from tatok_pipe.images.notices import Notice, Notices
from tatok_pipe.images.shard_errors import InterleavedShard, ShardError
from tatok_pipe.images.source import open_samples, shard_info
from tatok_pipe.records import ImageSample, Quarantined
from tatok_pipe.report.figures import count
from tatok_pipe.runs.shard_work import ShardResult, describe_error
from tatok_pipe.storage import ShardFile

logger = logging.getLogger(__name__)

# So many images, or fewer where they take longer than this.
_MAX_IMAGES = 96
_MAX_S = 15.0
# What is looked at besides: shards from all over the list, so many samples of each. A shard of which none gave an
# image is read on for a while, since its images may lie behind its labels.
_MAX_SHARDS = 8
_MAX_SAMPLES = 32
_MAX_LOOK_S = 10.0
_MIN_SHARD_S = 1.0
_PART_BYTES = 1 << 20
_NOTHING_YET = "no image in the beginning of the shard; not looked at any further"


def measure_sample(job: TokenizeJob, shard: ShardFile, *, device: str, num_threads: int) -> Sample | None:
    """Tokenize the first images of a shard as an actor with that device and as many threads would. None, with a
    line of the log, where they cannot be read. Without the device here the speed stays unknown."""
    is_same_device = device == "cpu" or torch.cuda.is_available()
    tokenizer = ShardTokenizer(job, device=device if is_same_device else "cpu", num_threads=num_threads)
    try:
        found = tokenizer.sample(shard.url, max_images=_MAX_IMAGES, max_s=_MAX_S)
    except (OSError, ShardError) as error:
        logger.warning("no sample could be taken: %s", storage.redact(str(error)))
        return None
    finally:
        tokenizer.close()
    return Sample(
        num_images=found.num_images,
        num_bytes=found.bytes_in,
        num_tokens=found.num_tokens,
        output_bytes=found.bytes_out,
        seconds=found.seconds if is_same_device else 0.0,
    )


@dataclass
class Look:
    """What some samples of some shards are like."""

    good: list[ShardFile] = field(default_factory=list)  # shards that gave images
    num_shards: int = 0
    num_images: int = 0
    num_refused: int = 0
    findings: Findings = field(default_factory=Findings)

    def add(self, shard: ShardFile, num_images: int, refusals: Notices) -> None:
        """Take in what the samples of one shard are like."""
        self.findings.add(ShardResult(shard.url, refusals=refusals.all))
        self.num_images += num_images
        self.num_refused += sum(refusal.num_samples for refusal in refusals.all)
        if num_images:
            self.good.append(shard)

    @property
    def lines(self) -> list[str]:
        """For people."""
        num_failed, num_samples = len(self.findings.failed), self.num_images + self.num_refused
        told = [f"{num_failed} would fail"] if num_failed else []
        if num_samples or not told:
            others = " in the others" if told else ""
            told.append(
                f"of {count(num_samples, 'sample')}{others} {self.num_images:,} would be rows, {self.num_refused:,} "
                "quarantined"
            )
        return [
            f"looked into {count(self.num_shards, 'shard')}: {', '.join(told)}",
            *(f"would be {line}" for line in self.findings.refusal_lines()),
            *self.findings.failure_lines(verb="would fail", named_in=""),
            *(f"note: {line}" for line in self.findings.notice_lines(min_shards=1)),
        ]


def look_at_shards(job: TokenizeJob, shards: Sequence[ShardFile]) -> Look:
    """Read and decode the first samples of some shards, from the first one to the last, as far as the time goes."""
    start = time.monotonic()
    look = Look()
    num_picked = min(len(shards), _MAX_SHARDS)
    for number in range(num_picked):
        left_s = _MAX_LOOK_S - (time.monotonic() - start)
        if number and left_s <= 0:
            break
        shard = shards[number * (len(shards) - 1) // max(1, num_picked - 1)]
        share_s = max(_MIN_SHARD_S, left_s / (num_picked - number))
        look.num_shards += 1
        _look_at_shard(job, shard, look, until_s=time.monotonic() + share_s)
    return look


def _look_at_shard(job: TokenizeJob, shard: ShardFile, look: Look, *, until_s: float) -> None:
    shown = storage.redact(shard.url)
    for regroup in (False, True):
        notices, refusals, num_images, is_whole = Notices(), Notices(), 0, False
        try:
            with open_samples(
                shard.url,
                info=shard_info(shard.url),
                limits=job.limits,
                regroup=regroup,
                part_bytes=_PART_BYTES,
                notices=notices,
                class_names=job.spec.class_names,
            ) as samples:
                for number, sample in enumerate(samples):
                    if (number >= _MAX_SAMPLES and num_images) or time.monotonic() > until_s:
                        break
                    found = sample if isinstance(sample, Quarantined) else _find_fault(job, sample)
                    if found is None:
                        num_images += 1
                    else:
                        refusals.add(found.error, f"{found.key!r}: {found.message}")
                else:
                    is_whole = True
            if is_whole:
                check_images(shown, num_images, refusals)
        except InterleavedShard:
            continue  # what came is thrown away
        except (OSError, ShardError) as error:
            look.findings.add_failure(shown, describe_error(error))
            return
        look.findings.add_notices(shown, notices.all)
        if num_images or is_whole:
            look.add(shard, num_images, refusals)
        else:
            look.findings.add_notices(shown, [Notice(_NOTHING_YET, "", 0)])
        return


def _find_fault(job: TokenizeJob, sample: ImageSample) -> Quarantined | None:
    try:
        decode_crops(sample.image, job.preprocess, job.crops, key=sample.key)
    except DecodeError as error:
        return Quarantined(sample.key, "decode", error.error, str(error), len(sample.image))
    return None
