"""Headers of safetensors files: which tensors they hold, of what type and shape.

Importable without torch, and without the format's own library, which loads whole tensors to say so.
"""

import math
import struct
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

from drpruning.common.errors import BadInput
from drpruning.common.files import parse_json, unreadable

BYTES = {"F64": 8, "F32": 4, "F16": 2, "BF16": 2}
"""Types of plain weights, and bytes per element."""
LARGEST_HEADER = 100_000_000
"""Bytes of a safetensors header, at most (as the format's own library has it)."""
CHUNK = 1 << 20
"""Bytes of a tensor that are read at once."""


class StoredTensor(NamedTuple):
    """A tensor in a safetensors file; it lies from byte `begin` up to `end`."""

    name: str
    file: Path
    dtype: str
    shape: list[int]
    begin: int
    end: int


class Header(NamedTuple):
    """What a safetensors file says of its content.

    Attributes:
        tensors: In no order.
        metadata: Texts by name, which whoever wrote the file has put there.
    """

    tensors: list[StoredTensor]
    metadata: Mapping[str, str]


def read_header(file: Path, field: str) -> Header:
    """Read the header of a safetensors file that is as long as it says.

    Args:
        file: The file.
        field: What named the model, for the message.

    Raises:
        BadInput: It cannot be read, or is not complete.
    """
    try:
        size = file.stat().st_size
        with file.open("rb") as stream:
            (length,) = struct.unpack("<Q", stream.read(8))
            if length > LARGEST_HEADER:
                raise ValueError
            content = parse_json(stream.read(length))
        metadata = content.pop("__metadata__", None) or {}
        data = 8 + length
        tensors = [
            StoredTensor(name, file, entry["dtype"], list(entry["shape"]), data + begin, data + end)
            for name, entry in content.items()
            for begin, end in [entry["data_offsets"]]
        ]
        complete = size == _end(tensors, data) and isinstance(metadata, dict)
    except OSError as error:
        raise unreadable(f"{field}: {file}", error) from None
    except (ValueError, KeyError, TypeError, AttributeError, IndexError, struct.error):
        complete = False
    if not complete:
        raise BadInput(f"{field}: {file} is not a complete safetensors file; fetch it again")
    return Header(tensors, metadata)


def _end(tensors: list[StoredTensor], first: int) -> int:
    """Where the last tensor ends; they lie one after the other from the byte `first` on.

    Raises:
        ValueError: There is a gap or an overlap, or a tensor has not the bytes of its shape.
    """
    end = first
    for tensor in sorted(tensors, key=lambda tensor: (tensor.begin, tensor.end)):
        size = BYTES.get(tensor.dtype)
        fits = size is None or math.prod(tensor.shape) * size == tensor.end - tensor.begin
        if tensor.begin != end or not fits:
            raise ValueError
        end = tensor.end
    return end


def same_bytes(one: StoredTensor, other: StoredTensor, field: str) -> bool:
    """Whether two tensors are stored as the same bytes; read up to the first that differs.

    Args:
        one: A tensor.
        other: Another.
        field: What named the model, for the message.

    Raises:
        BadInput: A file cannot be read.
    """
    left = one.end - one.begin
    if one.dtype != other.dtype or left != other.end - other.begin:
        return False
    try:
        with one.file.open("rb") as first, other.file.open("rb") as second:
            first.seek(one.begin)
            second.seek(other.begin)
            while left > 0:
                chunk = first.read(min(left, CHUNK))
                if not chunk or chunk != second.read(len(chunk)):
                    return False
                left -= len(chunk)
    except OSError as error:
        raise unreadable(f"{field}: {one.file}", error) from None
    return True
