"""Launches of the GPU path: kernels, where their arguments lie and what memory they need."""

from __future__ import annotations

import contextlib
import dataclasses
import json
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future
from threading import Thread
from typing import Any, NamedTuple

import torch
from torch import Tensor

from .tiles import ceil_div

# The filters are multiply-adds, which Triton 3.10 will no longer fuse unless it is asked to.
OPTIONS = {"enable_fp_fusion": True}
# The newest Triton of which it is known how what it has compiled is run.
KNOWN = (3, 9)


class Layout(NamedTuple):
    """What a kernel is compiled for, and launched with, of a tensor."""

    dtype: torch.dtype
    shape: tuple[int, ...]
    strides: tuple[int, ...]
    aligned: bool


def layout_of(tensor: Tensor) -> Layout:
    return Layout(tensor.dtype, tensor.shape, tensor.stride(), tensor.data_ptr() % 16 == 0)


@dataclasses.dataclass(frozen=True)
class At:
    """An argument in memory: of the tensor with that name, so many float32 values on."""

    name: str
    offset: int = 0

    def on(self, values: int) -> At:
        return At(self.name, self.offset + values)

    def tensor(self, memory: dict[str, Tensor]) -> Tensor:
        tensor = memory[self.name]
        return tensor.view(-1)[self.offset :] if self.offset else tensor


class Image(NamedTuple):
    """Where an image lies, or a gradient."""

    at: At
    shape: tuple[int, ...]
    strides: tuple[int, ...]
    aligned: bool = True

    @property
    def dense(self) -> bool:
        """Whether the compiler can tell that neighbouring columns are one aligned access: of a
        number it knows whether it is 1, and whether 16 divides it.
        """
        return self.aligned and self.strides[3] == 1 and not any(s % 16 for s in self.strides[:3])


class New(NamedTuple):
    """Memory that a step allocates: float32 values of that shape, for ``image`` in rows beside it;
    or without a shape its gradient.
    """

    name: str
    shape: tuple[int, ...] | None
    image: str = ""

    def tensor(self, memory: dict[str, Tensor]) -> Tensor:
        if self.shape is None:
            return unscaled(memory[self.image])
        if self.image:
            return in_rows(memory[self.image], self.shape)
        any_there = next(iter(memory.values()))
        return any_there.new_empty(self.shape, dtype=torch.float32)


class Counter(NamedTuple):
    """An integer that a step needs, zero before it, and whose kernel leaves it so."""

    name: str

    def tensor(self, memory: dict[str, Tensor]) -> Tensor:
        return _zero(next(iter(memory.values())).device)


def _zero(device: torch.device) -> Tensor:
    """A zero that no two launches have at once.

    Launches of a stream run one after the other and share one. Those of a graph run whenever it is
    replayed, on whichever stream, and so have their own, which the graph sets.
    """
    if device.type != "cuda" or torch.cuda.is_current_stream_capturing():
        return torch.zeros((), dtype=torch.int32, device=device)
    # As Triton asks for the stream: an object for it takes longer.
    place = device, torch._C._cuda_getCurrentRawStream(device.index)
    zero = _zeros.get(place)
    return _zeros.setdefault(place, _lasting_zero(device)) if zero is None else zero


def _lasting_zero(device: torch.device) -> Tensor:
    """A zero in memory that outlives a call.

    A thread of its own allocates it: in the caller's the memory may be that of a graph which is
    being prepared, and which takes it back.
    """
    zero: Future[Tensor] = Future()

    def allocate() -> None:
        try:
            zero.set_result(torch.zeros((), dtype=torch.int32, device=device))
        except BaseException as error:
            zero.set_exception(error)

    # Not one of a pool, which has none left for functions that run at exit.
    Thread(target=allocate).start()
    zero.result()
    torch.cuda.current_stream(device).wait_stream(torch.cuda.default_stream(device))
    return zero.result()


_zeros: dict[tuple[torch.device, int], Tensor] = {}


def unscaled(image: Tensor) -> Tensor:
    """Memory for the gradient of an image's mean.

    A pixel's part of that is less than what float16 has, and a loss may be scaled so that it has.
    """
    dtype = torch.float32 if image.dtype == torch.float16 else image.dtype
    return torch.empty_like(image, dtype=dtype)


def in_rows(image: Tensor, shape: Sequence[int]) -> Tensor:
    """Memory for float32 images beside ``image``, in rows that begin at multiples of 16 values.

    That is known to the compiler, makes loads wide and is the same for images of any width.
    """
    return torch.empty_strided(
        shape, strides_in_rows(shape), dtype=torch.float32, device=image.device
    )


def strides_in_rows(shape: Sequence[int]) -> tuple[int, ...]:
    """The strides of `in_rows`."""
    _, channels, height, width = shape
    pitch = 16 * ceil_div(width, 16)
    return channels * height * pitch, height * pitch, pitch, 1


