"""The vectors that kernels are compiled for."""

from perceptual_losses._runtime import numba_kernels


def test_kernels_may_use_the_widest_vectors():
    # LLVM keeps to 256 bits on Intel's processors with AVX-512 unless a function says otherwise.
    @numba_kernels.kernel
    def double(values):
        for i in range(len(values)):
            values[i] += values[i]

    double.compile("void(float32[::1])")
    (code,) = double.inspect_llvm().values()
    assert '"prefer-vector-width"="512"' in code
