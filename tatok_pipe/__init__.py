"""tatok_pipe: turn an image corpus into adaptive discrete tokens, and tokens into a generator.

The tokenizer is TaTok (arXiv 2605.16384): global tokens, patch tokens and Dynamic Token Filtering. `load_tokenizer` and
`load_generator` are the models as Python objects (`tatok_pipe.api`); the jobs are `python -m tatok_pipe.…`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tatok_pipe.api import load_generator as load_generator
    from tatok_pipe.api import load_tokenizer as load_tokenizer

__version__ = "0.1.0"
__all__ = ["__version__", "load_generator", "load_tokenizer"]


def __getattr__(name: str) -> Any:
    """The models are imported when they are asked for: a job's `--help` does not wait for torch."""
    if name in ("load_generator", "load_tokenizer"):
        from tatok_pipe import api

        return getattr(api, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
