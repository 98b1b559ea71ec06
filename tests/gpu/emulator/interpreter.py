"""Mends what Triton's interpreter does otherwise than a device, or for most of its time, where it
is switched on.
"""

import dataclasses

import numpy as np
import torch
import triton.language as tl
from triton.language import core
from triton.language.semantic import TritonSemantic
from triton.runtime import interpreter
from triton.runtime.interpreter import GridExecutor, InterpreterBuilder, ReduceOps, TensorHandle

_splat = InterpreterBuilder.create_splat
_truncate = InterpreterBuilder.create_fp_trunc
_extend = InterpreterBuilder.create_fp_ext
_patch = interpreter._patch_lang
_run = GridExecutor.__call__
_type_of_numpy = interpreter._get_np_dtype
_attribute = core.tuple.__getattr__
_describe_block = core.block_type.__init__
_describe_tensor = core.tensor.__init__
_to_one_type = TritonSemantic.binary_op_type_checking_impl
_to_one_shape = TritonSemantic.broadcast_impl_value
_patched: set[str] = set()
_numpy_types: dict[str, np.dtype] = {}
_block_types: dict[tuple, dict] = {}
_shapes_of_blocks: dict[tuple, core.tuple] = {}
_shapes: dict[str, tuple] = {}
_constants: dict[tuple, core.tensor] = {}


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


def _of_bfloat16(self, value, kind):
    """It makes other numbers of those below the normal ones."""
    if (value.dtype.scalar, kind.scalar) != (tl.bfloat16, tl.float32):
        return _extend(self, value, kind)
    bits = np.asarray(value.data.astype(np.uint32) << 16)
    return TensorHandle(bits.view(np.float32), tl.float32)


def _fused(self, x, y, z):
    """It rounds the product."""
    product = x.data.astype(np.float64) * y.data
    return TensorHandle((product + z.data).astype(z.data.dtype), z.dtype.scalar)


def _reduced_by_halves(self, values):
    """As threads do. It takes one value after the other, each through all operations in Python."""
    assert (self.axis, self.keep_dims) == (0, False)
    arrays = [value.handle.data for value in values]
    while len(arrays[0]) > 1:
        half = len(arrays[0]) // 2
        assert 2 * half == len(arrays[0])
        pairs = [array[part] for part in (slice(half), slice(half, None)) for array in arrays]
        kinds = [value.dtype for value in values] * 2
        found = self.combine_fn.fn(*map(self.to_tensor, pairs, kinds))
        arrays = [part.handle.data for part in (found if isinstance(found, tuple) else (found,))]
    return [
        self.to_tensor(array[0], value.dtype) for array, value in zip(arrays, values, strict=True)
    ]


def _sum_by_halves(self, value):
    return _reduced_by_halves(self, (value,))[0]


def _patch_once(function):
    """The language that a module sees, with the first call in a launch and not with each."""
    if function.__module__ in _patched:
        return interpreter._LangPatchScope()
    _patched.add(function.__module__)
    return _patch(function)


def _run_patched(self, *args, **kwargs):
    _patched.clear()
    _run(self, *args, **kwargs)


def _known_type_of_numpy(kind):
    """It makes a table of them each time."""
    kind = kind.scalar if kind.is_block() else kind
    if kind.is_ptr():
        return _type_of_numpy(kind)
    if kind.name not in _numpy_types:
        _numpy_types[kind.name] = _type_of_numpy(kind)
    return _numpy_types[kind.name]


def _tuple(self, values, kind=None):
    """Without the type of its values, until somebody asks for it."""
    self.values = list(values)
    if kind is not None:
        self.type = kind if isinstance(kind, core.tuple_type) else core.tuple_type(kind)


def _attribute_of_tuple(self, name):
    if name == "type":
        self.type = core._type_for_tuple_values(self.values)
        return self.type
    return _attribute(self, name)


def _known_block_type(self, element_ty, shape):
    sizes = [size if type(size) is int else core._unwrap_if_constexpr(size) for size in shape]
    key = element_ty.name, *sizes
    if key not in _block_types:
        _describe_block(self, element_ty, shape)
        # The same object for the same shape.
        self.shape = _shapes_of_blocks.setdefault(tuple(sizes), self.shape)
        _block_types[key] = self.__dict__.copy()
    self.__dict__.update(_block_types[key])


def _tensor(self, handle, kind):
    if kind.name not in _shapes:
        _describe_tensor(self, handle, kind)
        _shapes[kind.name] = self.shape, self.numel
    self.handle, self.type, self.dtype = handle, kind, kind.scalar
    self.shape, self.numel = _shapes[kind.name]


def _of_one_type(self, lhs, rhs, *how, **options):
    """At once where they are, and with numbers that have met such a tensor. Halves are not of one:
    they are divided as float32.
    """
    kinds = type(lhs), type(rhs)
    if kinds == (core.tensor, core.tensor):
        if lhs.dtype.name == rhs.dtype.name and lhs.dtype.name in ("fp32", "int32"):
            return self.broadcast_impl_value(lhs, rhs)
    elif kinds[0] is core.tensor and kinds[1] in (int, float):
        # Zeros of both signs are equal.
        key = repr(rhs), lhs.type.name, how, *options.items()
        if key not in _constants:
            found = _to_one_type(self, lhs, rhs, *how, **options)
            if found[0] is not lhs:
                return found
            found[1].handle.data.flags.writeable = False
            _constants[key] = found[1]
        return lhs, _constants[key]
    return _to_one_type(self, lhs, rhs, *how, **options)


def _of_one_shape(self, lhs, rhs):
    """At once where they are."""
    shapes = [kind.shape if kind.is_block() else None for kind in (lhs.type, rhs.type)]
    return (lhs, rhs) if shapes[0] is shapes[1] else _to_one_shape(self, lhs, rhs)


InterpreterBuilder.create_splat = _splat_of_comparisons
InterpreterBuilder.create_fp_trunc = _round_to_bfloat16
InterpreterBuilder.create_fp_ext = _of_bfloat16
InterpreterBuilder.create_fma = _fused
ReduceOps.generic_reduce = _reduced_by_halves
ReduceOps.sum = _sum_by_halves
interpreter._patch_lang = _patch_once
GridExecutor.__call__ = _run_patched
# More than half of the time goes into what it describes anew of each value.
interpreter._get_np_dtype = _known_type_of_numpy
core.tuple.__init__ = _tuple
core.tuple.__getattr__ = _attribute_of_tuple
core.block_type.__init__ = _known_block_type
core.tensor.__init__ = _tensor
# It compares sizes of numbers, which the interpreter itself has chosen.
TensorHandle.__post_init__ = lambda self: None
TritonSemantic.binary_op_type_checking_impl = _of_one_type
TritonSemantic.broadcast_impl_value = _of_one_shape
# Eight operations for each sum and product of integers. Where one overflows, an address is wrong,
# as the check of offsets beyond 32 bits sees.
_builder = interpreter.interpreter_builder
_builder.options = dataclasses.replace(_builder.options, sanitize_overflow=False)
