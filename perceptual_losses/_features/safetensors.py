"""A reader of the safetensors format, for files of weights."""

from __future__ import annotations

import json
import os
from pathlib import Path

import torch
from torch import Tensor

_DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}


def read(path: str | os.PathLike[str]) -> dict[str, Tensor]:
    """The tensors of a file by name: a length, as much JSON, and the values at its offsets.

    Raises:
        ValueError, KeyError, RuntimeError: the file is broken or has another format.
    """
    content = Path(path).read_bytes()
    begin = 8 + int.from_bytes(content[:8], "little")
    header = json.loads(content[8:begin])
    header.pop("__metadata__", None)
    # A copy that may be written to, as torch wants it.
    values = torch.frombuffer(bytearray(content[begin:]), dtype=torch.uint8)
    found = {}
    for name, entry in header.items():
        first, last = entry["data_offsets"]
        # Copied, for an offset need not be a multiple of the dtype's size.
        part = values[first:last].clone().view(_DTYPES[entry["dtype"]])
        found[name] = part.reshape(entry["shape"])
    return found
