"""Launches go to the current stream of the images' device."""

import pytest
import standins
import steps
import torch

from perceptual_losses import L1SSIMLoss, MSSSIMLoss, SSIMLoss, ssim
from perceptual_losses._ssim.gpu import backend as gpu

SHAPE = 2, 3, 64, 90
LOSSES = {"SSIM": SSIMLoss, "L1-SSIM": L1SSIMLoss, "MS-SSIM": MSSSIMLoss}
# A device other than the current one.
OTHER = torch.device("cuda", 1)


@pytest.fixture(params=LOSSES)
def loss(request, data_range):
    options = {"levels": 3} if request.param == "MS-SSIM" else {}
    return LOSSES[request.param](data_range=data_range, **options)


def kernels(step):
    return [event.name for event in (*step.forward.triton, *step.backward.triton)]


def test_the_current_stream(loss):
    """Whichever one the first call was on; and the backward goes to the forward's."""
    streams = [torch.cuda.Stream() for _ in range(2)]
    first = steps.take(loss, *steps.images(*SHAPE))
    assert {event.stream for event in first.forward.triton} == {0}
    for stream in (*streams, *streams):
        with torch.cuda.stream(stream):
            step = steps.take(loss, *steps.images(*SHAPE))
        found = {event.stream for event in step.forward.launches + step.backward.launches}
        assert found - {0} == {stream.cuda_stream}
        assert {event.stream for event in step.forward.triton} == {stream.cuda_stream}
        assert {event.stream for event in step.backward.triton} == {stream.cuda_stream}
        assert kernels(step) == kernels(first)
    assert steps.take(loss, *steps.images(*SHAPE)).launches == first.launches


def test_the_backward_on_the_stream_of_the_forward(loss):
    stream = torch.cuda.Stream()
    for _ in range(2):
        x, y = steps.images(*SHAPE)
        with torch.cuda.stream(stream):
            value = loss(x, y)
        with standins.record() as recording:
            torch.autograd.grad(value, x)
        assert {event.stream for event in recording.triton} == {stream.cuda_stream}


@pytest.mark.parametrize("used", [False, True])
def test_a_new_stream_waits_for_what_it_reads(loss, used):
    """The first call on a stream makes memory on the default one, which has to be awaited."""
    if used:
        steps.take(loss, *steps.images(*SHAPE))
    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):
        x, y = steps.images(*SHAPE)
        step = steps.take(loss, x, y)
    written = False
    for event in step.forward.events:
        if event.stream == 0 and event.kind in ("launch", "fill", "copy"):
            written = True
        elif event.kind == "wait" and event.stream == stream.cuda_stream:
            written = False
        elif event.kind == "launch":
            assert not written
    with torch.cuda.stream(stream):
        step = steps.take(loss, x, y)
    assert {event.stream for event in step.forward.launches} == {stream.cuda_stream}
    assert not step.forward.of("wait")


def test_streams_share_no_memory_of_their_own(loss):
    """Calls on two streams run at once: all that both write is theirs."""
    x, y = steps.images(*SHAPE)
    written = []
    for stream in [torch.cuda.Stream() for _ in range(2)]:
        with torch.cuda.stream(stream):
            for _ in range(2):
                step = steps.take(loss, x.detach().requires_grad_(), y)
        parameters = [p for event in step.forward.triton for p in event.parameters]
        written.append({p.block for p in parameters if p.block})
    images = {standins.block(image.data_ptr()) for image in (x, y)}
    assert written[0] & written[1] == images


def test_the_device_of_the_images(loss, through_triton):
    first = steps.take(loss, *steps.images(*SHAPE))
    planned = len(through_triton)
    stream = torch.cuda.Stream(OTHER)
    for expected in 0, stream.cuda_stream, 0:
        with torch.cuda.device(OTHER):
            torch.cuda.set_stream(stream if expected else torch.cuda.default_stream())
        assert torch.cuda.current_device() == 0
        step = steps.take(loss, *steps.images(*SHAPE, device=OTHER))
        assert torch.cuda.current_device() == 0
        assert step.value.device == step.gradients[0].device == OTHER
        for event in step.forward.triton + step.backward.triton:
            assert (event.device, event.stream) == (1, expected)
        assert kernels(step) == kernels(first)
    # Both devices are remembered, and neither for the other.
    assert len(through_triton) == 2 * planned
    assert steps.take(loss, *steps.images(*SHAPE)).launches == first.launches
    with torch.cuda.device(OTHER):
        assert steps.take(loss, *steps.images(*SHAPE, device=0)).launches == first.launches
        assert torch.cuda.current_device() == 1
    assert len(through_triton) == 2 * planned


def test_images_on_two_devices(loss):
    x, y = steps.images(*SHAPE)
    for _ in range(2):
        with pytest.raises(ValueError, match="device"):
            loss(x, y.to(OTHER))
        steps.take(loss, x, y)


def test_an_old_device(monkeypatch, through_triton):
    """The reference compares images there, and a process is told so once."""
    # The oldest device that torch takes is one that has the kernels.
    monkeypatch.setattr(gpu, "OLDEST_CAPABILITY", (8, 0))
    old = torch.device("cuda", standins.OLD_DEVICE)
    x, y = steps.images(*SHAPE, device=old)
    with pytest.warns(RuntimeWarning, match="cuda:2 has compute capability 7.5, and 8.0 is"):
        step = steps.take(SSIMLoss(), x, y)
    # Warnings are errors here.
    ssim(x, y)
    assert not through_triton
    assert step.forward.launches
    assert {event.device for event in step.forward.launches} == {standins.OLD_DEVICE}
    assert step.gradients[0].device == old
    with pytest.raises(
        ValueError, match="cannot run: cuda:2 has compute capability 7.5, and 8.0 is"
    ):
        SSIMLoss(backend="triton")(x, y)


def test_an_old_device_has_no_bfloat16(through_triton):
    old = torch.device("cuda", standins.OLD_DEVICE)
    x, y = steps.images(*SHAPE, device=old)
    with pytest.raises(ValueError, match="cannot run: cuda:2 has no bfloat16: pass float16"):
        SSIMLoss(backend="triton")(x.bfloat16(), y.bfloat16())
    assert not through_triton
