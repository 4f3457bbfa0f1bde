from __future__ import annotations

import pytest
import torch

from tatok_pipe.tokenizer.model import TaTok
from tatok_pipe.tokenizer.options import (
    GlobalQuantizerConfig,
    GridStackConfig,
    QuantizerConfig,
    StackConfig,
    TaTokConfig,
)


def small_config(kind: str = "fsq", num_globals: int = 3) -> TaTokConfig:
    stack = StackConfig(width=32, depth=2, heads=2)
    grid = GridStackConfig(width=32, depth=2, heads=2, attend_every=1)
    return TaTokConfig(
        image_size=32,
        patch_size=8,
        num_globals=num_globals,
        search_passes=int(kind == "vq"),
        encoder=grid,
        decoder=grid,
        prior=stack,
        global_codebook=GlobalQuantizerConfig(kind=kind, levels=[5, 5], codebook_size=32, code_dim=4),
        patch_codebook=QuantizerConfig(kind=kind, levels=[4, 4, 4], codebook_size=64, code_dim=4),
    )


@pytest.fixture(params=["fsq", "vq"])
def model(request: pytest.FixtureRequest) -> TaTok:
    torch.manual_seed(0)
    return TaTok(small_config(request.param)).eval()


@pytest.fixture
def images() -> torch.Tensor:
    return torch.rand(4, 3, 32, 32, generator=torch.Generator().manual_seed(1))
