"""Kernel launches with symbolic buffers, planned once and repeated with new addresses."""

from __future__ import annotations

import contextlib
import dataclasses
import json
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from threading import Thread
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ..backend import gradient_memory
from .programs import ceil_div

# The filters are multiply-adds, which Triton 3.10 will no longer fuse unless it is asked to.
OPTIONS = {"enable_fp_fusion": True}
NEWEST_TESTED_TRITON = (3, 9)


@dataclasses.dataclass(frozen=True)
class Buffer:
    """An address in the tensor with this name, so many float32 values after its first."""

    name: str
    offset: int = 0

    def shifted(self, values: int) -> Buffer:
        """The address so many float32 values further on."""
        return Buffer(self.name, self.offset + values)

    def of(self, tensor: Tensor) -> Tensor:
        """The part of the tensor that begins here."""
        return tensor.view(-1)[self.offset :] if self.offset else tensor


class Image(NamedTuple):
    """The place of an image, or of a gradient, in memory."""

    address: Buffer
    shape: tuple[int, ...]
    strides: tuple[int, ...]
    aligned: bool = True

    @property
    def dense(self) -> bool:
        """Whether the compiler can tell that neighbouring columns are one aligned access.

        It is told of a number whether it is 1, and whether 16 divides it.
        """
        *others, step = self.strides
        return self.aligned and step == 1 and not any(stride % 16 for stride in others)


class Allocation(NamedTuple):
    """Memory that a launch allocates first.

    Attributes:
        name: the name of the tensor.
        shape: the shape of its float32 values, or ``None`` for the gradient memory of ``image``.
        image: the name of an image; with a shape, the memory lies in rows on the image's device.
    """

    name: str
    shape: tuple[int, ...] | None
    image: str = ""


class Counter(NamedTuple):
    """An integer that is zero before a launch, and that the kernel leaves at zero."""

    name: str


class Launch:
    """A kernel launch whose arguments name the tensors that they lie in."""

    def __init__(
        self,
        kernel: Any,
        programs: int,
        warps: int,
        *arguments: Any,
        allocations: tuple[Allocation | Counter, ...] = (),
        frees: tuple[str, ...] = (),
        **constants: Any,
    ) -> None:
        """Describes a launch.

        Args:
            kernel: a Triton kernel.
            programs: the number of programs.
            warps: the number of warps of a program.
            *arguments: numbers, `Buffer` and tuples of these.
            allocations: the memory that the launch allocates first.
            frees: the names of tensors that no later launch needs.
            **constants: the arguments that are compiled in.
        """
        self.kernel, self.programs, self.warps = kernel, programs, warps
        self.arguments, self.constants = arguments, constants
        self.allocations, self.frees = allocations, frees


