"""Runs on the CPU what Triton compiles for a GPU: all threads of a program, instruction by
instruction of its PTX.

What a GPU does not tell is an error here: an access to memory beyond all tensors or not aligned to
its size, one to shared memory that another thread may do in between the same two barriers, one to
tensors that no barrier parts from the counting of a program by another thread, and a branch that
threads take differently. Shared memory is NaN before it is written.
"""

import contextlib
import ctypes
import functools
import operator
import re
from unittest import mock

import numpy as np
import torch

from benchmarks.gpu import registers
from perceptual_losses import _evaluator
from perceptual_losses._ssim.gpu import backend as gpu
from perceptual_losses._ssim.gpu import launch as gpu_launch
from perceptual_losses._ssim.gpu import programs

KINDS = {
    **{f"u{bits}": np.dtype(f"u{bits // 8}") for bits in (8, 16, 32, 64)},
    **{f"b{bits}": np.dtype(f"u{bits // 8}") for bits in (8, 16, 32, 64)},
    **{f"s{bits}": np.dtype(f"i{bits // 8}") for bits in (8, 16, 32, 64)},
    **{"f16": np.dtype("f2"), "f32": np.dtype("f4"), "f64": np.dtype("f8"), "pred": np.dtype(bool)},
}
REGISTERS = {"%p": np.dtype(bool), "%rs": np.dtype("u2"), "%rd": np.dtype("u8")}
COMPARISONS = {
    **{"eq": operator.eq, "lt": operator.lt, "le": operator.le},
    **{"gt": operator.gt, "ge": operator.ge, "ne": lambda a, b: (a < b) | (a > b)},
    "nan": lambda a, b: np.isnan(a) | np.isnan(b),
    # True of NaN too.
    **{"neu": operator.ne, "leu": lambda a, b: ~(a > b), "ltu": lambda a, b: ~(a >= b)},
    **{"gtu": lambda a, b: ~(a <= b), "geu": lambda a, b: ~(a < b)},
}
MANY = -2


class Memory:
    """Places for the tensors' addresses."""

    def __init__(self, tensors):
        storages = {t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in tensors}
        self.starts = np.array(sorted(storages), np.uint64)
        self.bytes = [
            np.ctypeslib.as_array((ctypes.c_uint8 * storages[start]).from_address(start))
            for start in sorted(storages)
        ]

    def places(self, addresses, size):
        """Of each access the bytes of its tensor, the same one for all, and the first in there."""
        which = np.unique(np.searchsorted(self.starts, addresses, "right") - 1)
        assert len(which) == 1, f"accesses {addresses} in several tensors"
        assert which[0] >= 0, f"accesses {addresses} before all tensors"
        found = self.bytes[which[0]]
        offsets = (addresses - self.starts[which[0]]).astype(np.int64)
        assert offsets.max() + size <= len(found), f"{offsets.max()} of {len(found)} bytes"
        return found, offsets


