"""Mends what Triton's interpreter does otherwise than a device, where it is switched on."""

import torch
import triton.language as tl
from triton.runtime.interpreter import InterpreterBuilder, TensorHandle

_splat = InterpreterBuilder.create_splat
_truncate = InterpreterBuilder.create_fp_trunc


def _splat_of_comparisons(self, kind, value):
    """Triton 3.9's makes integers of them, and then refuses these as masks."""
    spread = _splat(self, kind, value)
    if value.data.dtype != bool:
        return spread
    return TensorHandle(spread.data.astype(bool), spread.dtype)


def _round_to_bfloat16(self, value, kind):
    """It cuts digits off, which is twice the error."""
    if (value.dtype.scalar, kind.scalar) != (tl.float32, tl.bfloat16):
        return _truncate(self, value, kind)
    bits = torch.from_numpy(value.data.copy()).bfloat16().view(torch.uint16)
    return TensorHandle(bits.numpy(), tl.bfloat16)


InterpreterBuilder.create_splat = _splat_of_comparisons
InterpreterBuilder.create_fp_trunc = _round_to_bfloat16