class Step:
    """A launch, and the memory that it needs: all but where that is.

    What Triton has compiled for such arguments it finds out anew at each launch, which takes longer
    than small images do. A step that is kept knows from its second call on.
    """

    def __init__(
        self,
        kernel: Any,
        programs: int,
        warps: int,
        *arguments: Any,
        new: tuple[New | Counter, ...] = (),
        last: tuple[str, ...] = (),
        **constants: Any,
    ) -> None:
        """Describes a launch.

        Args:
            kernel: one of Triton's.
            programs: how many.
            warps: of a program.
            *arguments: numbers, `At` and tuples of them.
            new: what it allocates.
            last: names of what nothing needs afterwards.
            **constants: the arguments that are compiled in.
        """
        self.kernel, self.programs, self.warps = kernel, programs, warps
        self.arguments, self.constants = arguments, constants
        self.new, self.last = new, last
        self.again: Any = None

    def __call__(self, memory: dict[str, Tensor]) -> None:
        for new in self.new:
            memory[new.name] = new.tensor(memory)
        if self.again is None:
            self._first(memory)
        else:
            places = {name: memory[name].data_ptr() for name in self.names}
            arguments = self.known.copy()
            for index, address in self.moving:
                arguments[index] = address(places)
            self.again(*arguments)
        for name in self.last:
            del memory[name]

    def _first(self, memory: dict[str, Tensor]) -> None:
        arguments = [_filled(argument, lambda at: at.tensor(memory)) for argument in self.arguments]
        compiled = launch(self.kernel, self.programs, self.warps, *arguments, **self.constants)
        device = next(iter(memory.values())).device
        if takes_addresses(device):
            names = self.kernel.arg_names[len(arguments) :]
            self.known = [*self.arguments, *(self.constants[name] for name in names)]
            places = [(i, list(_places(argument))) for i, argument in enumerate(self.arguments)]
            self.moving = [(i, _addresses(self.arguments[i])) for i, ats in places if ats]
            self.names = {at.name for _, ats in places for at in ats}
            self.again = _launcher(compiled, self.programs, device)


def _filled(argument: Any, place: Callable[[At], Any]) -> Any:
    """An argument with a place for each `At` in it."""
    if isinstance(argument, At):
        return place(argument)
    if not isinstance(argument, tuple):
        return argument
    parts = [_filled(part, place) for part in argument]
    return type(argument)(*parts) if hasattr(argument, "_fields") else tuple(parts)


def _addresses(argument: Any) -> Callable[[dict[str, int]], Any]:
    """Gives an argument with addresses for each `At` in it, from those of the tensors by name."""
    if isinstance(argument, At):
        name, offset = argument.name, 4 * argument.offset
        return lambda places: places[name] + offset
    if all(isinstance(part, At) for part in argument):
        ats = [(at.name, 4 * at.offset) for at in argument]
        return lambda places: tuple([places[name] + offset for name, offset in ats])
    first, rest = _addresses(argument[0]), tuple(argument[1:])
    return lambda places: (first(places), *rest)


def _places(argument: Any) -> Iterator[At]:
    if isinstance(argument, At):
        yield argument
    elif isinstance(argument, tuple):
        for part in argument:
            yield from _places(part)


def _launcher(compiled: Any, programs: int, device: torch.device) -> Callable[..., None]:
    """``compiled[programs]`` on one device. Triton describes each launch for hooks, which takes as
    long as the launch itself: not where there are none, if it is a Triton whose way is known.
    """
    import triton
    from triton import knobs
    from triton.runtime import driver

    grid = programs, 1, 1
    described: Callable[..., None] = compiled[grid]
    before, after = knobs.runtime.launch_enter_hook, knobs.runtime.launch_exit_hook
    # Somebody may have put a function where the chains of hooks are.
    known = hasattr(before, "calls") and hasattr(after, "calls")
    if not known or tuple(map(int, triton.__version__.split(".")[:2])) > KNOWN:
        return described
    stream, run = driver.active.get_current_stream, compiled.run
    kernel = compiled.function, compiled.packed_metadata, None, None, None

    def launcher(*arguments: Any) -> None:
        if before.calls or after.calls:
            described(*arguments)
        else:
            run(*grid, stream(device.index), *kernel, *arguments)

    return launcher


def takes_addresses(device: torch.device) -> bool:
    """Whether what Triton has compiled can be launched with addresses for tensors."""
    return device.type == "cuda"


def launch(kernel: Any, programs: int, warps: int, *arguments: Any, **constants: Any) -> Any:
    try:
        return kernel[(programs,)](*arguments, num_warps=warps, **OPTIONS, **constants)
    except (OSError, json.JSONDecodeError) as error:
        raise RuntimeError(
            f"Triton cannot use its cache ({type(error).__name__}: {error}): make room in "
            f"{_cache_folder()}, remove it if it is damaged, or set TRITON_CACHE_DIR to another "
            "folder"
        ) from error


def _cache_folder() -> str:
    from triton import knobs

    return str(knobs.cache.dir)


def on(device: torch.device) -> contextlib.AbstractContextManager[Any]:
    """Makes a GPU the current one: kernels run there, on its current stream."""
    if device.type in ("cpu", "meta"):
        return _NOTHING
    if device.type == "cuda" and torch.cuda.current_device() == device.index:
        return _NOTHING
    guard: contextlib.AbstractContextManager[Any] = torch.get_device_module(device).device(device)
    return guard


_NOTHING = contextlib.nullcontext()
