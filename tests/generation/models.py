"""A tiny tokenizer, and tiny generators of its tokens, on disk."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from tatok_pipe.ar.batch import Vocabulary
from tatok_pipe.ar.checkpoint import save_generator
from tatok_pipe.ar.model import Generator
from tatok_pipe.ar.options import GeneratorConfig
from tatok_pipe.tokenizer.checkpoint import save_tokenizer
from tatok_pipe.tokenizer.model import TaTok
from tatok_pipe.tokenizer.options import GlobalQuantizerConfig, GridStackConfig, StackConfig, TaTokConfig
from tatok_pipe.tokens.spec import FilterSpec, TokenSpec
from tests.ar.packed import widen

_NARROW = StackConfig(width=32, depth=1, heads=2)
TOKENIZER = TaTokConfig(
    image_size=32,
    patch_size=8,
    num_globals=3,
    search_passes=0,
    encoder=GridStackConfig(width=32, depth=1, heads=2),
    decoder=GridStackConfig(width=128, depth=2, heads=4),
    prior=_NARROW,
    global_codebook=GlobalQuantizerConfig(kind="fsq", levels=[5, 5], code_dim=4),
    patch_codebook=GlobalQuantizerConfig(kind="fsq", levels=[4, 4, 4], code_dim=4),
)
CLASSES = GeneratorConfig(width=64, depth=2, heads=4, num_classes=10)
_WEIGHTS = 1.5  # times those of initialisation, with which every image is grey


@dataclass(frozen=True)
class Models:
    """Checkpoints that belong together."""

    generator: str  # folder
    tokenizer: str
    spec: TokenSpec  # of the tokens that go from one to the other


def save_models(
    folder: Path,
    config: GeneratorConfig = CLASSES,
    *,
    seed: int = 0,
    training: dict[str, Any] | None = None,
    class_names: tuple[str, ...] = (),
) -> Models:
    torch.manual_seed(seed)
    tokenizer = TaTok(TOKENIZER)
    with torch.no_grad():
        for parameter in tokenizer.parameters():
            if parameter.ndim == 2:
                parameter.mul_(_WEIGHTS)
    fingerprint = save_tokenizer(str(folder / "tokenizer"), tokenizer, ladders={}, training={})
    spec = TokenSpec(
        num_globals=TOKENIZER.num_globals,
        num_patches=TOKENIZER.num_patches,
        global_vocab=25,
        patch_vocab=64,
        image_size=TOKENIZER.image_size,
        patch_size=TOKENIZER.patch_size,
        tokenizer_fingerprint=fingerprint,
        dtf=FilterSpec("none", "gain", 0.0, 1),
        class_names=class_names,
    )
    torch.manual_seed(seed + 1)  # so that the tokenizer's weights do not decide the generator's
    generator = widen(Generator(config, Vocabulary.from_spec(spec)))
    url = str(folder / "generator")
    save_generator(url, dict(generator.state_dict()), config=config, tokens=spec, training=training or {})
    return Models(url, str(folder / "tokenizer"), spec)
