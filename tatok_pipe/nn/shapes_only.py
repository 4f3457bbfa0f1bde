"""Building a model for its shapes alone, on the meta device, without a second and a half of imports.

Some operations on that device are Python inside of torch, and the first of them imports torch's compiler. Of those that
models are built with the shape is known without torch; all else goes to the meta device as it is.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from itertools import zip_longest
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

_META = torch.device("meta")
_BY_ELEMENT = {
    getattr(where, name)
    for where, names in {
        Tensor: "add sub mul div neg pow exp log sqrt cos sin float double __add__ __radd__ __sub__ __rsub__ __mul__ "
        "__rmul__ __truediv__ __rtruediv__ __pow__ __rpow__ __neg__",
        torch: "add sub mul div neg pow exp log sqrt cos sin",
    }.items()
    for name in names.split()
}


@contextmanager
def shapes_only() -> Iterator[None]:
    """Tensors that are made here have a shape, no values, and take no memory; their types may not be those they would
    have."""
    with _META, _ShapesOnly():
        yield


class _ShapesOnly(TorchFunctionMode):
    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Any,
        args: Sequence[Any] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        kwargs = kwargs or {}
        if getattr(func, "__module__", "") == nn.init.__name__ and func.__name__.endswith("_"):
            return kwargs["tensor"] if "tensor" in kwargs else args[0]  # they only fill it
        shape = _shape_of(func, args, kwargs)
        return func(*args, **kwargs) if shape is None else torch.empty(shape, device=_META)


def _shape_of(func: Callable[..., Any], args: Sequence[Any], kwargs: dict[str, Any]) -> Sequence[int] | None:
    """Of what the function gives; None: torch has to say."""
    if func in (torch.randn, torch.rand) and args:
        return args if isinstance(args[0], int) else args[0]
    if func is torch.arange and all(isinstance(each, int) for each in args):
        first, end, step = (0, args[0], 1) if len(args) == 1 else (*args, 1)[:3]
        return (-((first - end) // step),) if step > 0 and end >= first else None
    if func is torch.cartesian_prod and len(args) > 1:
        return math.prod(map(len, args)), len(args)
    if func in (torch.cat, torch.stack):
        return _joined([tensor.shape for tensor in args[0]], args[1:], kwargs, is_stacked=func is torch.stack)
    if func is torch.eye and len(args) == 1 and "m" not in kwargs:
        return args[0], args[0]
    if func is F.interpolate and len(args) == 1 and isinstance(size := kwargs.get("size"), tuple):
        return *args[0].shape[:2], *size
    if func in _BY_ELEMENT:
        tensors = [value for value in (*args, *kwargs.values()) if isinstance(value, Tensor)]
        if all(tensor.is_meta for tensor in tensors):
            return _broadcast([tensor.shape for tensor in tensors])
    return None


def _broadcast(shapes: list[torch.Size]) -> Sequence[int] | None:
    """`torch.broadcast_shapes`, which imports sympy."""
    sizes = [{*column} - {1} for column in zip_longest(*map(reversed, shapes), fillvalue=1)]
    return (
        None if any(len(found) > 1 for found in sizes) else [*reversed([(*found, 1)[0] for found in sizes])]
    )


def _joined(
    shapes: list[torch.Size], rest: Sequence[Any], kwargs: dict[str, Any], *, is_stacked: bool
) -> Sequence[int] | None:
    """Of tensors of one shape, but for the axis along which they are joined."""
    axis = kwargs.get("dim", rest[0] if rest else 0)
    joined = list(shapes[0])
    axis += (len(joined) + is_stacked) * (axis < 0)
    if is_stacked:
        return None if len(set(shapes)) > 1 else [*joined[:axis], len(shapes), *joined[axis:]]
    if len({(*shape[:axis], *shape[axis + 1 :]) for shape in shapes}) > 1:
        return None
    joined[axis] = sum(shape[axis] for shape in shapes)
    return joined
