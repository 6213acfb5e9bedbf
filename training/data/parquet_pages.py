"""Sizes of the pages of a Parquet file, from their headers: a page is unpacked completely to read one value."""

from collections.abc import Iterator
from typing import BinaryIO

# Fields of a page header (parquet.thrift), and types of Thrift's compact protocol.
UNPACKED_SIZE, PACKED_SIZE = 2, 3
TRUE, FALSE, BYTE, DOUBLE, BINARY, LIST, STRUCT = 1, 2, 3, 7, 8, 9, 12


class PageError(ValueError):
    """Damaged header of a page."""


def page_sizes(file: BinaryIO, start: int, size: int) -> Iterator[tuple[int, int]]:
    """Yield the bytes of each page of a column chunk, unpacked and in the file.

    Args:
        file: The Parquet file.
        start: Offset of the first page of the chunk.
        size: Bytes of the chunk in the file.

    Raises:
        PageError: If a header is damaged.
    """
    file.seek(start)
    while file.tell() < start + size:
        try:
            header = _read_struct(file)
            unpacked, packed = header[UNPACKED_SIZE], header[PACKED_SIZE]
        except (IndexError, KeyError, OverflowError, RecursionError):
            raise PageError("a page header is damaged") from None
        if unpacked < 0 or packed < 0:
            raise PageError("a page header has a negative size")
        yield unpacked, packed
        file.seek(packed, 1)


def _read_struct(file: BinaryIO) -> dict[int, object]:
    fields, number = {}, 0
    while head := file.read(1)[0]:
        number = number + (head >> 4) if head >> 4 else _read_integer(file)
        fields[number] = _read_value(file, head & 15)
    return fields


def _read_value(file: BinaryIO, kind: int) -> object:
    """Return a number or struct; skip what else there is."""
    if kind == STRUCT:
        return _read_struct(file)
    if kind in (BYTE, DOUBLE):
        file.seek(1 if kind == BYTE else 8, 1)
    elif kind == BINARY:
        file.seek(_read_varint(file), 1)
    elif kind >= LIST:
        raise KeyError(kind)  # a page header has no list, set or map
    elif kind not in (TRUE, FALSE):
        return _read_integer(file)
    return None


def _read_varint(file: BinaryIO) -> int:
    value, shift = 0, 0
    while (byte := file.read(1)[0]) & 0x80:
        value, shift = value | (byte & 0x7F) << shift, shift + 7
    return value | byte << shift


def _read_integer(file: BinaryIO) -> int:
    """Read a signed integer, in zigzag encoding."""
    value = _read_varint(file)
    return value >> 1 ^ -(value & 1)
