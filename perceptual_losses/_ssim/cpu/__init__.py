"""The CPU path: Numba kernels on the threads that torch would use."""
