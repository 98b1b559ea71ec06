"""Launches the GPU path's kernels through Triton's own launcher, on a driver that only reports.

``python tests/gpu/emulator/launched.py CAPABILITY`` prints a line for each launch whose
parameters arrived as they were given, with a star where a kernel of the levels, which takes
longest, was compiled for it; `test_launches` sets up the driver and runs it.
"""

import ctypes
import re
import sys
from unittest import mock

import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.backends.nvidia.driver import CudaDriver, CudaLauncher, CudaUtils

from perceptual_losses import L1MSSSIMLoss, L1SSIMLoss, MSSSIMLoss, SSIMLoss
from perceptual_losses._ssim.gpu import backend as gpu
from perceptual_losses._ssim.gpu import launch as gpu_launch
from perceptual_losses._ssim.gpu import tiles as gpu_tiles

CAPABILITY = int(sys.argv[1])
KERNELS = "march", "coarser", "derive", "gather", "mean"
TYPES = {"u64": ctypes.c_uint64, "u32": ctypes.c_uint32, "f32": ctypes.c_float}


class Driver(CudaDriver):
    def __init__(self):
        self.utils, self.launcher_cls = CudaUtils(), CudaLauncher
        self.get_current_device = lambda: 0
        self.get_current_stream = lambda device: 0

    def get_current_target(self):
        return GPUTarget("cuda", CAPABILITY, 32)


def flat(values):
    for value in values:
        yield from flat(value) if isinstance(value, tuple) else (value,)


reports = []


def report(name, programs, threads, parameters):
    kernel, ptx = name.decode(), known.pop(0) if known else expected["ptx"]
    used.append(ptx)
    kinds = re.findall(rf"\.param \.(\w+)(?: \.ptr [^\n]*?)? {kernel}_param_\d+", ptx)
    values = [
        ctypes.cast(place, ctypes.POINTER(TYPES[kind])).contents.value
        for place, kind in zip(parameters[: len(kinds)], kinds, strict=True)
    ]
    reports.append((kernel, programs, threads, list(zip(kinds, values, strict=True))))


expected = {}
used, known = [], []
variants = set()
launch = gpu_launch.launch


def checked(kernel, programs, warps, *arguments, **constants):
    compiled = kernel.warmup(
        *arguments, grid=(programs,), num_warps=warps, **gpu_launch.OPTIONS, **constants
    )
    expected["ptx"] = compiled.asm["ptx"]
    reports.clear()
    launch(kernel, programs, warps, *arguments, **constants)
    ((name, grid, threads, parameters),) = reports
    assert (name, grid, threads) == (kernel.__name__, programs, 32 * warps)
    given = (v.data_ptr() if isinstance(v, torch.Tensor) else v for v in flat(arguments))
    # Triton has compiled ones in; two pointers of its own come last.
    for kind, arrived in parameters[:-2]:
        for value in given:
            if kind == "f32" and (arrived == value or abs(arrived - value) <= 1e-6 * abs(value)):
                break
            if kind != "f32" and arrived == value % 2 ** (8 * ctypes.sizeof(TYPES[kind])):
                break
            assert (type(value), value) == (int, 1), (name, kind, arrived)
        else:
            raise AssertionError(f"{name} got {arrived}, which nobody gave")
    assert set(given) <= {1}, name
    new = name in KERNELS and compiled.hash not in variants
    variants.add(compiled.hash)
    print(name + "*" * new)


def kept(kernel, programs, warps, *arguments, **constants):
    compiled = kernel.warmup(
        *arguments, grid=(programs,), num_warps=warps, **gpu_launch.OPTIONS, **constants
    )
    expected["ptx"] = compiled.asm["ptx"]
    return launch(kernel, programs, warps, *arguments, **constants)


