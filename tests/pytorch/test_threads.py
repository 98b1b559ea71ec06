"""Shares of work on torch's OpenMP threads, and on a pool where there are none."""

import multiprocessing
import subprocess
import sys
import threading

import pytest
import torch

from perceptual_losses._runtime import threads

MANY = 10**9
"""Pixels enough for all threads."""


@pytest.fixture(params=["OpenMP", "pool"])
def two_threads(monkeypatch, request):
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    if request.param == "pool":
        monkeypatch.setattr(threads, "_openmp", lambda: None)
    elif sys.platform.startswith("linux"):
        # Built with another threading library, torch would be slower: to be known, not skipped.
        assert threads._openmp() is not None
    else:
        # The pool, which the other parameter tests, is all there is to run.
        pytest.skip("torch's threads are GNU OpenMP's on Linux only")
    yield
    torch.set_num_threads(before)


@pytest.mark.parametrize("count", [1, 2, 3, 1000])
def test_everything_is_done_once(two_threads, count):
    done = []
    threads.in_threads(lambda begin, end, share: done.append((begin, end, share)), count, MANY)
    assert sorted(i for begin, end, _ in done for i in range(begin, end)) == list(range(count))
    assert sorted(share for *_, share in done) == list(range(min(count, 2)))


def test_shares_run_at_once(two_threads):
    barrier = threading.Barrier(2, timeout=60)
    native = set()

    def meet(begin, end, share):
        barrier.wait()
        native.add(threading.get_native_id())

    for _ in range(3):
        threads.in_threads(meet, 2, MANY)
    assert len(native) == 2
    assert threading.get_native_id() in native


@pytest.mark.parametrize("failing", [0, 1])
def test_the_error_of_a_share_is_raised(two_threads, failing):
    def fail(begin, end, share):
        if share == failing:
            raise MemoryError(f"in share {share}")

    with pytest.raises(MemoryError, match=f"in share {failing}"):
        threads.in_threads(fail, 2, MANY)
    test_everything_is_done_once(None, 5)


def test_little_work_stays_on_the_calling_thread(two_threads):
    ran_on = []
    threads.in_threads(lambda *_: ran_on.append(threading.get_native_id()), 100, 8191)
    assert ran_on == [threading.get_native_id()]


def say_whether_openmp_runs(queue):
    queue.put(threads._openmp() is not None)


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="OpenMP is used on Linux alone")
# Newer Pythons warn of a fork beside threads: that it works is what is tested.
@pytest.mark.filterwarnings("ignore:.*multi-threaded.*:DeprecationWarning")
@pytest.mark.parametrize(
    ("method", "runs"), [("fork", False), ("forkserver", True), ("spawn", True)]
)
def test_openmp_rests_in_a_process_forked_beside_its_threads(method, runs):
    torch.rand(1_000_000).relu()  # has started them, here
    context = multiprocessing.get_context(method)
    context.set_forkserver_preload([__name__])
    queue = context.Queue()
    process = context.Process(target=say_whether_openmp_runs, args=(queue,))
    process.start()
    assert queue.get(timeout=120) is runs
    process.join()


AT_THE_END = """
import atexit
import torch
import perceptual_losses

torch.set_num_threads(2)
y = torch.rand(2, 3, 128, 128)
atexit.register(lambda: print(perceptual_losses.ssim(y, y, backend="numba").item(), flush=True))
"""


def test_calls_at_the_end_of_the_interpreter():
    done = subprocess.run(
        [sys.executable, "-c", AT_THE_END], capture_output=True, text=True, timeout=120
    )
    assert done.stdout == "1.0\n"
    assert done.returncode == 0
