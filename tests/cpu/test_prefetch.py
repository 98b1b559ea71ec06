"""Requests for memory that a kernel reads soon."""

import numpy as np
from numba import njit

from perceptual_losses._ssim.cpu.kernels.prefetch import prefetch


def test_a_request_changes_nothing_and_may_be_for_memory_that_is_not_there():
    @njit
    def ask(array, begin, count):
        prefetch(array, begin, count)
        return array.sum()

    array = np.arange(8, dtype=np.float32)
    # The second place is at an address that no process has.
    for begin in (0, 2**55):
        assert ask(array, begin, 1000) == 28
    assert array.tolist() == list(range(8))
    (code,) = ask.inspect_llvm().values()
    # To read it, into the second-level cache, as data.
    assert "i32 0, i32 2, i32 1)" in code[code.index("call void @llvm.prefetch") :].splitlines()[0]
