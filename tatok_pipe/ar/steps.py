"""What a sampler asks of the generator in a step: one more element of every row through all blocks, and the heads.

`PlainSteps` is the model itself with a cache of keys and values, on any device and in any dtype. `CompiledSteps` is the
same in C (`step.c`), for float32 on CPUs: of a step of one row through a small model, PyTorch spends most of its time
between its operators. Its logits are those of the model but for rounding.

Letters: R rows, W width, L elements that a row has room for, K inputs and N outputs of a linear layer, V codes.
"""

from __future__ import annotations

import ctypes
from ctypes import c_float, c_int, c_int64, c_void_p
from pathlib import Path
from typing import Any, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from tatok_pipe.ar.heads import CodeHead
from tatok_pipe.ar.kv_cache import KeyValueCache
from tatok_pipe.ar.model import Block, Generator
from tatok_pipe.nn.c_library import load_c_library
from tatok_pipe.nn.norm import RMSNorm
from tatok_pipe.nn.prepacked import prepack

_SOURCE = Path(__file__).with_name("step.c")
_LANES = 16  # as in step.c
_KEYS = 16
# A step of less than some milliseconds is done before threads have met often enough to be worth it.
_LEAST_PRODUCTS = 1 << 28
_MEMORY_BOUND_ROWS = 8  # fewer take no less time: weights have to be read


class Steps(Protocol):
    """Logits are (R, …) in the model's dtype, and not barred."""

    def embed(
        self, order: Tensor, codes: Tensor, places: Tensor, conditions: Tensor, requests: Tensor
    ) -> Tensor:
        """The next elements of slots, (B, W): those of order 0 are rows of `conditions` (C, W), by `requests`; then
        come globals and patches, by code and index or position. All but the second last are (B,) int64."""
        ...

    def hidden(self, elements: Tensor, order: Tensor, spots: Tensor) -> Tensor:
        """Elements (R, W) with their order in their sequences and their spots (`BatchTensors`), (R,) int64 both, to
        normalised hidden states (R, W)."""
        ...

    def global_logits(self, hidden: Tensor) -> Tensor: ...

    def position_logits(self, hidden: Tensor) -> Tensor: ...

    def code_logits(self, hidden: Tensor, places: Tensor) -> Tensor:
        """(R, W) and the places (R,) int64 of the patches."""
        ...


class PlainSteps:
    """By the model's own modules, which are laid out for oneDNN, in place, where steps need not be one program."""

    def __init__(self, model: Generator, *, num_rows: int, is_static: bool, rotary: Tensor) -> None:
        if not is_static:
            prepack(model)
        self._model, self._rotary = model, rotary
        config, weight = model.config, model.patch_codes.weight
        self._cache = KeyValueCache(
            num_layers=config.depth,
            num_rows=num_rows,
            num_heads=config.heads,
            length=model.vocabulary.max_length,
            head_dim=config.width // config.heads,
            device=weight.device,
            dtype=weight.dtype,
            is_static=is_static,
        )

    def embed(
        self, order: Tensor, codes: Tensor, places: Tensor, conditions: Tensor, requests: Tensor
    ) -> Tensor:
        model, vocabulary = self._model, self._model.vocabulary
        # One of them is meant, and all are embedded: their codes and places must exist for all.
        x = model.embed_patch(
            codes.clamp(max=vocabulary.patch_vocab - 1), places.clamp(max=vocabulary.num_patches - 1)
        )
        if vocabulary.num_globals:
            as_global = model.embed_global(
                codes.clamp(max=vocabulary.global_vocab - 1), places.clamp(max=vocabulary.num_globals - 1)
            )
            x = torch.where((order <= vocabulary.num_globals)[:, None], as_global, x)
        return torch.where((order == 0)[:, None], conditions[requests], x)

    def hidden(self, elements: Tensor, order: Tensor, spots: Tensor) -> Tensor:
        x, rotary = elements, self._rotary[spots]
        for block, attend in zip(self._model.blocks, self._cache.attends(order), strict=True):
            x = block(x, rotary, attend)
        return self._model.norm(x)

    def global_logits(self, hidden: Tensor) -> Tensor:
        return self._model.global_logits(hidden)

    def position_logits(self, hidden: Tensor) -> Tensor:
        return self._model.position_head.out(hidden)

    def code_logits(self, hidden: Tensor, places: Tensor) -> Tensor:
        return self._model.code_logits(hidden, places)


