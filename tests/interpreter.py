"""Mends what Triton's interpreter does otherwise than a device, or for most of its time, where it
is switched on.
"""

import dataclasses

import numpy as np
import torch
import triton.language as tl
from triton.runtime import interpreter
from triton.runtime.interpreter import GridExecutor, InterpreterBuilder, TensorHandle

_splat = InterpreterBuilder.create_splat
_truncate = InterpreterBuilder.create_fp_trunc
_patch = interpreter._patch_lang
_run = GridExecutor.__call__
_patched: set[str] = set()


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


def _fused(self, x, y, z):
    """It rounds the product."""
    product = x.data.astype(np.float64) * y.data
    return TensorHandle((product + z.data).astype(z.data.dtype), z.dtype.scalar)


def _patch_once(function):
    """The language that a module sees, with the first call in a launch and not with each."""
    if function.__module__ in _patched:
        return interpreter._LangPatchScope()
    _patched.add(function.__module__)
    return _patch(function)


def _run_patched(self, *args, **kwargs):
    _patched.clear()
    _run(self, *args, **kwargs)


InterpreterBuilder.create_splat = _splat_of_comparisons
InterpreterBuilder.create_fp_trunc = _round_to_bfloat16
InterpreterBuilder.create_fma = _fused
interpreter._patch_lang = _patch_once
GridExecutor.__call__ = _run_patched
# Eight operations for each sum and product of integers. Where one overflows, an address is wrong,
# as the check of offsets beyond 32 bits sees.
_builder = interpreter.interpreter_builder
_builder.options = dataclasses.replace(_builder.options, sanitize_overflow=False)
