"""Stand-ins for CUDA's runtime and driver: `cuda` tensors and launches where there is no GPU.

torch and Triton work as they do on a GPU, up to the driver: the caching allocator, autograd's
thread of each device, streams, graphs and Triton's launcher. Kernels do nothing, and so memory
holds no results. `record` tells what the devices were told.

The stand-ins have to be loaded before torch is. So whoever needs them runs in a process of its own,
``python -m tests.gpu.emulator.standins MODULE ARGUMENTS``, which runs a module once they are there.
"""

from __future__ import annotations

import contextlib
import ctypes
import functools
import hashlib
import importlib.util
import os
import platform
import runpy
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

HERE = Path(__file__).parent
SOURCES = sorted(HERE.glob("cuda_*.c"))
# Ignored by git.
BUILDS = HERE.parents[2] / "build" / "cuda-standins"
COMPILER = os.environ.get("CC", "cc")

# A GPU to work with, another one, and one that is too old for the Triton kernels.
DEVICES = 3
OLD_DEVICE = 2


def unavailable() -> str | None:
    """The reason why the stand-ins cannot be built here, or ``None``."""
    if (sys.platform, platform.machine()) != ("linux", "x86_64"):
        return "the stand-ins for CUDA are for Linux on x86-64"
    if shutil.which(COMPILER) is None:
        return f"there is no C compiler: {COMPILER}"
    if len(_headers()) < 2:
        return "torch was installed without CUDA 13 and Triton"
    return None


def _headers() -> list[Path]:
    """The folders of CUDA's headers in the wheels that torch depends on.

    A few headers that those of CUDA 13 include come only with Triton.
    """
    found = []
    for package, folder in ("nvidia", "cu13/include"), ("triton", "backends/nvidia/include"):
        spec = importlib.util.find_spec(package)
        places = (spec and spec.submodule_search_locations) or ()
        found += [path for place in places if (path := Path(place) / folder).exists()]
    return found


def build() -> Path:
    """The folder with both libraries, which are compiled if there are none of these sources."""
    headers = [f"-I{folder}" for folder in _headers()]
    command = [COMPILER, "-O2", "-Wall", "-shared", "-fPIC", *headers]
    files = sorted(HERE.glob("cuda_*"))
    content = "\0".join([*command, *(file.read_text() for file in files)])
    folder = BUILDS / hashlib.sha256(content.encode()).hexdigest()[:16]
    if folder.exists():
        return folder
    BUILDS.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=BUILDS) as name:
        made = Path(name) / "made"
        made.mkdir()
        runtime, driver = made / "libcudart.so.13", made / "libcuda.so.1"
        # All is in the first library, whose symbols have the version that torch asks for. The
        # second one only has the name that Triton opens.
        named = ["-Wl,-soname,libcudart.so.13", "-Wl,--default-symver"]
        subprocess.run([*command, *named, *SOURCES, "-o", runtime, "-ldl", "-lpthread"], check=True)
        empty = [*command, "-x", "c", os.devnull, "-x", "none", "-Wl,--no-as-needed", runtime]
        subprocess.run([*empty, "-Wl,-soname,libcuda.so.1", "-o", driver], check=True)
        # Another process may have built them meanwhile.
        with contextlib.suppress(OSError):
            made.rename(folder)
    return folder


def load() -> None:
    """Builds the stand-ins if they are not built, and loads them in CUDA's place."""
    if "torch" in sys.modules:
        raise RuntimeError("torch is loaded, and with it CUDA's own runtime")
    folder = build()
    for name in ("libcudart.so.13", "libcuda.so.1"):
        # A library of the same name that torch or Triton opens later is then this one.
        ctypes.CDLL(str(folder / name), ctypes.RTLD_GLOBAL)
    os.environ["TRITON_LIBCUDA_PATH"] = str(folder)


@functools.cache
def _library() -> ctypes.CDLL | None:
    """The stand-ins, if this process has loaded them."""
    try:
        library = ctypes.CDLL("libcuda.so.1", os.RTLD_NOLOAD)
        library.standins_events.restype = ctypes.c_size_t
        library.standins_block.restype = ctypes.c_uint32
    except (OSError, AttributeError):
        return None
    return library


def loaded() -> bool:
    """Whether this process has the stand-ins in CUDA's place."""
    return _library() is not None


