"""`_dataset.json`: what a token dataset is: the settings of its tokens, and a description for people."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from tatok_pipe import storage
from tatok_pipe.errors import RefusedError, UserError
from tatok_pipe.storage.outputs import recognise
from tatok_pipe.tokens.layout import (
    CARD_FILE,
    DATA_DIRECTORY,
    DATASET_FILE,
    QUARANTINE_DIRECTORY,
    to_json_file,
)
from tatok_pipe.tokens.spec import FORMAT_VERSION, TokenSpec

# Without it Hugging Face `datasets` takes every Parquet file below the folder for data, the index among them.
_CARD = """---
configs:
- config_name: default
  data_files:
  - split: train
    path: data/*.parquet
---
A token dataset of tatok_pipe: one row per image, in data/. What the columns mean: docs/guide.md of tatok_pipe.
"""


def create_or_check(url: str, spec: TokenSpec, description: Mapping[str, Any]) -> None:
    """Begin a dataset at `url`, or make sure that the one there was made with the same `spec`.

    `description` (JSON types: tokenizer config, source spec, ...) is kept for people and is not compared. Of
    two runs that begin at the same time one creates the dataset and the other is checked against it. Raises
    RefusedError where the spec differs, UserError where something else is there.
    """
    if not storage.publish_bytes(
        _dataset_json(spec, description), storage.join(url, DATASET_FILE), exclusive=True
    ):
        check_spec(url, spec)
        found, earlier = read_dataset_file(url)
        if len(spec.class_names) > len(found.class_names):  # classes have come
            storage.publish_bytes(
                _dataset_json(spec, earlier), storage.join(url, DATASET_FILE), exclusive=False
            )
    storage.publish_bytes(_CARD.encode(), storage.join(url, CARD_FILE), exclusive=True)


def describe(url: str, spec: TokenSpec, description: Mapping[str, Any]) -> None:
    """Have `_dataset.json` of a dataset without shards tell of this run, not of one before that came to nothing."""
    if read_dataset_file(url)[1] != description:
        storage.publish_bytes(
            _dataset_json(spec, description), storage.join(url, DATASET_FILE), exclusive=False
        )


def _dataset_json(spec: TokenSpec, description: Mapping[str, Any]) -> bytes:
    return to_json_file({"format": FORMAT_VERSION, "spec": spec.to_json(), "description": dict(description)})


def check_spec(url: str, spec: TokenSpec) -> None:
    """Raise RefusedError where the dataset at `url` was made with another spec."""
    found, _ = read_dataset_file(url)
    differences = found.differences(spec)
    if differences:
        earlier = (
            ". Tokens of a tokenizer that came with an earlier tatok_pipe go on with that version"
            if found.tokenizer_fingerprint != spec.tokenizer_fingerprint
            else ""
        )
        raise RefusedError(
            f"{storage.redact(url)}: holds tokens of tokenizer {found.tokenizer_fingerprint} with DTF "
            f"{found.dtf}; this run has tokenizer {spec.tokenizer_fingerprint} with DTF "
            f"{spec.dtf}. Give another output.url, or the checkpoint and settings of the dataset "
            f"(its {'; its '.join(differences)}){earlier}"
        )


class BrokenDatasetFile(UserError):
    """`_dataset.json` is there, and does not say what it should."""

    reason = ""  # without the place and what to do


def read_dataset_file(url: str) -> tuple[TokenSpec, dict[str, Any]]:
    """(spec, description) in `_dataset.json`. Raises UserError where it is missing or of another version,
    BrokenDatasetFile where it is neither."""
    file_url = storage.join(url, DATASET_FILE)
    try:
        content = json.loads(storage.read_bytes(file_url))
    except (FileNotFoundError, NotADirectoryError) as error:
        raise UserError(
            f"{storage.redact(url)}: {_tell_what_is_there(url)}; give the output.url of a tokenize_corpus run"
        ) from error
    except ValueError as error:
        raise _broken(file_url, error) from error
    if not isinstance(content, dict) or "format" not in content:
        raise _broken(file_url, "no format version in it")
    version = content["format"]
    if version != FORMAT_VERSION:
        raise UserError(
            f"{storage.redact(file_url)}: token format version {version}, this program reads version "
            f"{FORMAT_VERSION}; use the program that wrote the dataset, or give another output.url"
        )
    try:
        description = content["description"]
        if not isinstance(description, dict):
            raise TypeError("its description is no object")
        return TokenSpec.from_json(content["spec"]), description
    except (KeyError, TypeError, ValueError) as error:
        raise _broken(file_url, f"{type(error).__name__}: {error}") from error


def _broken(file_url: str, reason: object) -> BrokenDatasetFile:
    told = f"is broken ({' '.join(str(reason).split())})"
    error = BrokenDatasetFile(
        f"{storage.redact(file_url)}: {told}; inspect_tokens --repair removes it, and the tokenize_corpus command that "
        "made the dataset writes it anew"
    )
    error.reason = told  # an attribute, so that actors can send it
    return error


def _tell_what_is_there(url: str) -> str:
    """Of a place without DATASET_FILE, for a user who expects a token dataset."""
    nothing_known = f"no {DATASET_FILE} there, so it is no token dataset"
    folder, _, name = url.rstrip("/").rpartition("/")
    try:
        if what := recognise(url):
            return f"{what}, expected a token dataset"
        is_part = name in (DATA_DIRECTORY, QUARANTINE_DIRECTORY)
        if is_part and storage.exists(storage.join(folder or ".", DATASET_FILE)):
            return f"a part of the token dataset {storage.redact(folder or '.')}, expected all of it"
        if url.endswith(".tar") or any(name.endswith(".tar") for name in storage.list_files(url)):
            return f"image shards, expected a token dataset, which has {DATASET_FILE}"
    except OSError:  # a store that lets nobody look around
        return nothing_known
    return nothing_known
