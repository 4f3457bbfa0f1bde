"""What the entries leave behind, recognised by the one file that no other folder has: for those who give a folder where
another is expected.
"""

from __future__ import annotations

from dataclasses import dataclass

from tatok_pipe import storage


@dataclass(frozen=True)
class Output:
    """A folder that an entry writes."""

    mark: str  # the file that it is known by
    name: str  # with its article, for a user


OUTPUTS = (
    Output("_dataset.json", "a token dataset"),
    Output("_generation.json", "an output of generate"),
    Output("generator.json", "a generator"),
    Output("tokenizer.json", "a tokenizer"),
    Output("generator/generator.json", "an output of train_ar"),
    Output("tokenizer/tokenizer.json", "an output of train_tokenizer"),
)


def recognise(url: str) -> str:
    """What is at `url`, as "a token dataset (it has _dataset.json)"; empty where no entry left it. Some requests."""
    found = (each for each in OUTPUTS if storage.exists(storage.join(url, each.mark)))
    return next((f"{each.name} (it has {each.mark})" for each in found), "")
