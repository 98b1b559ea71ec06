"""Compiles LPIPS's kernels ahead of time, for the report of `registers`."""

from __future__ import annotations

from typing import NamedTuple

import torch
from tqdm import tqdm

from perceptual_losses._features import lpips_gpu

from . import registers


class Case(NamedTuple):
    """Features, and the gradients that are wanted.

    Attributes:
        shape: shape of both images' features.
        dtype: dtype of the features.
        channels_last: whether they lie in that layout.
        wanted: whether the gradients with respect to the first and the second are wanted. The
            distance is computed where neither is.
    """

    shape: tuple[int, int, int, int]
    dtype: torch.dtype = torch.float32
    channels_last: bool = True
    wanted: tuple[bool, bool] = (False, False)

    @property
    def cells(self) -> list[str]:
        """The cells with which a row of the report begins."""
        dtype = str(self.dtype).removeprefix("torch.")
        return [
            "x".join(map(str, self.shape)),
            dtype + ", channels_last" * self.channels_last,
            ("none", "x", "x, y")[sum(self.wanted)],
        ]


FIRST, LAST, ODD = (4, 64, 224, 224), (4, 512, 14, 14), (4, 192, 27, 27)
"""Features of VGG-16's first and last layer for images of 224x224, and of AlexNet's second."""
CASES = tuple(
    Case(shape, dtype, channels_last, wanted)
    for shape in (FIRST, LAST, ODD)
    for dtype in (torch.float32, torch.bfloat16, torch.float16)
    for channels_last in (True, False)
    for wanted in ((False, False), (True, False), (True, True))
    # Both halves compile alike but for conversions.
    if dtype != torch.float16 or (shape == FIRST and channels_last)
)
HEADER = (
    *("kernel", "features", "layout", "gradients"),
    *("registers", "spilled, bytes", "shared, bytes"),
)


def launched(case: Case, capability: int) -> registers.Launch:
    """The launch for features without memory."""
    features = torch.empty(case.shape, dtype=case.dtype, device="meta")
    if case.channels_last:
        features = features.contiguous(memory_format=torch.channels_last)
    weight, grad = (torch.empty(size, device="meta") for size in (case.shape[1], case.shape[0]))
    with registers.recording(capability) as launches:
        if any(case.wanted):
            lpips_gpu.gradients(features, features, weight, grad, case.wanted, 1e-10)
        else:
            lpips_gpu.distance(features, features, weight, 1e-10)
    (launch,) = launches
    return launch


def row(case: Case, capability: int) -> list[str]:
    """The row of the report for one kernel."""
    launch = launched(case, capability)
    found = registers.figures(registers.compiled(launch, capability))
    figures = (found.registers, found.spilled, found.shared)
    return [launch.kernel.__name__, *case.cells, *map(str, figures)]


def section() -> str:
    """The part of the report on LPIPS's kernels."""
    parts = [
        "## LPIPS",
        "Kernels for the distance of a layer's features and for its gradient. A program has "
        f"{32 * lpips_gpu.WARPS} threads, which hold {lpips_gpu.TILE} features of each image.",
    ]
    for capability in registers.CAPABILITIES:
        rows = [
            row(case, capability)
            for case in tqdm(CASES, desc=f"LPIPS, sm_{capability}")
            # Devices before 8.0 have no bfloat16.
            if capability >= 80 or case.dtype != torch.bfloat16
        ]
        lines = [HEADER, ["---"] * 4 + ["---:"] * (len(HEADER) - 4), *rows]
        parts.append(f"### Compute capability {capability // 10}.{capability % 10}")
        parts.append("\n".join(f"| {' | '.join(line)} |" for line in lines))
    return "\n\n".join(parts) + "\n"
