"""What a part came to: one small JSON beside its outputs, written last, which makes it whole.

<url>/parts/<kind>-<digest>/result.json
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field
from typing import Any

from tatok_pipe import storage
from tatok_pipe.commands.study.design import Part
from tatok_pipe.errors import UserError
from tatok_pipe.evaluation.statistics import Interval
from tatok_pipe.storage.json_types import to_json_types

PARTS = "parts"
RESULT = "result.json"


@dataclass(frozen=True)
class Result:
    """`figures` are the same whenever the part is made again; `seconds` are what it took, or measured of time."""

    figures: dict[str, Any]
    seconds: dict[str, float] = field(default_factory=dict)


def part_folder(url: str, part_id: str) -> str:
    return storage.join(url, PARTS, part_id)


def write_result(url: str, part: Part, result: Result) -> None:
    """Make the part whole. Of two of the same part the first stays, and with it what it measured of time."""
    told = {"kind": part.kind, "label": part.label, "settings": part.settings, "inputs": part.inputs}
    text = json.dumps(to_json_types(told | asdict(result)), indent=1, sort_keys=True) + "\n"
    storage.publish_bytes(text.encode(), storage.join(part_folder(url, part.id), RESULT), exclusive=True)


def read_result(url: str, part_id: str) -> Result | None:
    """None where the part is not whole. Raises UserError where its file cannot be read."""
    place = storage.join(part_folder(url, part_id), RESULT)
    try:
        content = json.loads(storage.read_bytes(place))
        return Result(dict(content["figures"]), dict(content["seconds"]))
    except FileNotFoundError:
        return None
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(f"{storage.redact(place)}: is damaged ({error}); remove its folder") from None


def need_result(url: str, part_id: str) -> Result:
    """Of a part that others depend on. Raises UserError where it is gone."""
    found = read_result(url, part_id)
    if found is None:
        raise UserError(
            f"{storage.redact(part_folder(url, part_id))}: is not there any more; run the same command again"
        )
    return found


def interval_figures(interval: Interval) -> dict[str, float]:
    return {"value": interval.value, "low": interval.low, "high": interval.high}


def tokenizer_url(url: str, part_id: str) -> str:
    """Where the tokenizer of a part lies: in it, or where it was before the study."""
    return need_result(url, part_id).figures["checkpoint"] or part_folder(url, part_id)
