"""The vectors that kernels are compiled for."""

import numpy as np
import pytest

from perceptual_losses._runtime import numba_kernels, vectors
from perceptual_losses._ssim.cpu.kernels import Window, filters


def test_kernels_may_use_the_widest_vectors():
    # LLVM keeps to 256 bits on Intel's processors with AVX-512 unless a function says otherwise.
    @numba_kernels.kernel
    def double(values):
        for i in range(len(values)):
            values[i] += values[i]

    double.compile("void(float32[::1])")
    (code,) = double.inspect_llvm().values()
    assert '"prefer-vector-width"="512"' in code


@pytest.mark.parametrize("size", [1, 3, 11, 33])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("register_bytes", [16, 32, 64])
def test_sums_under_the_window_are_right_for_all_registers(
    monkeypatch, register_bytes, dtype, size
):
    monkeypatch.setattr(vectors, "BYTES", register_bytes)
    half = np.random.default_rng(0).random(size // 2 + 1)
    taps = np.concatenate([half[:0:-1], half]).astype(dtype)
    window = Window((0,) * size, taps)

    # Compiles the sums for registers of this size.
    @numba_kernels.njit(**numba_kernels.OPTIONS)
    def sums(window, ring, first, row, count, across, down):
        filters._sum_across(window, row, count, across)
        filters._sum_down(window, ring, 1, first, count, down)

    slots, count = size + filters.ROWS - 1, 64
    ring = np.random.default_rng(1).random((slots + 1, count), dtype)
    row = np.random.default_rng(2).random(count + size + 64, dtype)
    first, across = slots // 2, np.zeros(count, dtype)
    down = np.zeros((filters.ROWS, count), dtype)
    arguments = window, ring, first, row, count, across, down
    sums(*arguments)

    taps = taps.astype(np.float64)
    exact = np.convolve(row.astype(np.float64), taps, "valid")[:count]
    np.testing.assert_allclose(across, exact, rtol=4 * np.finfo(dtype).eps * size**0.5)
    in_order = np.roll(ring[1:], -first, 0).astype(np.float64)
    for i, rows in enumerate(down):
        exact = taps @ in_order[i : i + size]
        np.testing.assert_allclose(rows, exact, rtol=4 * np.finfo(dtype).eps * size**0.5)