class Launches:
    """The launches of a call, which can be repeated with other tensors of the same layouts.

    The first call lets Triton specialise and compile. Later calls reuse the compiled kernels and
    only fill in addresses, because Triton's own handling of arguments takes longer than the work on
    a small image.
    """

    def __init__(
        self,
        launches: Sequence[Launch],
        device: torch.device,
        inputs: Sequence[str],
        outputs: Sequence[str],
    ) -> None:
        """Numbers the tensors.

        Args:
            launches: the launches in their order.
            device: the device they run on.
            inputs: the names of the tensors that a call is given.
            outputs: the names of the tensors that it returns.
        """
        self._launches, self._device = launches, device
        allocated = [a.name for launch in launches for a in launch.allocations]
        self._numbers = {name: number for number, name in enumerate([*inputs, *allocated])}
        self._outputs = [self._numbers[name] for name in outputs]
        self._bound: list[_Bound] | None = None

    def __call__(self, *tensors: Tensor) -> list[Tensor]:
        """Runs the launches on the device's current stream, and returns the outputs."""
        bound = self._bound
        # Somebody, a profiler say, may want each launch described, as Triton's own way does.
        if bound is None or _hooks[0].calls or _hooks[1].calls:
            return self._run(tensors)
        device = self._device.index
        if torch._C._cuda_getDevice() != device:
            with torch.cuda.device(device):
                return self(*tensors)
        stream = torch._C._cuda_getCurrentRawStream(device)
        memory: list[Any] = [*tensors]
        addresses = [tensor.data_ptr() for tensor in tensors]
        for step in bound:
            for allocate in step.allocators:
                tensor = allocate(memory)
                memory.append(tensor)
                addresses.append(tensor.data_ptr())
            arguments = step.template.copy()
            arguments[_STREAM] = stream
            for index, number, offset in step.buffers:
                arguments[index] = addresses[number] + offset
            for index, number, offset, others in step.images:
                arguments[index] = (addresses[number] + offset, *others)
            for index, buffers in step.groups:
                arguments[index] = tuple([addresses[n] + offset for n, offset in buffers])
            step.run(*arguments)
            for number in step.frees:
                memory[number] = None
        return list(map(memory.__getitem__, self._outputs))

    def _run(self, tensors: Sequence[Tensor]) -> list[Tensor]:
        """Runs the launches through Triton, and keeps what it has compiled."""
        memory: list[Any] = [*tensors]
        bound: list[_Bound] | None = []
        with on(self._device):
            for step in self._launches:
                allocators = [self._allocator(allocation) for allocation in step.allocations]
                memory.extend(allocate(memory) for allocate in allocators)
                arguments = [
                    _filled(argument, lambda b: b.of(memory[self._numbers[b.name]]))
                    for argument in step.arguments
                ]
                compiled = launch(
                    step.kernel, step.programs, step.warps, *arguments, **step.constants
                )
                frees = [self._numbers[name] for name in step.frees]
                for number in frees:
                    memory[number] = None
                if bound is not None and _can_bind(compiled, self._device):
                    bound.append(self._bind(step, compiled, allocators, frees))
                else:
                    bound = None
        self._bound = bound
        return [memory[number] for number in self._outputs]

    def _bind(
        self, step: Launch, compiled: Any, allocators: list[_Allocator], frees: list[int]
    ) -> _Bound:
        names = step.kernel.arg_names[len(step.arguments) :]
        template = [
            *(step.programs, 1, 1, None),
            *(compiled.function, compiled.packed_metadata, None, None, None),
        ]
        first = len(template)
        template += [*step.arguments, *(step.constants[name] for name in names)]
        bound = _Bound(allocators, template, [], [], [], compiled.run, frees)
        for index, argument in enumerate(step.arguments, first):
            if isinstance(argument, Buffer):
                bound.buffers.append((index, *self._place(argument)))
            elif isinstance(argument, tuple) and argument and isinstance(argument[-1], Buffer):
                bound.groups.append((index, list(map(self._place, argument))))
            elif isinstance(argument, tuple) and argument and isinstance(argument[0], Buffer):
                address, *others = argument
                bound.images.append((index, *self._place(address), others))
        return bound

    def _place(self, buffer: Buffer) -> tuple[int, int]:
        """The number of a buffer's tensor, and the bytes after its first."""
        return self._numbers[buffer.name], 4 * buffer.offset

    def _allocator(self, allocation: Allocation | Counter) -> _Allocator:
        device = self._device
        if isinstance(allocation, Counter):
            return lambda memory: _zero(device)
        shape = allocation.shape
        if shape is None:
            number = self._numbers[allocation.image]
            return lambda memory: gradient_memory(memory[number])
        if allocation.image:
            strides = strides_in_rows(shape)
            return lambda memory: torch.empty_strided(
                shape, strides, dtype=torch.float32, device=device
            )
        # Memory like a template's takes half the time of memory of a size.
        template = torch.empty((), dtype=torch.float32, device=device).expand(shape)
        return lambda memory: torch.empty_like(template)


_Allocator = Callable[[list[Any]], Tensor]
# The place of the stream among the arguments of a compiled kernel.
_STREAM = 3


