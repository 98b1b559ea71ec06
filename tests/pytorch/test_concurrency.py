"""Many threads, many processes, the end of the interpreter, and caches that are no good."""

import concurrent.futures
import errno
import functools
import hashlib
import importlib.util
import json
import multiprocessing
import os
import re
import signal
import subprocess
import sys
import threading

import numba
import numpy as np
import pytest
import torch

from perceptual_losses import (
    L1MSSSIMLoss,
    L1SSIMLoss,
    LPIPSLoss,
    MSSSIMLoss,
    SSIMLoss,
    VGGLoss,
    ssim,
)
from perceptual_losses._runtime.numba_kernels import entry
from perceptual_losses._ssim.gpu import backend as gpu
from perceptual_losses._ssim.gpu import launch as gpu_launch

LIMIT = 300
"""Seconds until what does not end counts as deadlocked."""

# Newer Pythons warn of a fork beside threads: that it works is what is tested.
pytestmark = [
    pytest.mark.filterwarnings("ignore:.*multi-threaded.*:DeprecationWarning"),
    pytest.mark.large,
]


@pytest.fixture(autouse=True)
def two_threads():
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


def pair(shape, dtype, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.rand(2, *shape, generator=generator).to(dtype).unbind()


def step(loss, x, y):
    """Bits of a value and of its gradient."""
    x = x.clone().requires_grad_()
    value = loss(x, y)
    (gradient,) = torch.autograd.grad(value, x)
    return tuple(found.detach().double().numpy().tobytes() for found in (value, gradient))


SMALL = {"window_size": 3, "weights": (0.4, 0.6)}
STRUCTURAL = [
    SSIMLoss(backend="numba"),
    SSIMLoss(window_size=3, padding="symmetric", backend="numba"),
    MSSSIMLoss(**SMALL, backend="numba"),
    L1SSIMLoss(window_size=3, padding="zeros", backend="numba"),
    L1MSSSIMLoss(**SMALL, backend="numba"),
]
SHAPES = [(1, 1, 11, 11), (2, 3, 16, 18), (1, 3, 33, 31), (3, 1, 64, 64)]
DTYPES = [torch.float32, torch.float64, torch.bfloat16]


def features():
    torch.manual_seed(0)
    linear = {f"lin{i}.model.1.weight": torch.rand(1, c, 1, 1) for i, c in enumerate(CHANNELS)}
    with pytest.warns(UserWarning, match="random"):
        lpips = LPIPSLoss(backbone="alexnet", weights=None, linear=linear)
    with pytest.warns(UserWarning, match="random"):
        vgg = VGGLoss({"relu1_1": 1.0, "relu3_1": 1.0}, weights=None)
    return [lpips, vgg]


CHANNELS = (64, 192, 384, 256, 256)


def calls():
    found = [
        functools.partial(step, loss, *pair(shape, dtype))
        for loss in STRUCTURAL
        for shape in SHAPES
        for dtype in DTYPES
    ]
    # Enough pixels for both of torch's threads.
    found.append(functools.partial(step, STRUCTURAL[0], *pair((2, 3, 64, 64), torch.float32)))
    found.append(functools.partial(step, STRUCTURAL[2], *pair((2, 3, 65, 61), torch.float32)))
    return found


def in_eight_threads(calls, count):
    """Each thread runs as many calls, in an order of its own; what differs from one thread's."""
    expected = [call() for call in calls]
    start = threading.Barrier(8, timeout=LIMIT)

    def run(seed):
        order = np.random.default_rng(seed).integers(len(calls), size=count)
        start.wait()
        return [index for index in order if calls[index]() != expected[index]]

    with concurrent.futures.ThreadPoolExecutor(8) as threads:
        return [index for wrong in threads.map(run, range(8), timeout=LIMIT) for index in wrong]


def test_a_thousand_calls_in_each_of_eight_threads():
    assert in_eight_threads(calls(), 1000) == []


def test_features_in_eight_threads():
    images = pair((1, 3, 64, 64), torch.float32)
    losses = [functools.partial(step, loss, *images) for loss in features()]
    assert in_eight_threads(losses, 5) == []


def alike(method, found, expected):
    """Bit for bit in a forked process, which has the same code.

    Another one may have code that was compiled with other kernels beside it, of which the first to
    be loaded lends the others what they have in common: then the last digit may differ.
    """
    if method == "fork":
        return found == expected
    return all(
        # The gradients of few pixels are in bfloat16.
        np.allclose(np.frombuffer(a), np.frombuffer(b), rtol=1e-2, atol=1e-7)
        for one, other in zip(found, expected, strict=True)
        for a, b in zip(one, other, strict=True)
    )


def work(results):
    torch.set_num_threads(2)
    results.put([call() for call in calls()[::7]])


def compare_with_other_processes(method):
    """The parent has used the kernels, on torch's threads."""
    expected = [call() for call in calls()[::7]]
    context = multiprocessing.get_context(method)
    results = context.Queue()
    processes = [context.Process(target=work, args=(results,), daemon=True) for _ in range(2)]
    for process in processes:
        process.start()
    for _ in processes:
        assert alike(method, results.get(timeout=LIMIT), expected)
    for process in processes:
        process.join(LIMIT)
        assert process.exitcode == 0


@pytest.fixture(scope="module")
def in_new_process():
    """Runs a function where nothing else has run.

    Once torch.compile or torch.export has run, torch raises in the backward of forked processes.
    """
    options = {"mp_context": multiprocessing.get_context("spawn")}
    initial = {"initializer": torch.set_num_threads, "initargs": (2,)}
    with concurrent.futures.ProcessPoolExecutor(1, **options, **initial) as processes:
        yield lambda function, *arguments: processes.submit(function, *arguments).result()


def test_in_a_forked_process(in_new_process):
    in_new_process(compare_with_other_processes, "fork")


def test_in_a_spawned_process():
    compare_with_other_processes("spawn")


class Judged(torch.utils.data.Dataset):
    """Images with how similar they are to their negatives."""

    def __len__(self):
        return 6

    def __getitem__(self, index):
        x, _ = pair((2, 3, 64, 64), torch.float32, seed=index)
        return ssim(x, 1 - x, backend="numba")


@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_in_a_loader(method):
    expected = [Judged()[index].item() for index in range(6)]
    loader = torch.utils.data.DataLoader(
        Judged(), num_workers=2, multiprocessing_context=method, timeout=LIMIT
    )
    assert [value.item() for value in loader] == pytest.approx(expected, rel=1e-6)


def fork_beside_calls_of_other_threads():
    call = functools.partial(step, STRUCTURAL[0], *pair((2, 3, 64, 64), torch.float32))
    expected, done = call(), threading.Event()
    context = multiprocessing.get_context("fork")

    def busy():
        while not done.is_set():
            assert call() == expected

    with concurrent.futures.ThreadPoolExecutor(3) as threads:
        running = [threads.submit(busy) for _ in range(3)]
        try:
            for _ in range(10):
                results = context.Queue()
                process = context.Process(
                    target=lambda r: r.put(call()), args=(results,), daemon=True
                )
                process.start()
                assert results.get(timeout=LIMIT) == expected
                process.join(LIMIT)
                assert process.exitcode == 0
        finally:
            done.set()
        for thread in running:
            thread.result(LIMIT)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="there is no fork")
