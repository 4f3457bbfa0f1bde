"""Plans of evaluations for tests."""

from __future__ import annotations

from tatok_pipe.evaluation.options import FeaturesConfig
from tatok_pipe.evaluation.plan import EvaluationPlan
from tatok_pipe.tokenizer.checkpoint import load_tokenizer
from tatok_pipe.tokenizer.dtf import Filter


def make_plan(tokenizer: str, *, filter: Filter) -> EvaluationPlan:
    """Of a tokenizer's folder, without images."""
    loaded = load_tokenizer(tokenizer)
    return EvaluationPlan(
        tokenizer=tokenizer, tokenizer_fingerprint=loaded.fingerprint,
        image_size=loaded.model.config.image_size, filter=filter, sources=(), data="test",
        features=FeaturesConfig(), seed=0, confidence=0.95,
    )  # fmt: skip
