"""The GPU path: Triton kernels, and their launches for tensors read where and as they lie."""
