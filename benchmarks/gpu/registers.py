"""Compiles the GPU path's kernels ahead of time and reads from them what they take of a GPU.

``python -m benchmarks.gpu.registers --out docs/kernels`` writes ``registers.md``. It needs no GPU,
and says nothing about time on one.
"""

from __future__ import annotations

import argparse
import contextlib
import re
import subprocess
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple
from unittest import mock

import torch
from tqdm import tqdm

from perceptual_losses._ssim.backend import Auxiliary, layout_of
from perceptual_losses._ssim.gpu import backend as gpu
from perceptual_losses._ssim.gpu import launch as gpu_launch
from perceptual_losses._ssim.gpu import programs
from perceptual_losses._ssim.request import Definition, Request, gaussian

CAPABILITIES = {75: 40, 80: 108, 90: 132}
"""Compute capabilities, with the multiprocessors of a GPU of each: a T4, an A100, an H200."""
SHAPE, SMALL, VOLUME = (8, 3, 1080, 1920), (64, 3, 64, 64), (4, 1, 128, 128, 128)


class Case(NamedTuple):
    """Images, and the part of a request that decides how kernels are compiled.

    Attributes:
        window_size: taps of the window.
        gradients: the number of gradients.
        padding: ``"valid"``, ``"zeros"`` or ``"symmetric"``.
        weighted: whether the mean is a weighted one.
        dtype: dtype of the images.
        channels_last: whether they lie in that layout.
        l1: ``"separate"`` where the mean of |x - y| is computed too, ``"mixed"`` where it is in
            the result and its gradients, else ``"no"``.
        levels: the number of levels.
        shape: shape of the images.
        other: ``"map"`` where the result is the map, ``"ranges"`` where each image has its own,
            ``"valid"`` where some pixels do not exist, else ``"no"``.
    """

    window_size: int
    gradients: int = 1
    padding: str = "valid"
    weighted: bool = False
    dtype: torch.dtype = torch.float32
    channels_last: bool = False
    l1: str = "no"
    levels: int = 1
    shape: tuple[int, ...] = SHAPE
    other: str = "no"

    @property
    def cells(self) -> list[str]:
        """The cells with which a row of the report begins."""
        call = (
            self.padding if self.padding != "valid" else "",
            "mask" if self.weighted else "",
            f"L1 {self.l1}" if self.l1 != "no" else "",
            {"no": "", "valid": "valid pixels"}.get(self.other, self.other),
            "bfloat16" if self.dtype == torch.bfloat16 else "",
            "channels_last" if self.channels_last else "",
            {SMALL: "small", VOLUME: "volumes"}.get(self.shape, ""),
        )
        gradients = ("none", "x", "x, y")[self.gradients]
        return [str(self.window_size), gradients, ", ".join(filter(None, call))]

    @property
    def request(self) -> Request:
        """The request that takes these kernels."""
        windows = (gaussian(self.window_size, 1.5),) * (len(self.shape) - 2)
        definition = Definition(windows, 0.0, 1.0, 1e-4, 9e-4, self.padding)
        exponents = (1.0,) * self.levels if self.levels > 1 else ()
        mix = None if self.l1 == "no" else (0.2, 0.8)
        reduction = "levels" if self.levels > 1 or self.l1 == "separate" else "loss"
        reduction = "map" if self.other == "map" else reduction
        return Request(definition, exponents, None, mix, reduction, self.gradients)

    @property
    def auxiliary(self) -> Auxiliary:
        """The tensors beside the images."""
        n, _, *sides = self.shape
        lost = self.window_size - 1 if self.padding == "valid" else 0
        valid = self.other == "valid"
        weights, exists, coverage = [], [], []
        for _ in range(self.levels):
            of_map = torch.empty(n, 1, *[side - lost for side in sides], device="meta")
            weights += [of_map] * (self.weighted or valid)
            coverage += [of_map] * valid
            exists += [torch.empty(n, 1, *sides, dtype=torch.bool, device="meta")] * valid
            sides = [(side + 1) // 2 for side in sides]
        ranges = [torch.empty(n, device="meta")] * (self.other == "ranges")
        return Auxiliary(weights, ranges=ranges, valid=exists, coverage=coverage)


CASES = (
    *(Case(size, gradients) for size in (11, 21, 33) for gradients in (0, 1, 2)),
    *(Case(size, 1, "zeros") for size in (11, 21, 33)),
    *(Case(size, 2, "zeros", True) for size in (11, 21, 33)),
    *(Case(size, 0, "symmetric", True) for size in (11, 21, 33)),
    *(Case(size, 2, "symmetric", True) for size in (11, 21, 33)),
    *(Case(11, gradients, "valid", False, torch.bfloat16) for gradients in (0, 1, 2)),
    Case(11, 1, "zeros", False, torch.bfloat16),
    *(Case(size, 2, "symmetric", True, torch.bfloat16) for size in (11, 21, 33)),
    Case(11, 1, channels_last=True),
    *(Case(size, 2, "symmetric", True, channels_last=True) for size in (11, 21, 33)),
    *(Case(size, gradients, l1="mixed") for size in (11, 21, 33) for gradients in (0, 1, 2)),
    *(Case(11, gradients, "zeros", l1="mixed") for gradients in (0, 1)),
    Case(33, 2, "symmetric", l1="mixed"),
    Case(11, 2, "symmetric", dtype=torch.bfloat16, l1="mixed"),
    *(Case(11, gradients, l1="separate") for gradients in (1, 2)),
    Case(11, 2, "symmetric", dtype=torch.bfloat16, l1="separate"),
    *(Case(size, gradients, levels=5) for size in (11, 21) for gradients in (0, 1, 2)),
    Case(11, 2, "symmetric", True, torch.bfloat16, levels=5),
    *(
        Case(size, gradients, padding, other=other)
        for other in ("map", "ranges", "valid")
        for size, gradients, padding in (
            *((11, 0, "valid"), (11, 1, "valid"), (11, 2, "symmetric")),
            *((21, 0, "zeros"), (21, 2, "valid"), (33, 1, "zeros")),
        )
    ),
    *(Case(11, gradients, levels=5, other="valid") for gradients in (0, 1)),
    *(Case(size, gradients, shape=SMALL) for size in (11, 21, 33) for gradients in (0, 1)),
    *(Case(size, gradients, shape=VOLUME) for size in (11, 21, 33) for gradients in (0, 1, 2)),
    *(
        Case(size, 2, padding, True, shape=VOLUME)
        for size, padding in ((11, "zeros"), (11, "symmetric"), (21, "symmetric"), (33, "zeros"))
    ),
    *(Case(size, 1, "zeros", dtype=torch.bfloat16, shape=VOLUME) for size in (11, 33)),
    *(Case(size, 1, l1="mixed", shape=VOLUME) for size in (11, 21)),
    *(
        Case(11, gradients, padding, shape=VOLUME, other=other)
        for other in ("map", "ranges", "valid")
        for gradients, padding in ((0, "valid"), (2, "symmetric"))
    ),
)


class Launch(NamedTuple):
    """The arguments of `gpu_launch.launch`."""

    kernel: Any
    programs: int
    warps: int
    arguments: tuple[Any, ...]
    constants: dict[str, Any]


class Figures(NamedTuple):
    """The resources that a kernel takes.

    Attributes:
        registers: registers of a thread.
        spilled: bytes of a thread's local memory.
        shared: bytes of a program's shared memory.
        instructions: instructions of the longest loop of a thread; 0 without a loop.
        barriers: barriers among them.
    """

    registers: int
    spilled: int
    shared: int
    instructions: int
    barriers: int


@contextlib.contextmanager
def recording(capability: int, architecture: str | None = None) -> Iterator[list[Launch]]:
    """Collects the launches on such a GPU, or another, for tensors without memory."""
    launches: list[Launch] = []
    machine = programs.Machine(architecture or f"sm_{capability}", CAPABILITIES[capability])

    def record(kernel: Any, programs: int, warps: int, *arguments: Any, **constants: Any) -> None:
        launches.append(Launch(kernel, programs, warps, arguments, constants))

    with (
        mock.patch.object(gpu_launch, "launch", record),
        mock.patch.object(gpu, "machine_of", return_value=machine),
    ):
        yield launches


def launched(case: Case, capability: int, architecture: str | None = None) -> dict[str, Launch]:
    """The launches of a forward pass, or of a map's backward pass, by kernel."""
    x = torch.empty(case.shape, dtype=case.dtype, device="meta")
    if case.channels_last:
        x = x.contiguous(memory_format=torch.channels_last)
    layout, auxiliary = layout_of(x), case.auxiliary
    with recording(capability, architecture) as launches:
        plan = gpu.plan(layout, layout, auxiliary.layouts, case.request, x.device)
        value, _ = plan.forward(x, x, auxiliary)
        if case.other == "map" and case.gradients:
            launches.clear()
            plan.backward((), value, x, x, auxiliary)
    return {launch.kernel.__name__: launch for launch in launches}


TYPES = {
    **{torch.float16: "*fp16", torch.bfloat16: "*bf16", torch.float32: "*fp32"},
    **{torch.int32: "*i32", torch.bool: "*i1"},
}
ALIGNED = [["tt.divisibility", 16]]


def compiled(launch: Launch, capability: int) -> Any:
    """The kernel as Triton's launcher compiles it for these arguments."""
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    values: dict[tuple[int, ...], Any] = {}
    aligned: dict[tuple[int, ...], Any] = {}

    def kind(place: tuple[int, ...], value: Any, parameter: Any) -> Any:
        if isinstance(value, torch.Tensor):
            if not parameter.do_not_specialize_on_alignment and value.data_ptr() % 16 == 0:
                aligned[place] = ALIGNED
            return TYPES[value.dtype]
        if isinstance(value, tuple):
            parts = [kind((*place, i), part, parameter) for i, part in enumerate(value)]
            return type(value)(*parts) if hasattr(value, "_fields") else tuple(parts)
        if isinstance(value, float):
            return "fp32"
        if not parameter.do_not_specialize:
            if value == 1:
                values[place] = 1
                return "constexpr"
            if value % 16 == 0:
                aligned[place] = ALIGNED
        return "i32" if value < 2**31 else "i64"

    signature = {}
    for index, parameter in enumerate(launch.kernel.params):
        if parameter.name in launch.constants:
            values[(index,)] = launch.constants[parameter.name]
            signature[parameter.name] = "constexpr"
        else:
            signature[parameter.name] = kind((index,), launch.arguments[index], parameter)
    source = ASTSource(launch.kernel, signature, values, aligned)
    target = GPUTarget("cuda", capability, 32)
    options = {name: launch.constants.get(name, v) for name, v in gpu_launch.OPTIONS.items()}
    return triton.compile(source, target=target, options={"num_warps": launch.warps, **options})


def figures(kernel: Any) -> Figures:
    """The resources that a compiled kernel takes."""
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(kernel.asm["cubin"])
        file.flush()
        usage, assembly = _dump(file.name, "-res-usage"), _dump(file.name, "-sass")
    found = re.search(r"REG:(\d+) STACK:(\d+) SHARED:(\d+) LOCAL:(\d+)", usage)
    assert found is not None, usage
    registers, stack, shared, local = map(int, found.groups())
    loop = longest_loop(assembly)
    barriers = sum("BAR.SYNC" in instruction for instruction in loop)
    shared += kernel.metadata.shared
    return Figures(registers, stack + local, shared, len(loop), barriers)


def longest_loop(assembly: str) -> list[str]:
    """The innermost loop with the most instructions: from a branch's target backwards to it."""
    places: dict[int, int] = {}
    instructions: list[str] = []
    loops: list[tuple[int, int]] = []
    for found in re.finditer(r"/\*([0-9a-f]{4,})\*/\s+([^;]+);", assembly):
        address, instruction = int(found[1], 16), found[2]
        places[address] = len(instructions)
        instructions.append(instruction)
        branch = re.search(r"\bBRA\b.*\b0x([0-9a-f]+)", instruction)
        # A branch to itself stands behind the last instruction.
        if branch is not None and int(branch[1], 16) < address:
            begin, end = places[int(branch[1], 16)], len(instructions)
            # Those found before end before.
            if not any(begin <= inner for inner, _ in loops):
                loops.append((begin, end))
    return max((instructions[begin:end] for begin, end in loops), key=len, default=[])


def _dump(path: str, option: str) -> str:
    from triton import backends

    tool = Path(backends.__file__).parent / "nvidia" / "bin" / "cuobjdump"
    return subprocess.run([tool, option, path], capture_output=True, text=True, check=True).stdout


KERNELS = (
    *("fused_kernel", "value_kernel"),
    *("plane_moments_kernel", "depth_kernel", "gradient_kernel"),
)
HEADER = (
    *("kernel", "window", "gradients", "call", "threads x columns"),
    *("registers", "spilled, bytes", "shared, bytes", "instructions per pixel"),
)


def size(shape: Sequence[int]) -> str:
    """A shape as it is written in the report."""
    return "x".join(map(str, shape))


def row(case: Case, launch: Launch, found: Figures) -> list[str]:
    """The row of the report for one kernel."""
    lanes, columns, rows = (int(v) for v in launch.constants["K"][:3])
    return [
        *(launch.kernel.__name__, *case.cells, f"{lanes} x {columns}"),
        *(str(found.registers), str(found.spilled), str(found.shared)),
        f"{found.instructions / columns / rows:.0f}",
    ]


def markdown(tables: dict[int, list[list[str]]], version: str) -> str:
    """The report.

    Args:
        tables: rows for each compute capability.
        version: of Triton.
    """
    parts = [
        "# Registers and memory of the GPU kernels",
        "`python -m benchmarks.gpu.registers --out docs/kernels` wrote this page with Triton "
        f"{version}, which compiled the kernels ahead of time. Nothing ran on a GPU, so the page "
        "has no times.",
        "Each row is one kernel at one level. Only `coarse_levels_kernel` computes several: of "
        "five levels all but the finest. `fused_kernel` computes value and gradient of a level. "
        "Where two kernels share this work, `gradient_kernel` follows `value_kernel`. Without "
        "gradients there is only `value_kernel`. [Kernels](../kernels.md#on-a-gpu) says what the "
        "others compute. "
        "Threads are those of a program, and columns those of a thread.",
        f"Images have {size(SHAPE)} pixels in float32, and the padding is `valid`. The column "
        "*call* says what differs: the padding, a mask, L1 as a separate mean or mixed into the "
        "result and its gradients, the map as the result, a range for each image (*ranges*), "
        "images of which only some pixels are valid, bfloat16, `channels_last`, small images "
        f"({size(SMALL)}) or volumes ({size(VOLUME)}).",
        "Registers and spilled bytes (stack and local memory) are those of a thread, as "
        "`cuobjdump -res-usage` gives them. Shared memory is the kernel's own and what Triton asks "
        "for. Instructions are those of the loop over the rows: the longest stretch in "
        "`cuobjdump -sass` that ends with a branch back to its start. They are divided by the "
        "pixels that a thread computes in one iteration. All paths through the loop count in full. "
        "Not counted are the rows before a tile's first one, and the pixels that it computes but "
        "does not own.",
    ]
    for capability, rows in tables.items():
        lines = [HEADER, ["---"] * 4 + ["---:"] * (len(HEADER) - 4), *rows]
        parts.append(f"## Compute capability {capability // 10}.{capability % 10}")
        parts.append("\n".join(f"| {' | '.join(line)} |" for line in lines))
    return "\n\n".join(parts) + "\n"


def main(arguments: Sequence[str] | None = None) -> Path:
    """The command line; returns the path of the file."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gpu.registers", description=__doc__)
    parser.add_argument("--out", type=Path, required=True, help="folder of the report")
    options = parser.parse_args(arguments)
    import triton

    from . import feature_registers

    tables: dict[int, list[list[str]]] = {}
    for capability in CAPABILITIES:
        tables[capability] = [
            row(case, launch, figures(compiled(launch, capability)))
            for case in tqdm(CASES, desc=f"sm_{capability}")
            # Devices before 8.0 have no bfloat16.
            if capability >= 80 or case.dtype != torch.bfloat16
            for name, launch in launched(case, capability).items()
            if name in (("coarse_levels_kernel",) if case.levels > 1 else KERNELS)
        ]
    options.out.mkdir(parents=True, exist_ok=True)
    path = options.out / "registers.md"
    report = markdown(tables, triton.__version__) + "\n" + feature_registers.section()
    path.write_text(report)
    print(path)
    return path


if __name__ == "__main__":
    main()