class _Parameter(ctypes.Structure):
    _fields_ = (
        ("value", ctypes.c_uint64),
        ("size", ctypes.c_uint32),
        ("block", ctypes.c_uint32),
        ("offset", ctypes.c_uint64),
        ("block_bytes", ctypes.c_uint64),
    )


class _Event(ctypes.Structure):
    _fields_ = (
        ("kind", ctypes.c_int32),
        ("device", ctypes.c_int32),
        ("captured", ctypes.c_int32),
        ("replayed", ctypes.c_int32),
        ("triton", ctypes.c_int32),
        ("parameters", ctypes.c_uint32),
        ("stream", ctypes.c_uint64),
        ("function", ctypes.c_uint64),
        ("name", ctypes.c_char_p),
        ("grid", ctypes.c_uint32 * 3),
        ("threads", ctypes.c_uint32 * 3),
        ("bytes", ctypes.c_uint64),
        ("parameter", _Parameter * 256),
    )


KINDS = ("allocation", "load", "launch", "fill", "copy", "wait")


class Parameter(NamedTuple):
    """A parameter as a kernel gets it.

    Attributes:
        value: its bits, as an unsigned number.
        size: its bytes.
        block: the number of the memory block that the address lies in; 0 for other values.
        offset: the bytes from the block's start.
        block_bytes: the bytes of the block.
    """

    value: int
    size: int
    block: int
    offset: int
    block_bytes: int


class Event(NamedTuple):
    """A thing that a device was told.

    Attributes:
        kind: one of `KINDS`.
        device: the number of the device.
        stream: the stream as torch's ``cuda_stream``; 0 is the default one.
        captured: whether it went into a graph, and not to the device.
        replayed: whether it came out of a graph.
        triton: whether it is a launch of a Triton kernel, whose parameters are known.
        name: the name of the kernel.
        function: the identity of the compiled kernel on the device.
        grid: the number of programs, three ways.
        threads: the number of threads of a program, three ways.
        bytes: the size of an allocation, a fill, a copy or a launch's dynamic shared memory.
        parameters: the kernel's parameters, but for the two that Triton adds.
    """

    kind: str
    device: int
    stream: int
    captured: bool
    replayed: bool
    triton: bool
    name: str
    function: int
    grid: tuple[int, ...]
    threads: tuple[int, ...]
    bytes: int
    parameters: tuple[Parameter, ...]


class Recording:
    """The things that the devices were told, in their order."""

    def __init__(self) -> None:
        self.events: list[Event] = []

    def of(self, kind: str) -> list[Event]:
        """The events of that kind."""
        return [event for event in self.events if event.kind == kind]

    @property
    def launches(self) -> list[Event]:
        """All launches, torch's own too."""
        return self.of("launch")

    @property
    def triton(self) -> list[Event]:
        """The launches of Triton kernels."""
        return [event for event in self.launches if event.triton]


def block(address: int) -> int:
    """The number of the memory block that an address lies in, or 0."""
    library = _library()
    assert library is not None, "the stand-ins for CUDA are not loaded"
    number: int = library.standins_block(ctypes.c_void_p(address))
    return number


@contextlib.contextmanager
def record() -> Iterator[Recording]:
    """Records what happens meanwhile; the result is complete afterwards."""
    library, recording = _library(), Recording()
    assert library is not None, "the stand-ins for CUDA are not loaded"
    library.standins_record(1)
    try:
        yield recording
    finally:
        library.standins_record(0)
        events = ctypes.POINTER(_Event)()
        count = library.standins_events(ctypes.byref(events))
        recording.events = [_event(events[i]) for i in range(count)]


def _event(event: _Event) -> Event:
    # Two pointers of Triton's own come last.
    count = max(0, event.parameters - 2)
    parameters = [
        Parameter(*(getattr(parameter, name) for name in Parameter._fields))
        for parameter in event.parameter[:count]
    ]
    return Event(
        KINDS[event.kind],
        event.device,
        event.stream,
        bool(event.captured),
        bool(event.replayed),
        bool(event.triton),
        (event.name or b"").decode(),
        event.function,
        tuple(event.grid),
        tuple(event.threads),
        event.bytes,
        tuple(parameters),
    )


def main() -> None:
    """Runs a module with the stand-ins loaded, where they can be."""
    module, *arguments = sys.argv[1:]
    reason = unavailable()
    if reason is not None:
        print(f"{module} is not run: {reason}")
        return
    load()
    sys.argv = [module, *arguments]
    runpy.run_module(module, run_name="__main__", alter_sys=True)


if __name__ == "__main__":
    main()
