"""The machine that kernels run on: compilation, threads, tracing, warnings. No images here."""