def again(loss, *pairs):
    """A second call, whose launches are known, passes what the first one did but for tensors; and
    so does a third one, which a hook is told of.
    """
    found, told = [], []

    def tell(metadata):
        told.append(metadata.get()["name"])

    for pair in (*pairs, pairs[0]):
        blocks = list(pair)
        reports.clear()
        known[:] = used if found else []
        used.clear()
        if len(found) == len(pairs):
            triton.knobs.runtime.launch_enter_hook.add(tell)

        def noted(kind, blocks=blocks):
            def allocate(new, memory, allocate=kind.tensor):
                blocks.append(allocate(new, memory))
                return blocks[-1]

            return mock.patch.object(kind, "tensor", allocate)

        with noted(gpu_launch.New), noted(gpu_launch.Counter):
            loss(*pair).backward()
        found.append([(*launched, placed(parameters, blocks)) for *launched, parameters in reports])
    triton.knobs.runtime.launch_enter_hook.remove(tell)
    assert found[0] == found[1] == found[2]
    assert told == [name for name, *_ in found[0]]
    for name in told:
        print(name + "=")


def placed(parameters, blocks):
    """With places in tensors for addresses, where they are known; Triton's own come last."""
    places = []
    for kind, value in parameters[:-2]:
        inside = [
            (number, value - block.data_ptr())
            for number, block in enumerate(blocks)
            if 0 <= value - block.data_ptr() < block.untyped_storage().nbytes()
        ]
        places.append((kind, inside if kind == "u64" else value))
    return places


def main():
    library = ctypes.CDLL("libcuda.so.1")
    receive = ctypes.CFUNCTYPE(
        *(None, ctypes.c_char_p, ctypes.c_int, ctypes.c_int, ctypes.POINTER(ctypes.c_void_p))
    )(report)
    library.report_to(receive)
    triton.runtime.driver.set_active(Driver())
    machine = gpu_tiles.Machine(f"sm_{CAPABILITY}", 132)
    with (
        # Their memory is the CPU's, and nobody reads it.
        mock.patch.object(gpu, "_interpreted", return_value=True),
        mock.patch.object(gpu, "_machine", return_value=machine),
        mock.patch.object(gpu_launch, "takes_addresses", return_value=True),
        mock.patch.object(gpu_launch, "launch", kept),
    ):
        pairs = [[torch.rand(2, 3, 90, 130, requires_grad=True) for _ in "xy"] for _ in range(2)]
        again(L1MSSSIMLoss(levels=3, backend="triton"), *pairs)
        again(L1SSIMLoss(backend="triton"), *pairs)
        again(SSIMLoss(window_size=25, padding="zeros", backend="triton"), *pairs)
    gpu.forget()
    gpu._sweep.cache_clear()
    gpu._product.cache_clear()
    with (
        mock.patch.object(gpu_launch, "launch", checked),
        mock.patch.object(gpu, "_interpreted", return_value=True),
        mock.patch.object(gpu, "_machine", return_value=machine),
    ):
        x, y = torch.rand(2, 2, 3, 96, 131)
        x.requires_grad_()
        SSIMLoss(backend="triton")(x, y).backward()
        L1MSSSIMLoss(levels=3, backend="triton")(x, y).backward()
        SSIMLoss(window_size=25, padding="zeros", backend="triton")(x, y).backward()
        L1SSIMLoss(backend="triton")(x, y).backward()
        L1SSIMLoss(backend="triton")(x.detach(), y)
        halves = x.detach().bfloat16().contiguous(memory_format=torch.channels_last)
        halves.requires_grad_()
        loss = MSSSIMLoss(levels=2, padding="symmetric", backend="triton")
        loss(halves, y.bfloat16().requires_grad_(), mask=torch.rand(96, 131)).backward()
        x, y = torch.rand(2, 2, 3, 176, 256)
        x.requires_grad_()
        MSSSIMLoss(backend="triton")(x, y).backward()
        MSSSIMLoss(backend="triton")(x.detach(), y)
        x, y = torch.rand(2, 1, 1, 20, 32)
        SSIMLoss(window_size=17, padding="zeros", reduction="none", backend="triton")(x, y)


if __name__ == "__main__":
    main()
