"""A sampler written another way: one image at a time, the whole sequence through the model for every token."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from tatok_pipe.ar.batch import to_tensors
from tatok_pipe.ar.draws import truncate, uniforms
from tatok_pipe.ar.model import Generator
from tatok_pipe.ar.options import DrawConfig, SamplingConfig
from tatok_pipe.ar.requests import ImageRequest, ImageTokens, Place
from tests.ar.packed import Tokens, pack


class Reference:
    """Draws one image by running the model over the whole sequence for every token. Probabilities are numpy's."""

    def __init__(self, model: Generator, config: SamplingConfig) -> None:
        self.model, self.config = model, config
        self.num_globals = model.vocabulary.num_globals
        self.num_places = model.vocabulary.num_patches

    @torch.no_grad()
    def __call__(self, request: ImageRequest) -> ImageTokens:
        self.request = request
        self.tokens = Tokens(
            [], [], label=request.label or 0, has_budget=request.num_patches is not None,
            is_conditional=request.label is not None or request.embedding is not None,
            embedding=None if request.embedding is None else request.embedding.tolist(),
        )  # fmt: skip
        given = request.global_codes
        for index in range(self.num_globals):
            code = self.draw(1, self.model.global_logits, self.config.codes, settled=index)
            self.tokens.globals.append(code if given is None or given[index] < 0 else int(given[index]))
        while (position := self.position()) < self.num_places:
            place = torch.tensor([position])
            settled = self.num_globals + self.last + 1
            code = self.draw(
                1,
                lambda hidden, at=place: self.model.code_logits(hidden, at),
                self.config.codes,
                settled=settled,
            )
            if request.patches is not None and request.patches[position] >= 0:
                code = int(request.patches[position])
            self.tokens.patches.append((position, code))
        positions, codes = zip(*self.tokens.patches, strict=True) if self.tokens.patches else ((), ())
        as_array = lambda values: np.array(values, np.int32)  # noqa: E731
        return ImageTokens(
            request.number, as_array(self.tokens.globals), as_array(codes), as_array(positions)
        )

    @property
    def last(self) -> int:
        return self.tokens.patches[-1][0] if self.tokens.patches else -1

    def position(self) -> int:
        """By what a request means, place by place."""
        places = [Place.FREE] * self.num_places if self.request.patches is None else self.request.patches
        required = [
            n for n in range(self.last + 1, self.num_places) if places[n] >= 0 or places[n] == Place.DRAWN
        ]
        limit = self.num_places if self.config.max_patches is None else self.config.max_patches
        possible = []
        for position in range(self.last + 1, self.num_places + 1):
            is_end = position == self.num_places
            skips = any(other < position for other in required)
            is_ruled_out = not is_end and places[position] == Place.ABSENT
            left_after = len([other for other in required if other > position])
            is_too_many = not is_end and len(self.tokens.patches) + 1 + left_after > limit
            if not (skips or is_ruled_out or is_too_many):
                possible.append(position)

        def logits(hidden: Tensor) -> Tensor:
            found = self.model.position_logits(hidden, torch.tensor([self.last]))
            mask = torch.full_like(found, float("-inf"))
            mask[0, possible] = 0
            return found.nan_to_num(neginf=-1e30) + mask

        settled = self.num_globals + self.last + 1
        return self.draw(0, logits, self.config.positions, settled=settled)

    def draw(self, part: int, head, config: DrawConfig, *, settled: int) -> int:  # noqa: ANN001
        logits = head(self.hidden(is_conditional=self.tokens.is_conditional))
        if self.config.is_guided and config.guidance != 1:
            share = settled / (self.num_globals + self.num_places)
            strength = config.guidance
            if self.config.guidance_schedule == "cosine":
                strength = 1 + (strength - 1) * (1 - np.cos(np.pi * share)) / 2
            without = head(self.hidden(is_conditional=False))
            guided = without + strength * (logits - without)
            logits = torch.where(torch.isfinite(logits), guided, logits)
        order = len(self.tokens.globals) + len(self.tokens.patches)
        if config.temperature == 0:
            return int(logits[0].argmax())
        logits = truncate(logits / config.temperature, top_k=config.top_k, top_p=config.top_p)
        probabilities = logits[0].double().softmax(0).numpy()
        number = uniforms(torch.tensor([self.request.seed]), torch.tensor([2 * order + part])).item()
        return int((probabilities.cumsum() <= number).sum())

    def hidden(self, *, is_conditional: bool) -> Tensor:
        length = 1 + len(self.tokens.globals) + len(self.tokens.patches)
        # The length of the sequence would tell a model with budgets another one than was asked for.
        batch = pack([[replace(self.tokens, is_conditional=is_conditional)]], row_tokens=length)
        vocabulary = self.model.vocabulary
        num_missing = vocabulary.num_globals - len(self.tokens.globals)
        if num_missing:  # `to_tensors` wants whole sequences: causal attention does not see what follows
            filled = replace(
                self.tokens, is_conditional=is_conditional, globals=self.tokens.globals + [0] * num_missing
            )
            batch = pack([[filled]], row_tokens=length + num_missing)
        tensors = to_tensors(batch, "cpu", vocabulary=vocabulary)
        if self.request.num_patches is not None:
            tensors = replace(tensors, asked_patches=torch.tensor([self.request.num_patches]))
        return self.model.hidden(tensors)[[length - 1]]
