"""A finished model on any URL: a folder with weights in a safetensors file and the JSON that describes it.

Nothing is unpickled.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load as load_tensors
from safetensors.torch import save as save_tensors
from torch import Tensor, nn

from tatok_pipe import storage
from tatok_pipe.errors import UserError
from tatok_pipe.nn.shapes_only import shapes_only
from tatok_pipe.storage.json_types import to_json_types
from tatok_pipe.storage.outputs import recognise

_MAX_BUFFER_VALUES = 1 << 28  # of all tables that a model computes for itself


def fingerprint(weights: dict[str, Tensor], config: dict[str, Any]) -> str:
    """SHA-256, hex, over a config (JSON types) and every tensor's name, dtype, shape and bytes."""
    digest = hashlib.sha256(json.dumps(config, sort_keys=True).encode())
    for name in sorted(weights):
        tensor = weights[name].detach().cpu().contiguous()
        digest.update(f"{name} {tensor.dtype} {list(tensor.shape)}".encode())
        digest.update(tensor.view(torch.uint8).numpy().tobytes() if tensor.ndim else tensor.numpy().tobytes())
    return digest.hexdigest()


def check_size(build: Callable[[], nn.Module], config: dict[str, Any], weights: dict[str, Tensor]) -> None:
    """Raise ValueError where the model that `build` makes of `config` is not the one that has these weights.

    Nothing of its size is allocated: a description of some bytes may ask for terabytes.
    """
    for depth in _values_of(config, "depth"):
        if isinstance(depth, int) and depth > len(weights):
            raise ValueError(f"depth={depth}, there are {len(weights)} tensors in all")
    with shapes_only():
        model = build()
    wanted = {name: list(tensor.shape) for name, tensor in model.state_dict().items()}
    found = {name: list(tensor.shape) for name, tensor in weights.items()}
    for name in sorted({*wanted, *found}):
        if wanted.get(name) != found.get(name):
            raise ValueError(
                f"{name} is {found.get(name, 'missing')}, expected {wanted.get(name, 'nothing')}"
            )
    if (num_values := sum(buffer.numel() for buffer in model.buffers())) > _MAX_BUFFER_VALUES:
        raise ValueError(f"its tables have {num_values} values, expected at most {_MAX_BUFFER_VALUES}")


def _values_of(config: dict[str, Any], key: str) -> Iterator[Any]:
    for name, value in config.items():
        if isinstance(value, dict):
            yield from _values_of(value, key)
        elif name == key:
            yield value


@dataclass(frozen=True)
class WeightsFolder:
    """One kind of finished model: what its files are called, and what a user is told about them."""

    weights: str
    description: str
    format: int
    option: str  # the config key that names such a folder
    origin: str  # "give …": where a user gets one

    def write(self, url: str, weights: dict[str, Tensor], description: dict[str, Any]) -> None:
        """The description comes last and makes the folder whole."""
        tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in weights.items()}
        content = to_json_types({"format": self.format} | description)
        text = json.dumps(content, indent=1, sort_keys=True, allow_nan=False) + "\n"
        storage.publish_bytes(save_tensors(tensors), storage.join(url, self.weights), exclusive=False)
        storage.publish_bytes(text.encode(), storage.join(url, self.description), exclusive=False)

    def locate(self, url: str) -> str:
        """`url`, or the folder of this kind in it, where `url` is the output of the training that made one."""
        inner = storage.join(url, self.description.removesuffix(".json"))
        is_output = not storage.exists(storage.join(url, self.description)) and storage.exists(
            storage.join(inner, self.description)
        )
        return inner if is_output else url

    def read(self, url: str) -> tuple[dict[str, Any], dict[str, Tensor]]:
        """(description, weights) of the folder at `url`, or of that in it where a training left one there. Raises
        UserError where there is none, or a file is damaged or of another format."""
        try:
            url = self.locate(url)
            description = json.loads(storage.read_bytes(storage.join(url, self.description)))
            weights = storage.read_bytes(storage.join(url, self.weights))
        except (FileNotFoundError, NotADirectoryError):
            found = recognise(url)
            what = f"{found}, " if found and self.description not in found else ""
            raise self.error(
                url, f"{what}expected a folder with {self.description} and {self.weights}; {self.origin}"
            ) from None
        except (ValueError, OSError) as error:
            raise self.error(url, f"cannot be read: {error}") from None
        if not isinstance(description, dict) or description.get("format") != self.format:
            raise self.error(url, f"expected format {self.format} in {self.description}")
        try:
            return description, load_tensors(weights)
        except SafetensorError as error:
            raise self.error(url, f"{self.weights} is damaged: {error}") from None

    def error(self, url: str, message: str) -> UserError:
        """`message`, in one line, about the folder at `url`."""
        return UserError(f"{self.option}={storage.redact(url)}: {' '.join(message.split())[:400]}")