def test_forks_beside_calls_of_other_threads(in_new_process):
    in_new_process(fork_beside_calls_of_other_threads)


COMPILED_BESIDE = """
import os, signal, threading, warnings
import numpy as np
from numba import njit
from numba.core import event
from perceptual_losses._runtime.numba_kernels import entry

warnings.simplefilter("ignore")
compiling = threading.Event()

class Listener(event.Listener):
    def on_start(self, event):
        compiling.set()
    def on_end(self, event):
        pass

@entry
def kernel(a):
    a[0] = 1

def slow(a):
    for _ in range(3):
        np.linalg.svd(np.sort(a) @ a.T)
    return a

event.register("numba:compile", Listener())
thread = threading.Thread(target=njit(slow).compile, args=("(float64[:,::1],)",))
thread.start()
compiling.wait()
child = os.fork()
if child == 0:
    signal.alarm(60)
    out = np.zeros(1)
    kernel(out)
    os._exit(int(out[0] != 1))
_, status = os.waitpid(child, 0)
thread.join()
print(os.waitstatus_to_exitcode(status))
"""


def python(code, *arguments, **environment):
    return subprocess.Popen(
        [sys.executable, "-c", code, *arguments],
        env={**os.environ, **{name: str(value) for name, value in environment.items()}},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def finished(process):
    """What it wrote, once it has ended without an error."""
    try:
        out, errors = process.communicate(timeout=LIMIT)
    finally:
        process.kill()
    assert process.returncode == 0, errors[-4000:]
    # The first process on a machine compiles, and says so.
    return out, re.sub("^perceptual_losses is compiling .*\n", "", errors, flags=re.MULTILINE)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="there is no fork")
