"""Rows by what is in their columns: `label=3 and num_tokens < 40` as an expression of pyarrow, strictly read.

    either := both ("or" both)*        both := one ("and" one)*        one := "not" one | "(" either ")" | test
    test := column ("=" | "!=" | "<" | "<=" | ">" | ">=") value | column "in" "(" value ("," value)* ")"
          | column "is" ["not"] "null"
    value := number | 'text', in which a quote is written twice

A row without a value in a column is in no comparison, as in SQL.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from decimal import Decimal
from typing import Any

import numpy as np
import pyarrow as pa
from pyarrow import compute

pc: Any = compute  # its functions are made when it is imported, out of sight of type checkers

_TOKEN = re.compile(
    r"\s*(?:(?P<number>[+-]?(?:\d+\.?\d*|\.\d+)(?:[eE][+-]?\d+)?(?!\w))|(?P<text>'(?:[^']|'')*'|\"(?:[^\"]|\"\")*\")"
    r"|(?P<word>[A-Za-z_]\w*)|(?P<sign><=|>=|==|!=|<>|[=<>(),]))"
)
_COMPARISONS: dict[str, Callable[[Any, Any], Any]] = {
    "=": lambda left, right: left == right,
    "==": lambda left, right: left == right,
    "!=": lambda left, right: left != right,
    "<>": lambda left, right: left != right,
    "<": lambda left, right: left < right,
    "<=": lambda left, right: left <= right,
    ">": lambda left, right: left > right,
    ">=": lambda left, right: left >= right,
}
KEYWORDS = ("and", "or", "not", "in", "is", "null")
_ROW = "row"
_MAX_DEPTH = 50


@dataclass(frozen=True)
class Where:
    """A condition on rows. Make one with `parse_where`."""

    text: str
    columns: tuple[str, ...]  # that it looks at
    expression: Any  # of pyarrow

    def rows(self, table: pa.Table) -> np.ndarray:
        """The numbers of the rows of `table`, which has `columns`, that it is true of, ascending."""
        numbered = table.select(list(self.columns)).append_column(_ROW, pa.array(np.arange(len(table))))
        return numbered.filter(self.expression)[_ROW].to_numpy()


def parse_where(text: str, schema: pa.Schema) -> Where:
    """The condition that `text` says of the columns of `schema` that hold one value a row. Raises ValueError, one line,
    for anything that is none."""
    parser = _Parser(text, schema)
    expression = parser.parse()
    return Where(text, tuple(dict.fromkeys(parser.columns)), expression)


class _Parser:
    def __init__(self, text: str, schema: pa.Schema) -> None:
        self._tokens = _split(text)
        self._schema = schema
        self._depth = 0
        self.columns: list[str] = []

    def parse(self) -> Any:
        expression = self._either()
        if self._tokens:
            raise ValueError(f"{self._tokens[0][1]!r} is too much; expected and, or, or the end")
        return expression

    def _either(self) -> Any:
        self._depth += 1
        if self._depth > _MAX_DEPTH:
            raise ValueError(f"more than {_MAX_DEPTH} parentheses within each other")
        expression = self._both()
        while self._take("or"):
            expression = expression | self._both()
        self._depth -= 1
        return expression

    def _both(self) -> Any:
        expression = self._one()
        while self._take("and"):
            expression = expression & self._one()
        return expression

    def _one(self) -> Any:
        negations = 0
        while self._take("not"):
            negations += 1
        if self._take("("):
            expression = self._either()
            self._expect(")")
        else:
            expression = self._test()
        return ~expression if negations % 2 else expression

    def _test(self) -> Any:
        kind, name = self._next("a column")
        if kind != "word" or name in KEYWORDS:
            raise ValueError(f"{name!r}: expected a column")
        column = self._column(name)
        if self._take("is"):
            is_valid = self._take("not")
            self._expect("null")
            return column.is_valid() if is_valid else column.is_null()
        if self._take("in"):
            self._expect("(")
            values = [self._value(name)]
            while self._take(","):
                values.append(self._value(name))
            self._expect(")")
            return column.isin(pa.array(values, self._type(name)))
        sign = self._next("a comparison")[1]
        if sign not in _COMPARISONS:
            raise ValueError(f"{sign!r} after {name}: expected =, !=, <, <=, >, >=, in (…) or is null")
        return _COMPARISONS[sign](column, pa.scalar(self._value(name), self._type(name)))

    def _column(self, name: str) -> Any:
        known = [each.name for each in self._schema if not _is_list(each.type)]
        if name not in self._schema.names:
            raise ValueError(f"no column {name}; expected one of {', '.join(known)}")
        if name not in known:
            raise ValueError(f"column {name} holds lists; expected one of {', '.join(known)}")
        self.columns.append(name)
        field = pc.field(name)
        return field.cast(self._type(name)) if self._type(name) != self._schema.field(name).type else field

    def _type(self, name: str) -> pa.DataType:
        """In which a column is compared: Arrow cannot compare halves, each of which is a float of 32 bits too."""
        data_type = self._schema.field(name).type
        return pa.float32() if pa.types.is_float16(data_type) else data_type

    def _value(self, name: str) -> Any:
        """A value of the type of the column."""
        kind, text = self._next("a value")
        data_type = self._schema.field(name).type
        if pa.types.is_string(data_type):
            if kind != "text":
                raise ValueError(f"{name} is text, not {text}; write '{text}'")
            return text[1:-1].replace(text[0] * 2, text[0])
        if pa.types.is_boolean(data_type):
            if text not in ("0", "1"):
                raise ValueError(f"{name} is 0 or 1, not {text}")
            return text == "1"
        if kind != "number":
            raise ValueError(f"{name} is a number, not {text}")
        if pa.types.is_floating(data_type):
            with np.errstate(over="ignore"):  # what is larger than all halves is infinite among them
                return float(np.float16(text)) if pa.types.is_float16(data_type) else float(text)
        # Not by way of a float, which has no numbers of more than 53 bits.
        number, bits = Decimal(text), data_type.bit_width
        lowest = 0 if pa.types.is_unsigned_integer(data_type) else -(2 ** (bits - 1))
        if not lowest <= number < lowest + 2**bits or number != number.to_integral_value():
            raise ValueError(f"{name} is a whole number of {bits} bits, not {text}")
        return int(number)

    def _next(self, expected: str) -> tuple[str, str]:
        if not self._tokens:
            raise ValueError(f"ends where {expected} is expected")
        return self._tokens.pop(0)

    def _take(self, text: str) -> bool:
        """Whether `text` is next, which is passed over then."""
        is_next = bool(self._tokens) and self._tokens[0][0] != "text" and self._tokens[0][1].lower() == text
        if is_next:
            del self._tokens[0]
        return is_next

    def _expect(self, text: str) -> None:
        if not self._take(text):
            found = repr(self._tokens[0][1]) if self._tokens else "the end"
            raise ValueError(f"{found}: expected {text!r}")


def _split(text: str) -> list[tuple[str, str]]:
    """(kind, text) of each word, sign and value."""
    tokens, place = [], 0
    while text[place:].strip():
        match = _TOKEN.match(text, place)
        if match is None or match.lastgroup is None:
            raise ValueError(f"cannot be read from {text[place:].strip()[:20]!r} on")
        kind = match.lastgroup
        tokens.append((kind, match[kind]))
        place = match.end()
    return tokens


def is_column_name(name: str) -> bool:
    """Whether a condition can name a column so."""
    return re.fullmatch(r"[A-Za-z_]\w*", name) is not None and name.lower() not in (*KEYWORDS, _ROW)


def _is_list(data_type: pa.DataType) -> bool:
    return pa.types.is_list(data_type) or pa.types.is_fixed_size_list(data_type)