def _structure(name: str, **fields: Any) -> type[ctypes.Structure]:
    return type(name, (ctypes.Structure,), {"_fields_": [*fields.items()]})


def _pointers(*names: str) -> dict[str, Any]:
    return dict.fromkeys(names, c_void_p)


def _integers(*names: str) -> dict[str, Any]:
    return dict.fromkeys(names, c_int64)


# As in step.c.
_Layer = _structure(
    "_Layer", **_pointers("qkv", "query_norm", "key_norm", "out", "gate_up", "down", "keys", "values")
)
_Model = _structure(
    "_Model",
    **_integers("width", "num_heads", "hidden", "depth", "length"),
    eps=c_float,
    **_pointers("layers", "norm", "rotary"),
)
_Embedding = _structure(
    "_Embedding",
    **_integers("width", "num_globals"),
    **_pointers("global_codes", "global_slots", "patch_codes", "patch_places"),
)
_CodeHead = _structure(
    "_CodeHead",
    **_integers("width", "hidden", "vocab"),
    eps=c_float,
    **_pointers("places", "gate_up", "down", "out"),
)
_FUNCTIONS = {
    "embed": [c_void_p, c_int64, *[c_void_p] * 6],
    "run_blocks": [c_void_p, c_int64, *[c_void_p] * 5, c_int],
    "project": [c_void_p, c_int64, c_int64, c_void_p, c_int64, c_void_p, c_int],
    "project_codes": [c_void_p, c_int64, *[c_void_p] * 4, c_int],
}


def suiting_steps(device: str, precision: str) -> str:
    """What computes a sampler's steps on a device ("cpu" or "cuda") of this machine, in "fp32" or "bf16", where nothing
    else is asked for: "c" or "torch"."""
    return "c" if device == "cpu" and precision == "fp32" and load_step() is not None else "torch"


def load_step() -> ctypes.CDLL | None:
    """The functions of step.c; None where they cannot be made."""
    library = load_c_library(_SOURCE)
    if library is None:
        return None
    for name, arguments in _FUNCTIONS.items():
        function = getattr(library, name)
        function.argtypes, function.restype = arguments, None
    library.scratch_size.argtypes, library.scratch_size.restype = [c_int64] * 5, c_int64
    return library