def test_a_fork_while_another_thread_compiles():
    assert finished(python(COMPILED_BESIDE, NUMBA_CACHE_DIR=os.devnull))[0] == "0\n"


BEGIN = """
import threading
import torch
import perceptual_losses
from perceptual_losses._runtime import threads
torch.set_num_threads(2)
loss = perceptual_losses.SSIMLoss()
y = torch.rand(2, 3, 128, 128, requires_grad=True)
"""
POOL = "threads._forked = True\n"
either_pool = pytest.mark.parametrize("threads", ["", POOL], ids=["OpenMP", "pool"])

DESTRUCTOR = """
class Last:
    def __init__(self):
        self.loss, self.y, self.print, self.error = loss, y, print, RuntimeError
    def __del__(self):
        try:
            self.loss(self.y, self.y)
        except self.error as error:
            self.print(error, flush=True)
last = Last()
print(loss(y, y).item())
"""


@either_pool
def test_a_destructor_at_the_end_of_the_interpreter(threads):
    """Where torch's registries are gone, and its own errors are of its internals."""
    out, errors = finished(python(BEGIN + threads + DESTRUCTOR))
    value, error = out.splitlines()
    assert (value, errors) == ("0.0", "")
    assert error.startswith("the interpreter is shutting down")


DAEMONS = """
def call_for_ever():
    while True:
        assert loss(y, y).item() == 0
        called.set()
called = threading.Event()
for _ in range(3):
    threading.Thread(target=call_for_ever, daemon=True).start()
called.wait()
print("done", flush=True)
"""


@either_pool
def test_daemon_threads_do_not_keep_the_interpreter(threads):
    process = python(BEGIN + threads + DAEMONS)
    out, _ = process.communicate(timeout=LIMIT)
    assert out == "done\n"
    # Python ends a thread inside a call of torch, whose frames then call terminate: without this
    # package too.
    assert process.returncode in (0, -signal.SIGABRT)


VALUE = """
import torch
from perceptual_losses import ssim
x = torch.linspace(0, 1, 256).reshape(1, 1, 16, 16)
print(ssim(x, x.square(), backend="numba").item().hex())
from perceptual_losses._ssim.cpu import kernels as cpu_kernels
print(sum(cpu_kernels.march.stats.cache_hits.values()))
"""


@pytest.fixture(scope="module")
def value():
    x = torch.linspace(0, 1, 256).reshape(1, 1, 16, 16)
    return ssim(x, x.square(), backend="numba").item().hex()


