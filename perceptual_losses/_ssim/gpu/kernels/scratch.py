"""Scratch memory, through which the threads of a program exchange rows.

It is shared memory, addressed in PTX, where there is a way to it, and else memory of the caller.
"""

# Constants of a compilation are in capitals, and tuples grow by sums, which Triton compiles.
# ruff: noqa: N803, RUF005

import triton
import triton.language as tl


@triton.constexpr_function
def _declaration(size):
    return f"{{ .shared .align 16 .b32 scratch[{size}]; mov.u32 $0, scratch; }}"


@triton.constexpr_function
def _vector(count, first):
    """PTX's type of so many values and the list of their registers, which begins with a number."""
    registers = ", ".join(f"${first + k}" for k in range(count))
    return ("f32", registers) if count == 1 else (f"v{count}.f32", f"{{{registers}}}")


@triton.constexpr_function
def _writing(offset, count):
    ptx_type, registers = _vector(count, 2)
    # An assembly has to have a result.
    return f"st.shared.{ptx_type} [$1 + {4 * offset}], {registers}; mov.b32 $0, 0;"


@triton.constexpr_function
def _reading(offset, count):
    ptx_type, registers = _vector(count, 0)
    return f"ld.shared.{ptx_type} {registers}, [${count} + {4 * offset}];"


@triton.jit
def allocate(memory, SIZE: tl.constexpr, SHARED: tl.constexpr):
    """Address of so many values of the program's own: in shared memory, or in ``memory``.

    Values in memory are read from the second-level cache, which a warp waits many times as long
    for. Triton's own operations do not address shared memory.
    """
    if SHARED:
        address = tl.inline_asm_elementwise(
            _declaration(SIZE), "=r", [], dtype=tl.int32, is_pure=False, pack=1
        )
    else:
        address = memory + tl.program_id(0).to(tl.int64) * SIZE
    return address


@triton.jit
def split_columns(values):
    """A tuple with each of a thread's neighbouring columns."""
    if values.shape[1] == 1:
        columns = (tl.reshape(values, (values.shape[0],)),)
    elif values.shape[1] == 2:
        a, b = tl.split(values)
        columns = (a, b)
    else:
        ac, bd = tl.split(tl.reshape(values, (values.shape[0], 2, 2)))
        a, c = tl.split(ac)
        b, d = tl.split(bd)
        columns = (a, b, c, d)
    return columns


@triton.jit
def join_columns(columns):
    """The inverse of `split_columns`."""
    if len(columns) == 1:
        values = columns[0][:, None]
    elif len(columns) == 2:
        values = tl.join(columns[0], columns[1])
    else:
        values = tl.join(tl.join(columns[0], columns[2]), tl.join(columns[1], columns[3]))
        values = tl.reshape(values, (columns[0].shape[0], 4))
    return values


@triton.jit
def write(row, OFFSET: tl.constexpr, columns, first, K: tl.constexpr):
    """Writes neighbouring columns to a row of scratch memory, from ``OFFSET`` + ``first`` on."""
    if not K.SHARED:
        places = first[:, None] + tl.arange(0, len(columns))[None, :]
        tl.store(row + OFFSET + places, join_columns(columns))
    else:
        address = row + 4 * first
        if len(columns) == 1:
            constraints: tl.constexpr = "=r,r,f"
            operands = [address, columns[0]]
        elif len(columns) == 2:
            constraints: tl.constexpr = "=r,r,f,f"
            operands = [address, columns[0], columns[1]]
        else:
            constraints: tl.constexpr = "=r,r,f,f,f,f"
            operands = [address, columns[0], columns[1], columns[2], columns[3]]
        tl.inline_asm_elementwise(
            *(_writing(OFFSET, len(columns)), constraints, operands),
            dtype=tl.int32,
            is_pure=False,
            pack=1,
        )


@triton.jit
def read(row, OFFSET: tl.constexpr, first, TAPS: tl.constexpr, K: tl.constexpr):
    """The columns under each thread's windows, from a row of scratch memory."""
    if not K.SHARED:
        values = read_memory(window_addresses(row + OFFSET, first, K), TAPS, K)
    else:
        values = ()
        for k in tl.static_range(0, K.COLUMNS + TAPS - 1, K.COLUMNS):
            values = values + _read_shared(row + 4 * first, OFFSET + k, K.COLUMNS)
    return values


@triton.jit
def _read_shared(address, OFFSET: tl.constexpr, COLUMNS: tl.constexpr):
    """Reads so many neighbouring values in one access to shared memory."""
    assembly: tl.constexpr = _reading(OFFSET, COLUMNS)
    if COLUMNS == 1:
        a = tl.inline_asm_elementwise(
            assembly, "=f,r", [address], dtype=tl.float32, is_pure=False, pack=1
        )
        columns = (a,)
    elif COLUMNS == 2:
        columns = tl.inline_asm_elementwise(
            *(assembly, "=f,=f,r", [address]),
            dtype=(tl.float32, tl.float32),
            is_pure=False,
            pack=1,
        )
    else:
        columns = tl.inline_asm_elementwise(
            *(assembly, "=f,=f,=f,=f,r", [address]),
            dtype=(tl.float32, tl.float32, tl.float32, tl.float32),
            is_pure=False,
            pack=1,
        )
    return columns


@triton.jit
def window_addresses(row, first, K: tl.constexpr):
    """Addresses in a row of memory where each thread's windows begin, for two columns at once where
    a thread has several.
    """
    if K.COLUMNS == 1:
        addresses = row + first.to(tl.int64)
    else:
        addresses = row + first.to(tl.int64)[:, None] + tl.arange(0, 2)[None, :]
    return addresses


@triton.jit
def read_memory(addresses, TAPS: tl.constexpr, K: tl.constexpr):
    """The columns under each thread's windows, from `window_addresses` on."""
    values = ()
    if K.COLUMNS == 1:
        for k in tl.static_range(TAPS):
            values = values + (tl.load(addresses + k),)
    else:
        for k in tl.static_range(0, K.COLUMNS + TAPS - 1, 2):
            left, right = tl.split(tl.load(addresses + k))
            values = values + (left, right)
    return values