class CompiledSteps:
    """By `step.c`. Holds weights of its own: those of the model are not needed any more."""

    def __init__(self, model: Generator, library: ctypes.CDLL, *, num_rows: int) -> None:
        self._library, self._num_rows = library, num_rows
        self._panel = c_int64.in_dll(library, "panel_width").value
        self._width, vocabulary = model.config.width, model.vocabulary
        self._length = -(-vocabulary.max_length // _KEYS) * _KEYS
        self._kept: list[Tensor] = []  # what C has the addresses of
        self._num_weights = 0  # in panels
        self._embedding = ctypes.byref(self._describe_embedding(model))
        self._blocks = ctypes.byref(self._describe_blocks(model))
        self._code_head = ctypes.byref(self._describe_code_head(model))
        self._globals = self._keep_panels(model.global_head.weight)
        self._positions = self._keep_panels(model.position_head.out.weight)
        self._num_globals, self._num_positions = vocabulary.global_vocab, vocabulary.num_patches + 1
        self._num_codes = vocabulary.patch_vocab
        blocks = _blocks(model)
        hidden = max(_hidden_size(blocks[0]), _hidden_size(model.code_head))
        size = library.scratch_size(num_rows, self._width, model.config.heads, hidden, self._length)
        self._scratch = self._make_room(size)

    def embed(
        self, order: Tensor, codes: Tensor, places: Tensor, conditions: Tensor, requests: Tensor
    ) -> Tensor:
        out = torch.empty(len(order), self._width)
        self._library.embed(
            self._embedding, len(order), order.data_ptr(), codes.data_ptr(), places.data_ptr(), conditions.data_ptr(),
            requests.data_ptr(), out.data_ptr(),
        )  # fmt: skip
        return out

    def hidden(self, elements: Tensor, order: Tensor, spots: Tensor) -> Tensor:
        out = torch.empty(len(order), self._width)
        self._library.run_blocks(
            self._blocks, len(order), order.data_ptr(), spots.data_ptr(), elements.data_ptr(), out.data_ptr(),
            self._scratch, self._num_threads(),
        )  # fmt: skip
        return out

    def global_logits(self, hidden: Tensor) -> Tensor:
        return self._project(hidden, self._globals, self._num_globals)

    def position_logits(self, hidden: Tensor) -> Tensor:
        return self._project(hidden, self._positions, self._num_positions)

    def code_logits(self, hidden: Tensor, places: Tensor) -> Tensor:
        out = self._outputs(len(places), self._num_codes)
        self._library.project_codes(
            self._code_head, len(places), hidden.data_ptr(), places.data_ptr(), out.data_ptr(), self._scratch,
            self._num_threads(),
        )  # fmt: skip
        return out[:, : self._num_codes]

    def _project(self, hidden: Tensor, panels: int, num_outputs: int) -> Tensor:
        out = self._outputs(len(hidden), num_outputs)
        self._library.project(
            hidden.data_ptr(), len(hidden), self._width, panels, num_outputs, out.data_ptr(), self._num_threads()
        )  # fmt: skip
        return out[:, :num_outputs]

    def _outputs(self, num_rows: int, size: int) -> Tensor:
        return torch.empty(num_rows, _rounded(size, self._panel))

    def _num_threads(self) -> int:
        is_large = self._num_weights * max(self._num_rows, _MEMORY_BOUND_ROWS) >= _LEAST_PRODUCTS
        return torch.get_num_threads() if is_large else 1

    def _describe_embedding(self, model: Generator) -> Any:
        return _Embedding(
            width=self._width, num_globals=model.vocabulary.num_globals,
            global_codes=self._keep(model.global_codes.weight), global_slots=self._keep(model.global_slots.weight),
            patch_codes=self._keep(model.patch_codes.weight), patch_places=self._keep(model.patch_places.weight),
        )  # fmt: skip

    def _describe_blocks(self, model: Generator) -> Any:
        blocks = _blocks(model)
        layers = [*map(self._describe_layer, blocks)]
        self._layers = (_Layer * len(layers))(*layers)
        return _Model(
            width=self._width, num_heads=model.config.heads, hidden=_hidden_size(blocks[0]), depth=len(layers),
            length=self._length, eps=model.norm.eps, layers=ctypes.addressof(self._layers),
            norm=self._keep(model.norm.weight), rotary=self._keep(model.rotary),
        )  # fmt: skip

    def _describe_layer(self, block: Block) -> Any:
        num_heads, size = block.num_heads, self._width // block.num_heads
        room = self._num_rows * num_heads * self._length
        return _Layer(
            qkv=self._keep_panels(block.qkv.weight, norm=block.attention_norm),
            query_norm=self._keep(block.query_norm.weight * size**-0.5),
            key_norm=self._keep(block.key_norm.weight),
            out=self._keep_panels(block.out.weight),
            gate_up=self._keep_panels(block.mlp.gate_up.weight, norm=block.mlp_norm),
            down=self._keep_panels(block.mlp.down.weight),
            keys=self._make_room(room * size),
            values=self._make_room(room * _rounded(size, _LANES)),
        )

    def _describe_code_head(self, model: Generator) -> Any:
        head = model.code_head
        return _CodeHead(
            width=self._width, hidden=_hidden_size(head), vocab=head.out.out_features, eps=head.norm.eps,
            places=self._keep(head.places.weight),
            gate_up=self._keep_panels(head.mlp.gate_up.weight, norm=head.mlp_norm),
            down=self._keep_panels(head.mlp.down.weight),
            out=self._keep_panels(head.out.weight, norm=head.norm),
        )  # fmt: skip

    def _keep_panels(self, weight: Tensor, *, norm: RMSNorm | None = None) -> int:
        """The address of (N, K), after `norm`, as (padded N / P, K, P)."""
        weight = weight if norm is None else weight * norm.weight
        weight = F.pad(weight, (0, 0, 0, -len(weight) % self._panel))
        self._num_weights += weight.numel()
        return self._keep(weight.unflatten(0, (-1, self._panel)).transpose(1, 2))

    def _keep(self, values: Tensor) -> int:
        """The address of a copy."""
        self._kept.append(values.detach().clone(memory_format=torch.contiguous_format))
        return self._kept[-1].data_ptr()

    def _make_room(self, count: int) -> int:
        """The address of zeros: what a sequence does not see is multiplied by zero, which makes no zero of NaN."""
        self._kept.append(torch.zeros(count))
        return self._kept[-1].data_ptr()


def _blocks(model: Generator) -> list[Block]:
    return [block for block in model.blocks if isinstance(block, Block)]


def _hidden_size(part: Block | CodeHead) -> int:
    """F, of its MLP."""
    return part.mlp.down.in_features


def _rounded(size: int, step: int) -> int:
    return -(-size // step) * step
