"""Checking, timing and weighing one contender in one case."""

from __future__ import annotations

import contextlib
import ctypes
import functools
import multiprocessing
import os
import resource
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from multiprocessing.connection import Connection
from typing import Any, NamedTuple

import torch
from torch import Tensor

import perceptual_losses
from perceptual_losses.similarity import MS_SSIM_WEIGHTS

from . import definitions
from .cases import DEFINITIONS, Case, inputs
from .contender import Call, Contender
from .features import FEATURES, feature_loss

VALUE_TOLERANCE = 2e-5
"""The largest error of a value, relative if it is above 1: float32 moments and windows."""

GRADIENT_TOLERANCE = 1e-4
"""The largest error of a gradient: the norm of the difference over the norm."""

FEATURE_GRADIENT_TOLERANCE = 1e-2
"""The largest error of a gradient through a network. A rounding decides on which side of zero an
activation lies, and with it whether a part of the gradient is there."""

DEVIATION_LIMIT = 1e-2
"""The largest error of a value by a definition that is known to differ: the work is the same."""

MEMORY_METHOD = {
    "cpu": "peak resident set (VmHWM, reset through /proc/self/clear_refs) less the resident set "
    "before the step, to about 0.2 MB; freed blocks from 64 KiB go back to the system at once",
    "cuda": "torch.cuda.max_memory_allocated less memory_allocated before the step",
}
"""In a process of its own for each contender and case, after a step that is not measured unless a
step takes longer than `LONG_STEP`. The gradient is counted, the images are not."""

LONG_STEP = 3.0
"""Seconds from which what a first step needs only once does not show beside what every one does."""

M_MMAP_THRESHOLD = -3
"""The number of an option in malloc.h."""

_libc = ctypes.CDLL(None)

Step = Callable[[], tuple[Tensor, Tensor | None]]


class Expected(NamedTuple):
    """The reference path's value and gradient in float64: the gradient is that of `loss`."""

    value: float
    gradient: Tensor
    gradient_tolerance: float


@functools.lru_cache(maxsize=1)
def expected(case: Case, device: str) -> Expected:
    """The numbers to reach; kept for the next case, which mostly is the same without backward."""
    x, y = (image.double() for image in inputs(case, device))
    x.requires_grad_()
    if case.metric in FEATURES:
        value = feature_loss(case.metric).to(x)(x, y)
    elif case.metric in DEFINITIONS:
        value = definitions.own("reference", case, device).similarity(x, y)
    elif case.metric == "L1-SSIM":
        value = perceptual_losses.L1SSIMLoss(backend="reference")(x, y)
    elif case.metric == "SSIM":
        value = perceptual_losses.ssim(x, y, backend="reference")
    else:
        weights = case.weights or MS_SSIM_WEIGHTS
        value = perceptual_losses.ms_ssim(x, y, weights=weights, backend="reference")
    (gradient,) = torch.autograd.grad(loss(case, value), x)
    network = case.metric in FEATURES
    tolerance = FEATURE_GRADIENT_TOLERANCE if network else GRADIENT_TOLERANCE
    return Expected(value.item(), gradient, tolerance)


def loss(case: Case, value: Tensor) -> Tensor:
    """The loss to train on: 1 - similarity, or the value itself where it is a loss."""
    return value if case.metric in ("L1-SSIM", *FEATURES) else 1 - value


def similarity(case: Case, value: Tensor) -> Tensor:
    """The similarity, or the metric's own loss, from the value that a `step` gives."""
    return loss(case, value) if case.backward else value


def step(call: Call, case: Case, x: Tensor, y: Tensor) -> Step:
    """The step that is timed: the similarity; in a case with a gradient `loss`, and its gradient
    with respect to ``x``.
    """
    x, y = x.to(call.dtype), y.to(call.dtype)
    if not case.backward:
        return torch.no_grad()(lambda: (call.similarity(x, y), None))
    x = x.detach().requires_grad_()

    def forward_and_backward() -> tuple[Tensor, Tensor]:
        value = loss(case, call.similarity(x, y)) if call.loss is None else call.loss(x, y)
        (gradient,) = torch.autograd.grad(value, x)
        return value.detach(), gradient

    return forward_and_backward


def check(
    value: float, gradient: Tensor | None, target: Expected, deviation: str
) -> dict[str, float | None]:
    """Errors of value and gradient; raises if they are beyond the tolerances."""
    errors: dict[str, float | None] = {
        "value_error": abs(value - target.value) / max(1, abs(target.value)),
        "gradient_error": None,
    }
    if gradient is not None:
        exact = target.gradient
        difference = (gradient.to(exact.device) - exact).norm() / exact.norm()
        errors["gradient_error"] = difference.item()
    limits = {
        "value_error": DEVIATION_LIMIT if deviation else VALUE_TOLERANCE,
        "gradient_error": float("inf") if deviation else target.gradient_tolerance,
    }
    for name, error in errors.items():
        # Negated so that NaN fails.
        if error is not None and not error <= limits[name]:
            raise ValueError(f"{name} {error:.2g} is over {limits[name]:g}")
    return errors


def seconds(run: Callable[[], Any], calls: int, device: str) -> float:
    """Time of one call, the mean of ``calls`` in a row."""
    if device == "cuda":
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        torch.cuda.synchronize()
        start.record()
        for _ in range(calls):
            run()
        end.record()
        torch.cuda.synchronize()
        return start.elapsed_time(end) / 1000 / calls
    begin = time.perf_counter()
    for _ in range(calls):
        run()
    return (time.perf_counter() - begin) / calls