def test_two_processes_fill_a_cache_and_others_find_it(tmp_path, value):
    filling = [python(VALUE, NUMBA_CACHE_DIR=tmp_path) for _ in range(2)]
    for process in filling:
        assert finished(process)[0].split()[0] == value
    assert finished(python(VALUE, NUMBA_CACHE_DIR=tmp_path)) == (f"{value}\n1\n", "")
    for path in tmp_path.rglob("*.nb*"):
        path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    assert finished(python(VALUE, NUMBA_CACHE_DIR=tmp_path)) == (f"{value}\n0\n", "")


FULL = """
import resource, signal
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096))
"""


@pytest.mark.skipif(os.name != "posix", reason="the limit is POSIX's")
def test_a_cache_without_room(tmp_path, value):
    out, errors = finished(python(FULL + VALUE, NUMBA_CACHE_DIR=tmp_path))
    assert out == f"{value}\n0\n"
    assert f"compiled kernels cannot be kept in {tmp_path}" in errors
    assert f"[Errno {errno.EFBIG}]" in errors
    assert "set NUMBA_CACHE_DIR" in errors


# The entries of the cache, with a kernel that compiles in no time.


@pytest.fixture
def process(tmp_path, monkeypatch):
    """A kernel as the next process has it, for which there is the disk alone."""
    folder = tmp_path / "cache"
    monkeypatch.setattr(numba.config, "CACHE_DIR", str(folder))
    source = tmp_path / "doubling.py"
    source.write_text(
        "def double(a, out):\n    for i in range(a.shape[0]):\n        out[i] = 2 * a[i]\n"
    )

    def start():
        spec = importlib.util.spec_from_file_location("doubling", source)
        module = importlib.util.module_from_spec(spec)
        monkeypatch.setitem(sys.modules, "doubling", module)
        spec.loader.exec_module(module)
        return entry(module.double)

    start.folder = folder
    return start


def doubled(kernel, *kinds):
    """How many of the calls found their code on disk."""
    for kind in kinds or (np.float32,):
        out = np.zeros(9, kind)
        kernel(np.arange(9, dtype=kind), out)
        assert (out == 2 * np.arange(9)).all()
    return sum(kernel.stats.cache_hits.values())


