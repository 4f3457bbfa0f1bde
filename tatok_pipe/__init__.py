"""tatok_pipe: turn an image corpus into adaptive discrete tokens, and tokens into a generator.

The tokenizer is TaTok (arXiv 2605.16384): global tokens, patch tokens and Dynamic Token Filtering. `load_tokenizer` and
`load_generator` are the models as Python objects, `TokenDataset` and `TokenLoader` the tokens for a training of one's
own (`tatok_pipe.api`); the jobs are `python -m tatok_pipe.…`.
"""

from __future__ import annotations

import sys
from importlib import import_module
from typing import TYPE_CHECKING, Any

from tatok_pipe.runs.stop_signal import leave_on_signals
from tatok_pipe.version import __version__

if TYPE_CHECKING:
    from tatok_pipe.api import DrawConfig as DrawConfig
    from tatok_pipe.api import DTFConfig as DTFConfig
    from tatok_pipe.api import RaggedTokens as RaggedTokens
    from tatok_pipe.api import SamplingConfig as SamplingConfig
    from tatok_pipe.api import TokenBatch as TokenBatch
    from tatok_pipe.api import TokenDataset as TokenDataset
    from tatok_pipe.api import TokenLoader as TokenLoader
    from tatok_pipe.api import load_generator as load_generator
    from tatok_pipe.api import load_tokenizer as load_tokenizer

__all__ = [
    "DTFConfig",
    "DrawConfig",
    "RaggedTokens",
    "SamplingConfig",
    "TokenBatch",
    "TokenDataset",
    "TokenLoader",
    "__version__",
    "load_generator",
    "load_tokenizer",
]

# What a training of one's own takes: without the models it is there sooner, in each of many processes, and smaller.
_WITHOUT_MODELS = {
    "TokenBatch": "tatok_pipe.tokens.loading.token_loader",
    "TokenDataset": "tatok_pipe.tokens.dataset",
    "TokenLoader": "tatok_pipe.tokens.loading.token_loader",
}

if sys.argv[:1] == ["-m"]:  # Python is about to run one of our commands, whose imports take seconds
    leave_on_signals()


def __getattr__(name: str) -> Any:
    """The models are imported when they are asked for: a job's `--help` does not wait for torch."""
    if name in __all__:
        return getattr(import_module(_WITHOUT_MODELS.get(name, "tatok_pipe.api")), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    """What completion offers, also before it is imported."""
    return sorted({*globals(), *__all__})
