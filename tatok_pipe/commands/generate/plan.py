"""From what a user asks for to the plan of a run; what does not fit the generator is said in one line."""

from __future__ import annotations

import json
import re
from dataclasses import asdict
from typing import Any

from tatok_pipe import storage
from tatok_pipe.ar.checkpoint import LoadedGenerator
from tatok_pipe.ar.generation.conditions import asked_patches, check_trained, chosen_classes
from tatok_pipe.ar.generation.job import GenerationPlan, StartPlan
from tatok_pipe.ar.generation.layout import PLAN_FILE
from tatok_pipe.commands.generate.options import GenerateConfig, StartConfig
from tatok_pipe.errors import RefusedError, UserError
from tatok_pipe.tokens.dataset import TokenDataset
from tatok_pipe.tokens.loading.embeddings import read_vectors
from tatok_pipe.tokens.spec import TokenSpec

FORMAT = 2


def make_plan(config: GenerateConfig, generator: LoadedGenerator) -> GenerationPlan:
    """Raises UserError, in one line, where the generator cannot do what is asked for."""
    model = generator.model.config
    has_condition = config.classes != "none" if model.condition == "class" else config.embeddings is not None
    check_trained(
        generator,
        is_guided=config.sampling.is_guided,
        has_condition=has_condition,
        target_tokens=config.target_tokens,
    )
    if config.embeddings is not None:
        if model.condition != "embedding":
            raise UserError(
                f"embeddings={storage.redact(config.embeddings)}: the generator's condition is {model.condition}"
            )
        read_vectors(config.embeddings, size=model.embedding_dim)
    plan = GenerationPlan(
        num_images=config.num_images,
        images_per_shard=config.output.images_per_shard,
        seed=config.seed,
        classes=chosen_classes(config.classes, generator),
        sampling=config.sampling,
        num_patches=asked_patches(config.target_tokens, generator),
        embeddings_url=storage.canonical_url(config.embeddings) if config.embeddings else None,
        start=_start(config.start, generator.tokens),
    )
    limit = config.sampling.max_patches
    if plan.start is not None and limit is not None:
        rows, columns = plan.start.rows, plan.start.columns
        most = (rows[1] - rows[0]) * (columns[1] - columns[0])
        if most > limit:
            raise UserError(
                f"sampling.max_patches={limit}: start.rows and start.columns may keep {most}; give at least as many"
            )
    return plan


def create_or_check(url: str, content: dict[str, Any], description: dict[str, Any]) -> None:
    """Begin an output at `url`, or make sure that the one there is of the same `content` (JSON types). Raises
    RefusedError where it is not."""
    text = (
        json.dumps({"format": FORMAT, **content, "description": description}, indent=1, sort_keys=True) + "\n"
    )
    if storage.publish_bytes(text.encode(), storage.join(url, PLAN_FILE), exclusive=True):
        return
    found = read_plan(url)
    wanted = json.loads(text)
    for each in (found, wanted):
        each.pop("description", None)
    if found != wanted:
        before, now = _flatten(found), _flatten(wanted)
        differences = [
            f"{name}: {_shown(before.get(name))}, not {_shown(now.get(name))}"
            for name in sorted({*before, *now})
            if before.get(name) != now.get(name)
        ]
        raise RefusedError(
            f"{storage.redact(url)}: holds images of another run (its {'; its '.join(differences)}); give another "
            "output.url, or the same settings"
        )


def read_plan(url: str) -> dict[str, Any]:
    """The content of `_generation.json`. Raises UserError where it is not one."""
    shown = storage.redact(storage.join(url, PLAN_FILE))
    try:
        content = json.loads(storage.read_bytes(storage.join(url, PLAN_FILE)))
    except ValueError as error:
        raise UserError(f"{shown}: is not JSON ({error}); give another output.url") from error
    if not isinstance(content, dict) or content.get("format") != FORMAT:
        raise UserError(f"{shown}: expected format {FORMAT}; give another output.url")
    return content


def describe_sources(plan: GenerationPlan) -> dict[str, Any]:
    """What a plan names and does not hold, as far as it tells that it changed (JSON types)."""
    found: dict[str, Any] = {}
    if plan.start is not None:
        found["start_version"] = TokenDataset(plan.start.url).version.digest
    if plan.embeddings_url is not None:
        found["embeddings_bytes"] = storage.file_info(plan.embeddings_url).size_bytes
    return found


def to_json(plan: GenerationPlan) -> dict[str, Any]:
    return json.loads(json.dumps(asdict(plan)))


def _start(config: StartConfig, tokens: TokenSpec) -> StartPlan | None:
    if not config.url:
        if config.rows or config.columns or not config.keep_globals:
            raise UserError(
                "start.rows, start.columns, start.keep_globals: expected start.url, the token dataset to keep parts of"
            )
        return None
    if not (config.rows or config.columns or config.keep_globals):
        raise UserError(
            "start.keep_globals=false: nothing of start.url is kept; expected start.rows or start.columns with it"
        )
    dataset = TokenDataset(config.url)
    shown = storage.redact(config.url)
    if dataset.spec.tokenizer_fingerprint != tokens.tokenizer_fingerprint:
        raise RefusedError(
            f"start.url={shown}: its tokens are of tokenizer {dataset.spec.tokenizer_fingerprint[:12]}, the "
            f"generator's of {tokens.tokenizer_fingerprint[:12]}"
        )
    if not dataset.shards or not dataset.num_rows:
        raise UserError(f"start.url={shown}: has no images to start from")
    side = tokens.image_size // tokens.patch_size
    rows = _span("rows", config.rows, side) if config.rows else (0, 0)
    columns = _span("columns", config.columns, side) if config.columns else (0, side if config.rows else 0)
    if config.columns and not config.rows:
        rows = (0, side)
    return StartPlan(storage.canonical_url(config.url), config.keep_globals, rows, columns)


def _span(name: str, text: str, side: int) -> tuple[int, int]:
    match = re.fullmatch(r"\s*(\d*)\s*:\s*(\d*)\s*", text)
    first, last = (int(match[1] or 0), int(match[2] or side)) if match else (0, 0)
    if match is None or not 0 <= first < last <= side:
        raise UserError(f"start.{name}={text}: expected FROM:TO within 0:{side}, the grid of patches")
    return first, last


def _shown(value: Any) -> str:
    text = str(value)
    return text if len(text) <= 80 else f"{text[:77]}..."


def _flatten(value: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for name, item in value.items():
        flat |= _flatten(item, f"{prefix}{name}.") if isinstance(item, dict) else {prefix + name: item}
    return flat
