"""Registers and launch settings of the GPU kernels."""
