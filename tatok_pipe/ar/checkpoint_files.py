"""How the tensors of a training's checkpoint are written and read: PyTorch's distributed checkpoints, with two changes.

Whoever can write to a training's output must not be able to run code in its workers. Of itself
`torch.distributed.checkpoint` unpickles `.metadata`, and every value that is no tensor, without limits. Here the
metadata may name what describes tensors and nothing else, and values must pass PyTorch's weights-only unpickler.
"""

from __future__ import annotations

import io
import pickle
from typing import Any

import torch
from torch.distributed.checkpoint.default_planner import DefaultLoadPlanner
from torch.distributed.checkpoint.filesystem import FileSystemReader, FileSystemWriter
from torch.distributed.checkpoint.metadata import Metadata, StorageMeta
from torch.distributed.checkpoint.planner import ReadItem, SavePlan, SavePlanner
from torch.distributed.checkpoint.storage import WriteResult
from torch.futures import Future

_NAMES = {
    "pathlib": {"PosixPath"},
    "pathlib._local": {"PosixPath"},  # where Python 3.13 has it
    "torch": {"Size"} | {name for name, value in vars(torch).items() if isinstance(value, torch.dtype)},
    "torch.distributed.checkpoint.filesystem": {"_StorageInfo"},
    "torch.distributed.checkpoint.metadata": {
        "BytesStorageMetadata",
        "ChunkStorageMetadata",
        "Metadata",
        "MetadataIndex",
        "StorageMeta",
        "TensorProperties",
        "TensorStorageMetadata",
        "_MEM_FORMAT_ENCODING",
    },
    "torch.serialization": {"_get_layout"},
}


class Writer(FileSystemWriter):
    """Tells what the system said where a file cannot be written; torch hides a full disk behind "unexpected pos"."""

    def write_data(self, plan: SavePlan, planner: SavePlanner) -> Future[list[WriteResult]]:
        try:
            return super().write_data(plan, planner)
        except RuntimeError as error:
            # Here, not where it arrives: other processes are told of an exception without its context.
            if isinstance(error.__context__, OSError):
                raise error.__context__ from None
            raise


class Reader(FileSystemReader):
    """Raises pickle.UnpicklingError where the metadata name anything but what describes tensors."""

    def read_metadata(self, *args: Any, **kwargs: Any) -> Metadata:
        path = self._get_metadata_path(kwargs.get("rank"))
        with self.fs.create_stream(path, "rb") as file:
            metadata: Metadata = _Unpickler(file).load()
        metadata.storage_meta = metadata.storage_meta or StorageMeta()
        metadata.storage_meta.load_id = self.load_id
        return metadata


class LoadPlanner(DefaultLoadPlanner):
    """Raises pickle.UnpicklingError for a value that PyTorch's weights-only unpickler does not take."""

    def load_bytes(self, read_item: ReadItem, value: io.BytesIO) -> None:
        torch.load(value, weights_only=True)  # then there is nothing in it that runs
        value.seek(0)
        super().load_bytes(read_item, value)


class _Unpickler(pickle.Unpickler):
    def find_class(self, module_name: str, global_name: str, /) -> Any:
        if global_name not in _NAMES.get(module_name, ()):
            raise pickle.UnpicklingError(f"{module_name}.{global_name}: nothing that describes tensors")
        return super().find_class(module_name, global_name)
