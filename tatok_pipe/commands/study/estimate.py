"""What a study will take, before it is begun: hours, as others took them or as it was timed itself, and disk."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable

from tatok_pipe import storage
from tatok_pipe.commands.study.declaration import Declaration
from tatok_pipe.commands.study.design import Design, Part
from tatok_pipe.commands.study.results import read_result
from tatok_pipe.images.limits import DEFAULT_LIMITS
from tatok_pipe.images.source import open_samples, shard_info
from tatok_pipe.records import ImageSample
from tatok_pipe.report.figures import format_bytes
from tatok_pipe.runs.progress import format_duration
from tatok_pipe.storage import ShardFile

# What the parts of configs/study/headline.yaml took on CIFAR-10, two cores with AVX-512 that had other work at times.
# What was timed in the output takes their place.
_STARTED_S = {"tokenizer": 40.0, "generator": 25.0, "scored": 8.0, "tokens": 0.0, "test_tokens": 0.0}
_WORKER_S = 6.0
_TOKENIZER_S = 420.0
_TOKENIZED_PER_S = 190.0
_FILTERED_PER_S = 7_000.0
_STEP_S = 0.45
_DRAWN_PER_S = 200.0
_LOOKED_AT_PER_S = 45.0
_LEARNED_PER_S = 700.0
_DISTANCES_S = 33.0
_SCORED_PER_S = 350.0
_BYTES = {"tokenizer": 8 << 20, "generator": 8 << 20, "real": 80 << 20}
_BYTES_PER_IMAGE = 200


def show_estimate(declaration: Declaration, design: Design, done: set[str], url: str) -> None:
    """Print the parts that are missing, by kind, with hours and bytes."""
    num_train, num_test = (_count_images(shards) for shards in (declaration.train, declaration.test))
    kinds: dict[str, list[Part]] = defaultdict(list)
    for part in design.parts.values():
        kinds[part.kind].append(part)
    total_s = total_bytes = 0.0
    for kind, parts in kinds.items():
        todo = [part for part in parts if part.id not in done]
        known = [
            result.seconds["whole"] for part in parts if (result := read_result(url, part.id)) is not None
        ]
        each = sum(known) / len(known) if known else 0.0
        seconds = sum(each or _seconds(part, declaration, num_train, num_test) for part in todo)
        size = sum(_bytes(part, num_train, num_test) for part in todo)
        total_s, total_bytes = total_s + seconds, total_bytes + size
        basis = "as timed here" if known else "as it took on two cores"
        print(
            f"{kind:15} {len(todo):4} of {len(parts):4} to make, about {format_duration(seconds)} ({basis})"
        )
    print(
        f"{len(design.cells)} generators on {num_train:,} images, measured on {num_test:,}: about {total_s / 3600:.1f} "
        f"hours and {format_bytes(int(total_bytes))} in {storage.redact(url)}"
    )


def _count_images(shards: Iterable[ShardFile]) -> int:
    count = 0
    for shard in shards:
        with open_samples(shard.url, info=shard_info(shard.url), limits=DEFAULT_LIMITS) as samples:
            count += sum(isinstance(sample, ImageSample) for sample in samples)
    return count


def _seconds(part: Part, declaration: Declaration, num_train: int, num_test: int) -> float:
    config, share = declaration.config, _share_of_tokens(part, declaration)
    drawn, num_real = config.measures.num_drawn, min(num_test, config.measures.num_real)
    own = {
        "classifier": num_train * config.measures.classifier_epochs / _LEARNED_PER_S,
        "real": num_real / _LOOKED_AT_PER_S,
        "tokenizer": 0.0 if "checkpoint" in part.settings else _TOKENIZER_S,
        "scored": max(num_train, num_test) / _TOKENIZED_PER_S,
        "tokens": num_train / _FILTERED_PER_S,
        "test_tokens": num_test / _FILTERED_PER_S,
        "step_time": share * (config.generator.timed_steps + 2) * _STEP_S,
        "generator": (1.0 if "step_time" in part.inputs else share) * config.generator.steps * _STEP_S,
        "draw": share * drawn / _DRAWN_PER_S,
        "likeness": drawn / _LOOKED_AT_PER_S + _DISTANCES_S,
        "reconstruction": drawn / _LOOKED_AT_PER_S + _DISTANCES_S,
        "nats": share * num_test / _SCORED_PER_S,
    }
    return own[part.kind] + _STARTED_S.get(part.kind, _WORKER_S)


def _share_of_tokens(part: Part, declaration: Declaration) -> float:
    """Of all tokens of an image, those that the arm of a part is to keep; all where nobody knows yet."""
    arms = {arm.name: arm for arm in declaration.arms}
    arm = arms.get(part.label.partition(",")[0])
    if arm is None or arm.config.dtf.target_tokens is None:
        return 1.0
    return arm.config.dtf.target_tokens / (arm.model.num_globals + arm.model.num_patches)


def _bytes(part: Part, num_train: int, num_test: int) -> float:
    images = {"scored": 3 * max(num_train, num_test), "tokens": num_train, "test_tokens": num_test}.get(
        part.kind, 0
    )
    return _BYTES.get(part.kind, 1 << 18) + images * _BYTES_PER_IMAGE
