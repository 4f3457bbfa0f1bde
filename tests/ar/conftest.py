from __future__ import annotations

import pytest
import torch

from tatok_pipe.ar.model import Generator
from tests.ar.packed import SMALL, VOCABULARY, widen


@pytest.fixture
def model() -> Generator:
    torch.manual_seed(0)
    return widen(Generator(SMALL, VOCABULARY)).eval()