class _Bound(NamedTuple):
    """A launch of a compiled kernel, in which a call fills in the stream and the addresses.

    Attributes:
        allocators: the functions that allocate its memory.
        template: the arguments of ``run``, in which the rest is filled in.
        buffers: the index of an address among them, the number of its tensor, and an offset.
        images: the same for an image's address, or that of maps, with what follows it.
        groups: the index of a tuple of addresses, and for each a number and an offset.
        run: Triton's launcher.
        frees: the numbers of the tensors that no later launch needs.
    """

    allocators: list[_Allocator]
    template: list[Any]
    buffers: list[tuple[int, int, int]]
    images: list[tuple[int, int, int, Any]]
    groups: list[tuple[int, list[tuple[int, int]]]]
    run: Callable[..., None]
    frees: list[int]


def _filled(argument: Any, tensor: Callable[[Buffer], Any]) -> Any:
    """An argument with a tensor for each `Buffer` in it."""
    if isinstance(argument, Buffer):
        return tensor(argument)
    if not isinstance(argument, tuple):
        return argument
    parts = [_filled(part, tensor) for part in argument]
    return type(argument)(*parts) if hasattr(argument, "_fields") else tuple(parts)


# Triton's chains of functions that a launch calls before and after, once a launch has been bound.
_hooks: tuple[Any, Any] = (None, None)


def _can_bind(compiled: Any, device: torch.device) -> bool:
    """Whether the way to launch what this Triton has compiled is known, for hooks too."""
    global _hooks
    if not takes_addresses(device):
        return False
    import triton
    from triton import knobs

    before, after = knobs.runtime.launch_enter_hook, knobs.runtime.launch_exit_hook
    # Somebody may have put a function where the chains of hooks are.
    if not (hasattr(before, "calls") and hasattr(after, "calls")):
        return False
    _hooks = before, after
    version = tuple(map(int, triton.__version__.split(".")[:2]))
    return version <= NEWEST_TESTED_TRITON


def takes_addresses(device: torch.device) -> bool:
    """Whether compiled kernels can be launched with addresses in place of tensors."""
    return device.type == "cuda"


def launch(kernel: Any, programs: int, warps: int, *arguments: Any, **constants: Any) -> Any:
    """Launches a kernel through Triton, which compiles it first where it is new."""
    try:
        return kernel[(programs,)](*arguments, num_warps=warps, **{**OPTIONS, **constants})
    except (OSError, json.JSONDecodeError) as error:
        raise RuntimeError(
            f"Triton cannot use its cache ({type(error).__name__}: {error}): make room in "
            f"{_cache_folder()}, remove it if it is damaged, or set TRITON_CACHE_DIR to another "
            "folder"
        ) from error


def _cache_folder() -> str:
    from triton import knobs

    return str(knobs.cache.dir)


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


def in_rows(image: Tensor, shape: Sequence[int]) -> Tensor:
    """Memory for float32 images on the device of ``image``, in rows of multiples of 16 values.

    The compiler then knows that rows are aligned, loads several columns at once, and compiles the
    same for images of any width.
    """
    return torch.empty_strided(
        shape, strides_in_rows(shape), dtype=torch.float32, device=image.device
    )


def strides_in_rows(shape: Sequence[int]) -> tuple[int, ...]:
    """The strides of `in_rows`."""
    *others, width = shape
    strides = [1, 16 * ceil_div(width, 16)]
    for side in reversed(others[1:]):
        strides.append(strides[-1] * side)
    return tuple(reversed(strides))


def on(device: torch.device) -> contextlib.AbstractContextManager[Any]:
    """Makes a GPU the current one: kernels run there, on its current stream."""
    if device.type in ("cpu", "meta"):
        return _NOTHING
    if device.type == "cuda" and torch.cuda.current_device() == device.index:
        return _NOTHING
    guard: contextlib.AbstractContextManager[Any] = torch.get_device_module(device).device(device)
    return guard


_NOTHING = contextlib.nullcontext()
