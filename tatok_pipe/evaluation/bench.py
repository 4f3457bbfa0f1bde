"""The models that suites measure with, loaded where they are first asked for.

Letters: B images, N patches.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cached_property

import torch
from torch import Tensor

from tatok_pipe import storage
from tatok_pipe.ar.checkpoint import load_generator
from tatok_pipe.errors import UserError
from tatok_pipe.evaluation.drawing import Drawing
from tatok_pipe.evaluation.features import FeatureNetwork
from tatok_pipe.evaluation.plan import EvaluationPlan
from tatok_pipe.evaluation.textbook import Textbook, load_textbook
from tatok_pipe.nn.prepacked import prepack
from tatok_pipe.tokenizer.checkpoint import Tokenizer, load_tokenizer
from tatok_pipe.tokenizer.perceptual import PerceptualDistance, build_perceptual

BATCH_IMAGES = 16


class Bench:
    """On one device, for one worker. `touch` is a sign of life, with the number of images that are done since."""

    def __init__(
        self,
        plan: EvaluationPlan,
        *,
        device: torch.device | str,
        touch: Callable[[int], None] = lambda _: None,
    ) -> None:
        self.plan = plan
        self.device = torch.device(device)
        self.touch = touch

    @cached_property
    def tokenizer(self) -> Tokenizer:
        return self._load(self.plan.tokenizer, self.plan.tokenizer_fingerprint)

    @cached_property
    def baseline(self) -> Tokenizer | None:
        """A tokenizer to compare with: patch tokens alone."""
        if self.plan.baseline is None:
            return None
        return self._load(self.plan.baseline, self.plan.baseline_fingerprint)

    @cached_property
    def generator(self) -> Drawing | None:
        plan = self.plan
        if plan.generator is None:
            return None
        return self._drawing(plan.generator, plan.generator_fingerprint, self.tokenizer)

    @cached_property
    def baseline_generator(self) -> Drawing | None:
        """Of the baseline's tokens."""
        plan = self.plan
        if plan.baseline_generator is None or self.baseline is None:
            return None
        return self._drawing(plan.baseline_generator, plan.baseline_generator_fingerprint, self.baseline)

    @cached_property
    def features(self) -> FeatureNetwork:
        return FeatureNetwork(self.plan.features, self.device)

    @cached_property
    def textbook(self) -> Textbook:
        return load_textbook().to(self.device)

    @cached_property
    def _perceptual(self) -> PerceptualDistance:
        found = build_perceptual("efficientnet_lite0", self.device)
        assert found is not None
        return found

    @torch.no_grad()
    def perceptual(self, output: Tensor, target: Tensor) -> Tensor:
        """Perceptual distance of each image, (B,): see `tokenizer.perceptual`; it is not LPIPS."""
        return self._perceptual(output, target)

    def _load(self, url: str, expected: str | None) -> Tokenizer:
        tokenizer = load_tokenizer(url, device=self.device)
        _check(url, tokenizer.fingerprint, expected)
        if self.device.type == "cpu":
            prepack(tokenizer.model)  # so that figures do not depend on the number of threads
        return tokenizer

    def _drawing(self, url: str, expected: str | None, tokenizer: Tokenizer) -> Drawing:
        generator = load_generator(url, device=self.device)
        _check(url, generator.fingerprint, expected)
        plan = self.plan
        return Drawing(
            generator, tokenizer, num_images=plan.num_generated, seed=plan.seed, guidance=plan.guidance
        )


def _check(url: str, found: str, expected: str | None) -> None:
    if found != expected:
        raise UserError(
            f"{storage.redact(url)} has fingerprint {found[:12]} on this machine, the run was planned with "
            f"{str(expected)[:12]}; give a URL that all nodes share"
        )
