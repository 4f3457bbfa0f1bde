"""A model that does nothing, in every Python process that has this folder on PYTHONPATH: each image gets the codes 0.

So what a job takes with it is everything but the model. The rest of the process is untouched.
"""

from __future__ import annotations

import importlib.abc
import importlib.machinery
import sys
from collections.abc import Sequence
from types import ModuleType
from typing import Any

_MODULE = "tatok_pipe.tokenizer.model"


class _Finder(importlib.abc.MetaPathFinder):
    def find_spec(
        self, name: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        if name != _MODULE:
            return None
        spec = importlib.machinery.PathFinder.find_spec(name, path)
        assert spec is not None and spec.loader is not None
        execute: Any = spec.loader.exec_module

        def exec_module(module: ModuleType) -> None:
            execute(module)
            _replace(module)

        spec.loader.exec_module = exec_module  # type: ignore[method-assign]
        return spec


def _replace(module: Any) -> None:
    import torch

    def tokenize(self: Any, images: Any, filter: Any, **settings: bool) -> Any:
        batch, config = len(images), self.config
        codes = torch.zeros(batch, config.num_patches, dtype=torch.long)
        nothing = torch.zeros(batch, config.num_patches)
        return module.Tokens(
            global_codes=codes[:, : config.num_globals], patch_codes=codes, cost=nothing, keep=codes == 0,
            patch_entropy=nothing, mutual_information=None,
        )  # fmt: skip

    module.TaTok.tokenize = tokenize


sys.meta_path.insert(0, _Finder())
