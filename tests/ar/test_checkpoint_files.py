"""A checkpoint that somebody else has written: nothing in it is run."""

from __future__ import annotations

import hashlib
import io
import json
import os
import pickle
from pathlib import Path
from typing import Any

import pytest
import torch

from tatok_pipe.ar.checkpoint_files import LoadPlanner, Reader
from tatok_pipe.errors import UserError
from tatok_pipe.training.checkpoint_folder import fetched
from tests.ar.trainings import load, make_trainer, save_part


class Payload:
    """Makes a folder where it is unpickled."""

    def __init__(self, path: Path) -> None:
        self._path = str(path)

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (self._path,)


def sign(folder: Path) -> None:
    """Make the manifest say that the folder is whole, as who can write there can."""
    path = folder / "rank-0.json"
    manifest = json.loads(path.read_text())
    del manifest["sha256"]
    for name, told in manifest["files"].items():
        data = (folder / name).read_bytes()
        told |= {"bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}
    digest = hashlib.sha256(json.dumps(manifest).encode()).hexdigest()
    path.write_text(json.dumps(manifest | {"sha256": digest}))


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    folder = tmp_path / "step-000000001-00000000"
    folder.mkdir()
    save_part(folder, make_trainer(), {})
    return folder


def test_a_payload_in_the_metadata_is_not_run(checkpoint: Path, tmp_path: Path) -> None:
    made = tmp_path / "made"
    pickle.loads(pickle.dumps(Payload(made)))
    assert made.exists()  # so it would be
    made.rmdir()
    (checkpoint / ".metadata").write_bytes(pickle.dumps(Payload(made)))
    sign(checkpoint)
    with (
        fetched(str(checkpoint), tmp_path / "copy") as folder,
        pytest.raises(UserError, match="is no checkpoint of a training: posix.mkdir"),
    ):
        load(folder, make_trainer())
    assert not made.exists()


def test_a_payload_among_the_values_is_not_run(tmp_path: Path) -> None:
    made = tmp_path / "made"
    value = io.BytesIO()
    torch.save(Payload(made), value)
    value.seek(0)
    with pytest.raises(pickle.UnpicklingError):
        LoadPlanner().load_bytes(None, value)  # pyright: ignore[reportArgumentType]
    assert not made.exists()


@pytest.mark.parametrize("name", ["builtins.eval", "os.system", "torch.load", "torch.hub.load"])
def test_nothing_but_descriptions_of_tensors_is_named(name: str, tmp_path: Path) -> None:
    module, _, function = name.rpartition(".")
    (tmp_path / ".metadata").write_bytes(b"c" + f"{module}\n{function}\n.".encode())
    with pytest.raises(pickle.UnpicklingError, match=name):
        Reader(tmp_path).read_metadata()
