"""What may stand in a JSON file."""

from __future__ import annotations

import math
from typing import Any


def to_json_types(value: Any) -> Any:
    """`value` (JSON types) with null for what is not finite: JSON has no NaN, and strict readers refuse such a file."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, dict):
        return {key: to_json_types(each) for key, each in value.items()}
    if isinstance(value, (list, tuple)):
        return [to_json_types(each) for each in value]
    return value
