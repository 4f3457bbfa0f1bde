"""All that decides what an evaluation finds. The same plan gives the same findings."""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass, replace
from typing import Any

from tatok_pipe import storage
from tatok_pipe.evaluation.options import FeaturesConfig
from tatok_pipe.evaluation.pictures import PictureSource
from tatok_pipe.tokenizer.dtf import Filter

_DIGEST_LENGTH = 12


@dataclass(frozen=True)
class EvaluationPlan:
    """Small, and the same on every actor. URLs are canonical, fingerprints those that the driver saw."""

    tokenizer: str
    tokenizer_fingerprint: str
    image_size: int
    filter: Filter  # the one that is evaluated
    sources: tuple[PictureSource, ...]
    data: str  # as it was given
    features: FeaturesConfig
    seed: int
    confidence: float
    baseline: str | None = None  # tokenizer of patch tokens alone
    baseline_fingerprint: str | None = None
    generator: str | None = None
    generator_fingerprint: str | None = None
    baseline_generator: str | None = None
    baseline_generator_fingerprint: str | None = None
    num_generated: int = 0
    guidance: float = 1.0
    tokens: str | None = None  # token dataset
    other_tokens: str | None = None

    def settings(self) -> dict[str, Any]:
        """As JSON types, without secrets. What lies where is in it: figures of other files are other figures."""
        plan = replace(
            self, sources=tuple(replace(each, url=storage.redact(each.url)) for each in self.sources)
        )
        values = json.loads(json.dumps(asdict(plan)))
        return {
            name: storage.redact(value) if isinstance(value, str) and "://" in value else value
            for name, value in values.items()
        }

    @property
    def digest(self) -> str:
        text = json.dumps(self.settings(), sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:_DIGEST_LENGTH]