class Shared:
    """Memory of a program, and between two barriers who has accessed which word."""

    def __init__(self, size):
        self.bytes = np.full(size, 0xFF, np.uint8)
        self.writer, self.reader = np.full((2, -(-size // 4)), -1)

    def barrier(self):
        self.writer[:] = self.reader[:] = -1

    def places(self, addresses, size):
        offsets = addresses.astype(np.int64)
        assert offsets.max() + size <= len(self.bytes), f"{offsets.max()} beyond the memory"
        return self.bytes, offsets

    def access(self, offsets, size, threads, *, write):
        for word in range(-(-size // 4)):
            at = offsets // 4 + word
            other = (self.writer[at] != -1) & (self.writer[at] != threads)
            if write:
                other |= (self.reader[at] != -1) & (self.reader[at] != threads)
            assert not other.any(), f"threads {threads[other]} race for words {at[other]}"
            marks = self.writer if write else self.reader
            before = marks[at]
            marks[at] = np.where((before == -1) | (before == threads), threads, MANY)
            marks[at[marks[at] != threads]] = MANY


def _split(operands):
    """At the commas outside of braces."""
    parts = re.findall(r"\{[^}]*\}|\[[^\]]*\]|[^,{}\[\]]+", operands)
    return [part.strip() for part in parts if part.strip()]


@functools.cache
def _type_of(register):
    return REGISTERS.get(re.match(r"%[a-z]+", register)[0], np.dtype("u4"))


@functools.cache
def _names(several):
    return [name.strip() for name in several.strip("{} ").split(",")]


@functools.cache
def _place(operand):
    base, _, offset = operand.strip("[] ").partition("+")
    return base.strip(), int(offset or 0)


@functools.lru_cache(maxsize=64)
def parsed(ptx):
    """Instructions, the labels among them, and the sizes of arrays in shared memory."""
    instructions, labels, arrays = [], {}, {}
    body = ptx[ptx.index("\n{") + 2 :]
    for line in body.splitlines():
        line = line.split("//")[0].strip()
        if re.fullmatch(r"\$\w+:", line):
            labels[line[:-1]] = len(instructions)
            continue
        declared = re.search(r"\.shared \.align 16 \.b32 (\w+)\[(\d+)\];", line)
        if declared:
            arrays[declared[1]] = 4 * int(declared[2])
            line = line.replace(declared[0], "").strip(" {}")
        if line.startswith(".section"):
            # What debuggers read.
            break
        for statement in map(str.strip, line.split(";")):
            if statement and statement[0] not in ".{}$":
                found = re.fullmatch(r"(?:@(!?)(%p\d+)\s+)?([a-z][\w.:]*)\s*(.*)", statement)
                negated, guard, opcode, operands = found.groups()
                instructions.append((guard, negated == "!", opcode.split("."), _split(operands)))
    return instructions, labels, arrays


class Program:
    """One program of a launch."""

    def __init__(self, compiled, arguments, memory, program, programs, threads):
        self.instructions, self.labels, arrays = parsed(compiled.asm["ptx"])
        self.memory, self.threads = memory, np.arange(threads)
        self.symbols, size = {"global_smem": 0}, compiled.metadata.shared
        self.symbols |= {"%tid.x": self.threads, "%ctaid.x": program, "%nctaid.x": programs}
        # A parameter's address is its number.
        name = compiled.metadata.name
        self.symbols |= {f"{name}_param_{number}": number for number in range(len(arguments))}
        for name, count in arrays.items():
            self.symbols[name] = -(-size // 16) * 16
            size = self.symbols[name] + count
        self.shared = Shared(size)
        self.registers, self.arguments, self.constants = {}, arguments, {}
        # Of the threads that were at the tensors since the last barrier, the only one that counts.
        self.accessed, self.counting = set(), None

    def get(self, operand, kind):
        dtype = KINDS[kind]
        if operand in self.registers:
            register = self.registers[operand]
            if register.dtype.itemsize > dtype.itemsize:
                register = register.astype(f"u{dtype.itemsize}")
            return register.view(dtype)
        constant = self.constants.get((operand, kind))
        if constant is None:
            constant = self.constants[operand, kind] = self._constant(operand, dtype)
        return constant

    def _constant(self, operand, dtype):
        if operand.startswith("0f"):
            return np.full(len(self.threads), int(operand[2:], 16), np.uint32).view(dtype)
        value = self.symbols[operand] if operand in self.symbols else int(operand, 0)
        return np.broadcast_to(np.asarray(value).astype(dtype), self.threads.shape)

    def _numbers(self, operand, kind):
        """Values as NumPy has them: those of bfloat16 as float32."""
        if kind == "bf16":
            return (self.get(operand, "b16").astype("u4") << np.uint32(16)).view("f4")
        return self.get(operand, kind)

    def put(self, register, value, mask):
        kind = _type_of(register)
        value = np.ascontiguousarray(value)
        if value.dtype.itemsize < kind.itemsize:
            # A load may extend what it loads.
            sign = "i" if value.dtype.kind == "i" else "u"
            value = value.astype(f"{sign}{kind.itemsize}")
        value = value if value.dtype == kind else value.view(kind)
        if mask is not None:
            before = self.registers.get(register, np.zeros(len(self.threads), kind))
            value = np.where(mask, value, before)
        self.registers[register] = value

    def run(self):
        position = 0
        with np.errstate(all="ignore"):
            while position is not None:
                instruction = self.instructions[position]
                try:
                    position = self._step(position + 1, *instruction)
                except Exception as error:
                    raise RuntimeError(f"{error}, at {instruction}") from error

    def _step(self, position, guard, negated, opcode, operands):
        """Returns which instruction is next, if any."""
        mask = None if guard is None else self.registers[guard] ^ negated
        name = opcode[0]
        if name == "ret":
            return None
        if name == "bra":
            taken = mask is None or mask.any()
            assert mask is None or mask.all() == taken, "threads part at a branch"
            return self.labels[operands[-1]] if taken else position
        if name == "bar":
            self.shared.barrier()
            self.accessed, self.counting = set(), None
        elif name in ("ld", "st"):
            self._access(opcode, operands, mask)
        elif name == "atom":
            assert opcode[1:] == ["global", "gpu", "acq_rel", "add", "u32"]
            target, place, more = operands
            (self.counting,) = self.threads[mask]
            self._access(["ld", "global", "u32"], [target, place], mask)
            self.put("%r_more", self.get(target, "u32") + self.get(more, "u32"), mask)
            self._access(["st", "global", "u32"], [place, "%r_more"], mask)
        elif name in ("ldmatrix", "stmatrix"):
            transposed = "trans" in opcode
            kind = [part for part in opcode[1:] if part != "trans"]
            assert kind[3] in ("x1", "x2", "x4")
            assert kind[:3] + kind[4:] == ["sync", "aligned", "m8n8", "shared", "b16"]
            self._access_matrices(operands, transposed, write=name == "stmatrix")
        elif name == "mov" and "{" in "".join(operands):
            self._repack(operands, mask)
        else:
            target, *sources = operands
            self.put(target, self._value(opcode, sources), mask)
        return position

    def _addresses(self, place, kind):
        base, offset = _place(place)
        return self.get(base, kind) + KINDS[kind].type(offset)

    def _access(self, opcode, operands, mask):
        kind, write = opcode[-1], opcode[0] == "st"
        size = KINDS[kind].itemsize
        place, several = operands if write else operands[::-1]
        registers = _names(several)
        if opcode[1] == "param":
            values = [self.arguments[number] for number in self._addresses(place, "u32")]
            if isinstance(values[0], float):
                values = np.array(values, np.float32)
            else:
                values = np.array(values, np.int64).astype(KINDS[kind])
            return self.put(registers[0], values, None)
        addresses = self._addresses(place, "u64" if opcode[1] == "global" else "u32")
        active = self.threads if mask is None else self.threads[mask]
        if not len(active):
            return None
        addresses, whole = addresses[active], size * len(registers)
        assert not (addresses % whole).any(), f"an access of {whole} bytes at {addresses}"
        space = self.memory if opcode[1] == "global" else self.shared
        if space is self.memory:
            self.accessed |= set(active)
            apart = self.counting is None or self.accessed == {self.counting}
            assert apart, f"{self.accessed} access memory while {self.counting} counts"
        data, offsets = space.places(addresses, whole)
        if space is self.shared:
            space.access(offsets, whole, active, write=write)
        places = offsets[:, None] + np.arange(whole)
        if write:
            values = np.stack([self.get(name, kind)[active] for name in registers], 1)
            values = np.ascontiguousarray(values).view(np.uint8)
            data[places] = values
            wrong = (data[places] != values).any(1)
            assert not wrong.any(), f"threads {active[wrong]} race to write {offsets[wrong]}"
            return None
        values = data[places].view(KINDS[kind].str.replace("i", "u").replace("f", "u"))
        for name, column in zip(registers, values.T, strict=True):
            found = np.zeros(len(self.threads), column.dtype)
            found[active] = column
            self.put(name, found, mask)
        return None

    def _access_matrices(self, operands, transposed, *, write):
        """Of each warp, 8x8 values in each register: a row of them, or a column, is in four
        threads, and where a row lies in another one's address.
        """

        def turned(values):
            values = values.view("u2").reshape(-1, 8, 8)
            return np.ascontiguousarray(values.swapaxes(1, 2) if transposed else values)

        place, several = operands if write else operands[::-1]
        addresses = self._addresses(place, "u32").reshape(-1, 32)
        for j, register in enumerate(_names(several)):
            rows = addresses[:, 8 * j : 8 * j + 8].reshape(-1)
            assert not (rows % 16).any(), f"rows of 16 bytes at {rows}"
            data, offsets = self.shared.places(rows, 16)
            self.shared.access(offsets, 16, self.threads[::4], write=write)
            places = offsets[:, None] + np.arange(16)
            if write:
                values = turned(self.get(register, "b32").copy())
                data[places] = values.view("u1").reshape(-1, 16)
            else:
                values = turned(data[places])
                self.put(register, values.view("u4").reshape(-1), None)

    def _repack(self, operands, mask):
        """Halves of a register from or to two."""
        target, source = operands
        if target.startswith("{"):
            halves = self.get(source, "b32").view(np.uint16)
            for j, name in enumerate(_names(target)):
                # An underscore for what nobody needs.
                if name != "_":
                    self.put(name, halves[j::2].copy(), mask)
        else:
            parts = [self.get(part, "b16") for part in _names(source)]
            self.put(target, np.stack(parts, 1).reshape(-1).view(np.uint32), mask)

    def _value(self, opcode, sources):
        name, *how = opcode
        kind = how[-1]
        if name == "selp":
            a, b = (self.get(source, kind) for source in sources[:2])
            return np.where(self.get(sources[2], "pred"), a, b)
        if name == "setp":
            return COMPARISONS[how[0]](*(self._numbers(source, kind) for source in sources))
        if name == "cvt":
            return self._converted(how, sources)
        if name == "shfl":
            assert how[0] == "sync"
            lane = int(sources[1], 0)
            others = {"bfly": self.threads ^ lane, "idx": self.threads & ~31 | lane}
            return self.get(sources[0], kind)[others[how[1]]]
        if name == "mul" and how[0] == "hi":
            wide = KINDS[kind[0] + str(2 * int(kind[1:]))]
            a, b = (self.get(source, kind).astype(wide) for source in sources)
            return (a * b >> 8 * KINDS[kind].itemsize).astype(KINDS[kind])
        if name in ("mul", "mad") and how[0] == "wide":
            wide = kind[0] + str(2 * int(kind[1:]))
            a, b = (self.get(source, kind).astype(KINDS[wide]) for source in sources[:2])
            return a * b if name == "mul" else a * b + self.get(sources[2], wide)
        if name in ("shl", "shr"):
            value, count = self.get(sources[0], kind), self.get(sources[1], "u32")
            bits = 8 * value.dtype.itemsize
            held = np.minimum(count, bits - 1).astype(value.dtype)
            shifted = value << held if name == "shl" else value >> held
            return np.where((count >= bits) & (kind[0] != "s"), value.dtype.type(0), shifted)
        if name == "bfe":
            # Without sign unless it is one of a signed number: shifted out at the top, and back.
            value, bits = self.get(sources[0], kind), 8 * KINDS[kind].itemsize
            first, count = (int(source, 0) for source in sources[1:])
            return (value << (bits - first - count)) >> (bits - count)
        return OPERATIONS[name](how, *(self.get(source, kind) for source in sources))

    def _converted(self, how, sources):
        to, kind = how[-2:]
        if to in ("bf16", "bf16x2", "f16x2"):
            values = [self.get(source, kind) for source in sources]
            half = torch.float16 if to == "f16x2" else torch.bfloat16
            halves = [torch.tensor(value).to(half).view(torch.uint16).numpy() for value in values]
            # The first is the upper half.
            return halves[0] if to == "bf16" else np.stack(halves[::-1], 1).reshape(-1).view("u4")
        return self._numbers(sources[0], kind).astype(KINDS[to])


def _quotient(how, a, b):
    if how[-1][0] == "f":
        return a / b
    return (np.sign(a) * np.sign(b) * (np.abs(a) // np.maximum(np.abs(b), 1))).astype(a.dtype)


def _fused(how, a, b, c):
    if how[-1] == "f32":
        return (a.astype(float) * b + c).astype("f4")
    return a * b + c


def _flushed(values):
    return np.where(np.abs(values) < 2.0**-126, np.copysign(np.float32(0), values), values)


OPERATIONS = {
    **{"mov": lambda how, a: a, "not": lambda how, a: ~a, "neg": lambda how, a: -a},
    **{"abs": lambda how, a: np.abs(a), "and": lambda how, a, b: a & b},
    **{"or": lambda how, a, b: a | b, "xor": lambda how, a, b: a ^ b},
    **{"add": lambda how, a, b: a + b, "sub": lambda how, a, b: a - b},
    **{"mul": lambda how, a, b: a * b, "div": _quotient, "fma": _fused, "mad": _fused},
    "sqrt": lambda how, a: np.sqrt(a),
    "rem": lambda how, a, b: a - _quotient(how, a, b) * b,
    "min": lambda how, a, b: (np.minimum if "NaN" in how else np.fmin)(a, b),
    "max": lambda how, a, b: (np.maximum if "NaN" in how else np.fmax)(a, b),
    "ex2": lambda how, a: np.exp2(_flushed(a)),
    "lg2": lambda how, a: np.log2(_flushed(a)),
    "rcp": lambda how, a: _flushed(np.float32(1) / _flushed(a)),
    "rsqrt": lambda how, a: _flushed(1 / np.sqrt(_flushed(a))),
}


def _flat(signature, values):
    for kind, value in zip(signature, values, strict=True):
        if isinstance(kind, tuple):
            yield from _flat(kind, value)
        elif kind != "constexpr":
            yield value


def _launch(kernel, programs, warps, *arguments, capability, **constants):
    compiled = registers.compiled(
        registers.Launch(kernel, programs, warps, arguments, constants), capability
    )
    signature = list(compiled.src.signature.values())[: len(arguments)]
    values = list(_flat(signature, arguments))
    memory = Memory([value for value in values if isinstance(value, torch.Tensor)])
    values = [value.data_ptr() if isinstance(value, torch.Tensor) else value for value in values]
    # The compiler's own memory, of which it takes none here, comes last.
    arguments = [*values, 0, 0]
    for program in np.random.default_rng(programs).permutation(programs):
        Program(compiled, arguments, memory, program, programs, 32 * warps).run()


@contextlib.contextmanager
def running(capability, multiprocessors):
    """Lets tensors on the CPU take the GPU path as on such a GPU."""
    machine = programs.Machine(f"sm_{capability}", multiprocessors)
    launch = functools.partial(_launch, capability=capability)
    _evaluator._evaluator.cache_clear()
    try:
        with (
            mock.patch.object(gpu_launch, "launch", launch),
            mock.patch.object(gpu, "machine_of", return_value=machine),
            mock.patch.object(gpu, "_interpreted", return_value=True),
        ):
            yield
    finally:
        _evaluator._evaluator.cache_clear()
