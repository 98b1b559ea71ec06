"""Tests of the launches on stand-ins for CUDA, which `make test` runs in a process of their own."""

import itertools

import standins

if not standins.loaded():
    collect_ignore_glob = ["test_*.py"]
else:
    import pytest
    import torch
    from triton.runtime.jit import JITFunction

    @pytest.fixture(autouse=True)
    def blocks():
        """Memory without torch's cache: each tensor is a block of its own."""
        torch.cuda.init()
        torch.cuda.memory.caching_allocator_enable(False)
        yield
        torch.cuda.memory.caching_allocator_enable(True)

    ranges = itertools.count(1)

    @pytest.fixture
    def data_range():
        """A range that no call has had yet, and so one of which nothing is remembered."""
        return 1 + next(ranges) / 1024

    @pytest.fixture
    def through_triton(monkeypatch):
        """The launches with Triton's own handling of arguments: kernels and their arguments."""
        calls, run = [], JITFunction.run

        def counted(self, *arguments, **options):
            calls.append((self.__name__, arguments))
            return run(self, *arguments, **options)

        monkeypatch.setattr(JITFunction, "run", counted)
        return calls