def copy_rate(size: int = 2**30, device: str = "cuda") -> float:
    """Bytes a second that a copy reads and writes: the median of several."""
    source = torch.zeros(size, dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    target.copy_(source)
    times = [seconds(lambda: target.copy_(source), 5, device) for _ in range(9)]
    return 2 * size / statistics.median(times)


def configure(device: str, threads: int) -> None:
    """The state of torch that every measurement has."""
    torch.set_num_threads(threads)
    if device == "cuda":
        # Convolutions in TF32 would fail the check.
        torch.backends.cudnn.allow_tf32 = False


@contextlib.contextmanager
def memory_limit(device: str, fraction: float = 0.8) -> Iterator[None]:
    """Makes an allocation beyond this fraction of the machine's memory an exception that can be
    recorded, where the system would end the process. On CUDA it is one already.
    """
    if device == "cuda":
        yield
        return
    limits = resource.getrlimit(resource.RLIMIT_DATA)
    total = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    resource.setrlimit(resource.RLIMIT_DATA, (int(fraction * total), limits[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_DATA, limits)


def reason(error: BaseException) -> str:
    """An exception in one line."""
    message = str(error).strip().partition("\n")[0]
    return f"{type(error).__name__}: {message}"


class WorkerError(Exception):
    """A worker's failure and its reason, in one line."""


class Worker:
    """A contender in a process of its own.

    What others leave behind would show in its times otherwise: a step that allocates many images
    is two to three times as fast where another has made the allocator keep its pages.
    """

    def __init__(self, contender: Contender, device: str) -> None:
        # Children of a server that has imported torch and run nothing start in milliseconds.
        context = multiprocessing.get_context("forkserver")
        context.set_forkserver_preload([__name__])
        self._connection, theirs = context.Pipe()
        arguments = (theirs, contender, device, torch.get_num_threads())
        self._process = context.Process(target=_serve, args=arguments, daemon=True)
        self._process.start()
        theirs.close()

    @property
    def alive(self) -> bool:
        """Whether the process is there to be asked."""
        return self._process.is_alive()

    def prepare(self, case: Case) -> tuple[str, str]:
        """Makes the contender ready for a case; its settings and its deviation."""
        return self._ask("prepare", case)

    def result(self) -> tuple[float, Tensor | None]:
        """The similarity and the gradient."""
        value, gradient = self._ask("result")
        return value, None if gradient is None else torch.from_numpy(gradient)

    def seconds(self, calls: int) -> float:
        """Time of one step, the mean of ``calls`` in a row."""
        return self._ask("seconds", calls)

    def peak(self, case: Case, *, warm_up: bool) -> int:
        """Bytes that a step needs at its peak, by `MEMORY_METHOD`: the first thing to be asked on a
        CPU, the last on CUDA.
        """
        return self._ask("peak", case, warm_up)

    def forget(self) -> None:
        """Gives up what the case took, on CUDA the memory kept for reuse too."""
        self._ask("forget")

    def close(self) -> None:
        """Ends the process."""
        self._connection.close()
        self._process.join()

    def _ask(self, question: str, *arguments: Any) -> Any:
        try:
            self._connection.send((question, arguments))
            succeeded, answer = self._connection.recv()
        except (EOFError, OSError):
            self._process.join()
            raise WorkerError(f"the process ended with code {self._process.exitcode}") from None
        if not succeeded:
            raise WorkerError(answer)
        return answer


def _serve(connection: Connection, contender: Contender, device: str, threads: int) -> None:
    configure(device, threads)
    served = _Served(contender, device)
    with memory_limit(device), contextlib.suppress(EOFError):
        while True:
            question, arguments = connection.recv()
            try:
                answer = True, getattr(served, question)(*arguments)
            except Exception as error:
                answer = False, reason(error)
            connection.send(answer)


class _Served:
    """The requests of a `Worker`, served in its process."""

    def __init__(self, contender: Contender, device: str) -> None:
        self.contender, self.device = contender, device

    def prepare(self, case: Case) -> tuple[str, str]:
        call = self.contender.build(case, self.device)
        self.case = case
        self.step = step(call, case, *inputs(case, self.device))
        return call.settings, call.deviation

    def forget(self) -> None:
        self.step: Any = None
        # Some compile for the sizes they see, and users have one: a second one would get kernels
        # for any size, which are slower. Where nothing compiles, to import that takes seconds.
        if "torch._dynamo" in sys.modules:
            torch.compiler.reset()
        if self.device == "cuda":
            torch.cuda.empty_cache()

    def result(self) -> tuple[float, Any]:
        value, gradient = self.step()
        found = similarity(self.case, value).item()
        # NumPy has no bfloat16.
        return found, None if gradient is None else gradient.float().cpu().numpy()

    def seconds(self, calls: int) -> float:
        return seconds(self.step, calls, self.device)

    def peak(self, case: Case, warm_up: bool) -> int:
        if self.device == "cuda":
            return _peak_cuda(self.step)
        # Free blocks would hide what a step needs: let glibc give back those of 64 KiB or more.
        _libc.mallopt(M_MMAP_THRESHOLD, 1 << 16)
        self.prepare(case)
        if warm_up:
            self.step()
        return _peak_resident(self.step)


def _peak_cuda(run: Step) -> int:
    before = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    run()
    return torch.cuda.max_memory_allocated() - before


def _peak_resident(run: Step) -> int:
    _libc.malloc_trim(0)  # and those that importing has left
    with open("/proc/self/clear_refs", "w") as file:
        file.write("5")
    before = _status("VmRSS")
    run()
    return _status("VmHWM") - before


def _status(name: str) -> int:
    with open("/proc/self/status") as file:
        (line,) = [line for line in file if line.startswith(f"{name}:")]
    return int(line.split()[1]) * 1024
