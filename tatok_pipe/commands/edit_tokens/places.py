"""That what is made of a dataset goes somewhere else."""

from __future__ import annotations

from tatok_pipe import storage
from tatok_pipe.errors import UserError


def check_apart(url: str, output_url: str) -> None:
    """Raise UserError where the output would be the dataset itself, or among its files."""
    dataset, output = storage.canonical_url(url).rstrip("/"), storage.canonical_url(output_url).rstrip("/")
    if output == dataset:
        raise UserError(f"output.url={storage.redact(output_url)}: is input.url; give another one")
    if output.startswith(dataset + "/"):
        raise UserError(
            f"output.url={storage.redact(output_url)}: is inside input.url={storage.redact(url)}, a dataset, which has "
            "files of its own alone; give another one"
        )
