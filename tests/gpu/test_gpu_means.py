"""Means of planes and of all: the launches that they take, and the counters that these share."""

import threading
from unittest import mock

import pytest
import torch
from kernel_steps import needs_triton, pair, run, settings, step, weights_of

from benchmarks.gpu import registers
from perceptual_losses import L1MSSSIMLoss, L1SSIMLoss, MSSSIMLoss, SSIMLoss
from perceptual_losses._ssim.gpu import launch as gpu_launch

pytestmark = needs_triton


@pytest.mark.parametrize(
    ("scheme", "reduction"), [((64, 1, 64), []), ((16, 1, 8), ["reduce_tiles_kernel"])]
)
@pytest.mark.interpreted
def test_launches_in_the_interpreter(tiles, monkeypatch, scheme, reduction):
    """Few, because at small sizes they are all of the time: tiles that are whole planes write the
    means themselves, and of all tiles of one level comes the mean over all planes.
    """
    counted = []
    monkeypatch.setattr(
        gpu_launch, "launch", lambda kernel, *_, **__: counted.append(kernel.__name__)
    )
    tiles(*scheme)
    x, y = pair(1, 1, 33, 33)
    options = {"window_size": 3, "backend": "triton"}
    # Each of as many levels as a tile of four rows gives.
    before = [*["downsample_kernel"] * 2, "coarse_levels_kernel"]
    after = [*reduction, "combine_levels_kernel"]
    for loss, first, last in (
        (SSIMLoss, [], []),
        (L1SSIMLoss, [], []),
        (MSSSIMLoss, before, after),
        (L1MSSSIMLoss, before, after),
    ):
        counted.clear()
        loss(**options)(x, y)
        assert counted == [*first, "value_kernel", *last]
        counted.clear()
        step(loss(**options), x, y)
        backward = ["accumulate_levels_kernel"] * 2
        assert counted == [*first, "fused_kernel", *last, *backward]


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize(("gradients", "fused"), [(0, True), (1, True), (1, False)])
@pytest.mark.parametrize("scheme", [(16, 1, 16), (8, 1, 4)])
@pytest.mark.interpreted
def test_the_mean_over_all_planes_in_the_interpreter(tiles, scheme, gradients, fused, masked):
    """Of whole planes as of many tiles, those of an image without any weight among them."""
    tiles(*scheme, fused)
    x, y = pair(2, 1, 7, 9)
    weights = weights_of(x, settings()) if masked else []
    if masked:
        weights[0][1] = 0
    planes, of_x, _ = run(x, y, settings(), weights, gradients=gradients)
    mean, again, _ = run(x, y, settings(), weights, gradients=gradients, reduction="mean")
    assert abs(mean - planes.double().mean()) < 1e-7
    assert all(map(torch.equal, again, of_x))
    if gradients == 0:
        assert run(x, y, settings(), weights, gradients=0, reduction="loss")[0] == 1 - mean
        assert run(x, x, settings(), weights, gradients=0, reduction="loss")[0] == 0
        x[0, 0, 6, 8] = float("nan")
        assert run(x, y, settings(), weights, gradients=0, reduction="mean")[0].isnan()


@pytest.mark.parametrize("loss", [SSIMLoss, L1SSIMLoss])
@pytest.mark.interpreted
def test_programs_are_counted_from_zero_to_zero_in_the_interpreter(tiles, monkeypatch, loss):
    """In a launch of any size, for the next one of another."""
    zero = torch.zeros((), dtype=torch.int32)
    monkeypatch.setattr(gpu_launch, "_zero", lambda device: zero)
    # More than the 32 tiles that are added at once, and fewer.
    tiles(4, 1, 3)
    for shape in ((2, 2, 9, 15), (1, 1, 5, 5), (1, 1, 8, 11)):
        x, y = pair(*shape)
        exact = loss(window_size=3, backend="reference")(x.double(), y.double())
        for wanted in (False, True):
            value = loss(window_size=3, backend="triton")(x.requires_grad_(wanted), y)
            assert abs(value - exact) < 1e-6
            assert zero == 0


def test_launches_of_a_stream_share_a_zero(monkeypatch):
    """Those that a graph captures do not: it may run beside them."""
    device = torch.device("cuda", 0)
    stream, capturing = mock.Mock(return_value=5), mock.Mock(return_value=False)
    monkeypatch.setattr(gpu_launch, "_zeros", {})
    monkeypatch.setattr(gpu_launch, "_lasting_zero", lambda device: torch.zeros(()))
    monkeypatch.setattr(torch._C, "_cuda_getCurrentRawStream", stream)
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", capturing)
    zeros = torch.zeros
    monkeypatch.setattr(torch, "zeros", lambda *size, device=None, **kind: zeros(*size, **kind))
    first = gpu_launch._zero(device)
    assert gpu_launch._zero(device) is first
    assert gpu_launch._zero(torch.device("cuda", 1)) is not first
    stream.return_value = 7
    other = gpu_launch._zero(device)
    assert other is not first
    capturing.return_value = True
    captured = gpu_launch._zero(device)
    assert captured.dtype == torch.int32
    assert captured is not gpu_launch._zero(device)
    capturing.return_value, stream.return_value = False, 5
    assert gpu_launch._zero(device) is first


def test_a_lasting_zero_is_allocated_elsewhere(monkeypatch):
    """In no memory that is this thread's alone, and before this stream's launches."""
    stream, threads = mock.Mock(), []
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: stream)
    monkeypatch.setattr(torch.cuda, "default_stream", lambda device: ("default", device))
    zeros = torch.zeros

    def noted(*size, **kind):
        threads.append(threading.get_ident())
        return zeros(*size, **kind)

    monkeypatch.setattr(torch, "zeros", noted)
    device = torch.device("cpu")
    zero = gpu_launch._lasting_zero(device)
    assert (zero.dtype, zero.numel(), zero.item()) == (torch.int32, 1, 0)
    assert len(threads) == 1
    assert threads[0] != threading.get_ident()
    stream.wait_stream.assert_called_once_with(("default", device))


def test_a_lasting_zero_that_cannot_be_allocated(monkeypatch):
    monkeypatch.setattr(torch, "zeros", mock.Mock(side_effect=torch.OutOfMemoryError("no room")))
    with pytest.raises(torch.OutOfMemoryError, match="no room"):
        gpu_launch._lasting_zero(torch.device("cpu"))


@pytest.mark.parametrize(
    ("side", "gradients", "levels", "reduction", "launches"),
    [
        # Means of planes or of all, and no other launch for them.
        (64, 1, 1, "levels", [("fused", 192)]),
        (64, 1, 1, "none", [("fused", 192)]),
        (64, 1, 1, "loss", [("fused", 384)]),
        (64, 0, 1, "levels", [("value", 192)]),
        (64, 0, 1, "mean", [("value", 1296)]),
        # None for any level, or one for all.
        (64, 1, 2, "levels", [("downsample", 768), ("coarse_levels", 192), ("fused", 192)]),
        (
            *(128, 0, 2, "levels"),
            [
                *(("downsample", 1536), ("coarse_levels", 1037), ("value", 1030)),
                ("reduce_tiles", 384),
            ],
        ),
    ],
)
def test_one_launch_is_enough(side, gradients, levels, reduction, launches):
    x = torch.empty(64, 3, side, side, device="meta")
    with registers.recording(90) as found:
        run(x, x, settings(11), levels=levels, gradients=gradients, reduction=reduction)
    names = [launch.kernel.__name__.removesuffix("_kernel") for launch in found]
    assert list(zip(names, [launch.programs for launch in found], strict=True)) == launches