def flipped(content):
    """Bits of a few bytes, the length being right: of the pickle, and of the machine code."""
    damaged = bytearray(content)
    for place in range(len(damaged) // 4, len(damaged), 101):
        damaged[place] ^= 0xFF
    return bytes(damaged)


DAMAGES = {
    "empty": lambda content: b"",
    "first byte": lambda content: content[:1],
    "half": lambda content: content[: len(content) // 2],
    "all but one byte": lambda content: content[:-1],
    "noise": lambda content: np.random.default_rng(0).bytes(len(content)),
    "zeros": lambda content: bytes(len(content)),
    "zeros from the middle": lambda content: content[: len(content) // 2].ljust(
        len(content), b"\0"
    ),
    "flipped bits": flipped,
    "another pickle": lambda content: b"\x80\x04K\x01.",
}


@pytest.mark.parametrize("kind", ["nbi", "nbc"])
@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_cache_is_made_anew(process, damage, kind):
    assert doubled(process()) == 0
    assert doubled(process()) == 1
    (path,) = process.folder.rglob(f"*.{kind}")
    path.write_bytes(DAMAGES[damage](path.read_bytes()))
    assert doubled(process()) == 0
    assert doubled(process()) == 1


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="object files are ELF on Linux")
def test_damaged_machine_code_does_not_run(process):
    """What is around it reads as it should."""
    assert doubled(process()) == 0
    (path,) = process.folder.rglob("*.nbc")
    content = bytearray(path.read_bytes())
    # An object file's instructions come right behind its header.
    begin = content.index(b"\x7fELF") + 64
    content[begin : begin + 64] = bytes(64)
    path.write_bytes(content)
    assert doubled(process()) == 0
    assert doubled(process()) == 1


def test_a_cache_with_the_code_of_another_signature(process):
    """As two processes may leave it that save at once."""
    kinds = np.float32, np.float64
    assert doubled(process(), *kinds) == 0
    assert doubled(process(), *kinds) == 2
    one, other = process.folder.rglob("*.nbc")
    code = one.read_bytes()
    one.write_bytes(other.read_bytes())
    other.write_bytes(code)
    doubled(process(), *kinds)
    assert doubled(process(), *kinds) == 2


def test_a_cache_whose_code_is_gone(process):
    assert doubled(process()) == 0
    (path,) = process.folder.rglob("*.nbc")
    path.unlink()
    assert doubled(process()) == 0
    assert doubled(process()) == 1


def test_a_folder_in_the_place_of_a_file(process):
    assert doubled(process()) == 0
    (path,) = process.folder.rglob("*.nbi")
    path.unlink()
    path.mkdir()
    with pytest.warns(RuntimeWarning, match="compiled kernels cannot be kept in"):
        assert doubled(process()) == 0


@pytest.mark.parametrize("error", [errno.EROFS, errno.EACCES, errno.ENOSPC, errno.EDQUOT])
@pytest.mark.parametrize("call", ["makedirs", "replace"])
def test_a_cache_that_cannot_be_written(process, monkeypatch, call, error):
    def refuse(*arguments, **options):
        raise OSError(error, os.strerror(error))

    kernel = process()
    with monkeypatch.context() as patch:
        patch.setattr(os, call, refuse)
        with pytest.warns(RuntimeWarning, match=os.strerror(error)):
            assert doubled(kernel) == 0
        assert doubled(kernel) == 0
    assert doubled(process()) == 0
    assert doubled(process()) == 1


def test_no_folder_for_a_cache(process, monkeypatch):
    def refuse(*arguments, **options):
        raise OSError(errno.EROFS, os.strerror(errno.EROFS))

    monkeypatch.setattr(os, "makedirs", refuse)
    assert doubled(process()) == 0
    assert not process.folder.exists()


COMPILE = """
import hashlib
from benchmarks.gpu import registers
launches = registers.launched(registers.Case(11, gradients=0, l1="separate"), 80)
ptx = registers.compiled(launches["reduce_tiles_kernel"], 80).asm["ptx"]
print(hashlib.sha256(ptx.encode()).hexdigest())
"""
MISSING = gpu.unavailable(torch.device("cpu"))
needs_triton = pytest.mark.skipif(MISSING is not None, reason=str(MISSING))


def compiling(root, folder, before=""):
    return python(before + COMPILE, TRITON_CACHE_DIR=folder, PYTHONPATH=root)


@needs_triton
def test_two_processes_fill_tritons_cache(tmp_path, root):
    filling = [compiling(root, tmp_path) for _ in range(2)]
    first, second = (finished(process)[0] for process in filling)
    assert len(first.strip()) == hashlib.sha256().digest_size * 2
    assert first == second
    assert finished(compiling(root, tmp_path))[0] == first


@needs_triton
def test_tritons_cache_without_room(tmp_path, root):
    """An error, of which nothing is left that the next process would read."""
    process = compiling(root, tmp_path / "full", FULL)
    assert f"[Errno {errno.EFBIG}]" in process.communicate(timeout=LIMIT)[1]
    assert process.returncode == 1
    again = compiling(root, tmp_path / "full"), compiling(root, tmp_path / "empty")
    first, second = (finished(process)[0] for process in again)
    assert first == second


@needs_triton
@pytest.mark.parametrize(
    "error",
    [OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)), json.JSONDecodeError("Expecting", "", 0)],
    ids=lambda error: type(error).__name__,
)
def test_what_triton_cannot_read_or_write_names_its_cache(monkeypatch, tmp_path, error):
    """As Triton raises for a folder that is full or read-only, and for truncated files."""

    def fail(*arguments, **options):
        raise error

    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    with pytest.raises(RuntimeError, match="set TRITON_CACHE_DIR") as raised:
        gpu_launch.launch({(7,): fail}, 7, 4)
    assert str(tmp_path) in str(raised.value)
    assert str(error) in str(raised.value)
