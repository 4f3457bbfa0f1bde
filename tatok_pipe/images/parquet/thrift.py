"""Thrift's compact protocol, as far as Parquet's footer and page headers need it: structs of integers, nested.

https://github.com/apache/thrift/blob/master/doc/specs/thrift-compact-protocol.md
"""

from __future__ import annotations

from typing import Any

_MAX_DEPTH = 16


def read_struct(data: bytes) -> tuple[dict[int, Any], int]:
    """The struct that `data` begins with, and its bytes: field number -> integer, bool, struct, or list of
    these; None for texts, floats and maps, which are passed over.

    Raises IndexError where it does not end within `data`, ValueError where it is no such struct.
    """
    reader = _Reader(data)
    return reader.read_struct(0), reader.position


class _Reader:
    def __init__(self, data: bytes) -> None:
        self._data = data
        self.position = 0

    def read_struct(self, depth: int) -> dict[int, Any]:
        fields: dict[int, Any] = {}
        number = 0
        while head := self._byte():
            delta, kind = head >> 4, head & 15
            number = number + delta if delta else self._zigzag()
            # In a field, unlike in a list, a bool is in the head.
            fields[number] = kind == 1 if kind in (1, 2) else self._value(kind, depth + 1)
        return fields

    def _value(self, kind: int, depth: int) -> Any:
        if depth > _MAX_DEPTH:
            raise ValueError(f"nested more than {_MAX_DEPTH} deep")
        if kind in (4, 5, 6):
            return self._zigzag()
        if kind == 8:
            return self._skip(self._varint())
        if kind == 12:
            return self.read_struct(depth)
        if kind in (9, 10):
            head = self._byte()
            num_items = self._varint() if head >> 4 == 15 else head >> 4
            return [self._value(head & 15, depth + 1) for _ in range(num_items)]
        if kind == 11:
            num_items = self._varint()
            kinds = self._byte() if num_items else 0
            for _ in range(num_items):
                self._value(kinds >> 4, depth + 1)
                self._value(kinds & 15, depth + 1)
            return None
        if kind in (1, 2, 3):
            return self._byte()
        if kind == 7:
            return self._skip(8)
        raise ValueError(f"byte {self.position}: no such type, {kind}")

    def _byte(self) -> int:
        value = self._data[self.position]
        self.position += 1
        return value

    def _varint(self) -> int:
        value = shift = 0
        while shift < 70:
            byte = self._byte()
            value |= (byte & 127) << shift
            if byte < 128:
                return value
            shift += 7
        raise ValueError(f"byte {self.position}: a number of more than 64 bits")

    def _zigzag(self) -> int:
        value = self._varint()
        return (value >> 1) ^ -(value & 1)

    def _skip(self, num_bytes: int) -> None:
        if self.position + num_bytes > len(self._data):
            raise IndexError(f"{num_bytes} bytes at byte {self.position} of {len(self._data)}")
        self.position += num_bytes
