"""The machine that kernels run on: compilation, threads, tracing, warnings; nothing of images."""
