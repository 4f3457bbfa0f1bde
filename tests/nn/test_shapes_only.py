"""Models that are built for their shapes alone are those that they would be, and take no compiler."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tatok_pipe.ar.batch import Vocabulary
from tatok_pipe.ar.model import Generator
from tatok_pipe.ar.options import GeneratorConfig
from tatok_pipe.nn.shapes_only import shapes_only
from tatok_pipe.tokenizer.checkpoint import load_tokenizer
from tatok_pipe.tokenizer.model import TaTok

ROOT = Path(__file__).parents[2]
MAKERS = [
    lambda: torch.randn(2, 3),
    lambda: torch.randn((2, 3)) * 0.1,
    lambda: torch.rand(4),
    lambda: torch.eye(3),
    lambda: torch.eye(3, 4),
    lambda: torch.arange(7),
    lambda: torch.arange(1, 8, 3),
    lambda: torch.arange(5, 1, -2),
    lambda: torch.arange(4, 4),
    lambda: torch.arange(0.0, 1.0, 0.25),
    lambda: torch.cartesian_prod(torch.arange(3), torch.arange(4)),
    lambda: torch.ones(3, 1) * torch.ones(4) / torch.ones(2, 1, 1),
    lambda: 2 ** -torch.ones(3, 1),
    lambda: torch.cat([torch.ones(2, 3), torch.ones(2, 5)], dim=-1),
    lambda: torch.cat([torch.ones(2, 3), torch.ones(1, 3)]),
    lambda: torch.stack([torch.ones(2, 3), torch.ones(2, 3)], dim=-1),
    lambda: torch.stack([torch.ones(2, 3)] * 4, 1),
    lambda: F.interpolate(torch.ones(1, 2, 3, 3), size=(5, 4), mode="bicubic"),
    lambda: F.interpolate(torch.ones(1, 2, 3, 3), scale_factor=2),
    lambda: nn.init.orthogonal_(torch.empty(3, 2)),
    lambda: torch.ones(2, 3).sum(dim=1).cos(),
]


@pytest.mark.parametrize("place", range(len(MAKERS)))
def test_shapes_are_those_of_values(place: int) -> None:
    make = MAKERS[place]
    with shapes_only():
        found: Tensor = make()
    assert found.is_meta and found.shape == make().shape


def test_what_does_not_fit_is_said_by_torch() -> None:
    with shapes_only(), pytest.raises(RuntimeError):
        torch.mul(torch.ones(2), torch.ones(3))
    with shapes_only(), pytest.raises(RuntimeError):
        torch.stack([torch.ones(2), torch.ones(3)])
    with shapes_only(), pytest.raises(RuntimeError):
        torch.arange(5, 1)


def test_nothing_of_its_size_is_allocated() -> None:
    with shapes_only():
        assert (torch.randn(1 << 30, 1 << 20) * 2 + 1).numel() == 1 << 50


def test_models_have_the_shapes_that_they_would_have() -> None:
    config = load_tokenizer().model.config
    vocabulary = Vocabulary(num_globals=2, num_patches=16, global_vocab=8, patch_vocab=8)
    for build in (
        lambda: TaTok(config),
        lambda: Generator(GeneratorConfig(width=32, depth=2, heads=2, num_classes=3), vocabulary),
    ):
        with shapes_only():
            shapes = build()
        model = build()
        for told, there in (
            (shapes.state_dict(), model.state_dict()),
            (dict(shapes.named_buffers()), dict(model.named_buffers())),
        ):
            assert {name: each.shape for name, each in told.items()} == {
                name: each.shape for name, each in there.items()
            }
            assert told and all(each.is_meta for each in told.values())


def test_loading_the_tokenizer_imports_no_compiler() -> None:
    code = (
        "import sys; from tatok_pipe.tokenizer.checkpoint import load_tokenizer; load_tokenizer(); "
        "print({'torch._dynamo', 'sympy'} & sys.modules.keys())"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout == "set()\n"
