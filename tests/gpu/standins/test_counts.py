"""How many kernels a step launches, and with which arguments Triton launches them."""

import struct

import pytest
import standins
import steps
import torch

from perceptual_losses import L1MSSSIMLoss, L1SSIMLoss, MSSSIMLoss, SSIMLoss, ms_ssim, ssim

# For each call the Triton launches of its value, and of its value with one gradient. SSIM and its
# mix take one. Several levels take the pyramid, the coarse levels together, the finest one, in a
# recorded step or a mix the means, and the product. A window too large for one kernel takes three.
CALLS = {
    "SSIM": (SSIMLoss(), 1, 1),
    "L1-SSIM": (L1SSIMLoss(), 1, 1),
    "MS-SSIM": (MSSSIMLoss(levels=3), 4, 5),
    "L1-MS-SSIM": (L1MSSSIMLoss(levels=3), 5, 5),
    "large window": (SSIMLoss(window_size=25, padding="zeros"), 1, 3),
    "ssim": (ssim, 1, 1),
    "ms_ssim": (lambda x, y: ms_ssim(x, y, levels=3), 4, 5),
}


@pytest.mark.parametrize("name", CALLS)
def test_launches_of_a_step(name):
    """One more for each gradient, and none of torch's own."""
    call, value, recorded = CALLS[name]
    for gradients in 0, 1, 2:
        for _ in range(2):
            x, y = steps.images(2, 3, 64, 90, gradients=gradients)
            # The counter of programs, which the first call on a stream makes, stays.
            step = steps.take(call, x, y)
        assert len(step.forward.launches) == (recorded if gradients else value)
        assert len(step.backward.launches) == gradients
        assert all(event.triton for event in step.forward.launches + step.backward.launches)
        assert not step.forward.of("fill") + step.forward.of("copy") + step.forward.of("wait")
        assert not step.backward.of("fill") + step.backward.of("copy") + step.backward.of("wait")


@pytest.mark.parametrize(("levels", "value", "recorded"), [(None, 1, 2), (2, 4, 5)])
def test_launches_of_a_value_per_image(levels, value, recorded):
    options = {"reduction": "none"}
    loss = SSIMLoss(**options) if levels is None else MSSSIMLoss(levels=levels, **options)
    for gradients in 0, 1, 2:
        step = steps.take(loss, *steps.images(2, 3, 64, 90, gradients=gradients))
        assert step.value.shape == (2,)
        assert len(step.forward.triton) == (recorded if gradients else value)
        assert len(step.backward.triton) == gradients


def test_a_usual_step_writes_one_more_value():
    """``loss.backward()`` makes the upstream gradient, and keeps the gradient that it gets."""
    loss, (x, y) = SSIMLoss(), steps.images(2, 3, 64, 90)
    with standins.record() as recording:
        loss(x, y).backward()
    own = [event for event in recording.launches if not event.triton]
    assert len(own) == 1
    assert "Fill" in own[0].name
    assert len(recording.triton) == 2
    # The loss, the upstream gradient, the gradient and less than a thousandth of it.
    sizes = [event.bytes for event in recording.of("allocation")]
    assert sizes.count(x.numel() * 4) == 1
    assert sum(sizes) < 1.02 * x.numel() * 4


def test_memory_of_a_value():
    x, y = steps.images(2, 3, 128, 192, gradients=0)
    with standins.record() as recording:
        SSIMLoss()(x, y)
    assert sum(event.bytes for event in recording.of("allocation")) < 0.01 * x.numel() * 4


@pytest.mark.parametrize("loss", [MSSSIMLoss(levels=2), L1MSSSIMLoss(levels=2)])
def test_launches_with_a_mask(loss):
    """Its mean and its halves are torch's. The kernels stay five, and one for each gradient."""
    x, y = steps.images(2, 3, 64, 90, gradients=2)
    step = steps.take(loss, x, y, mask=torch.ones(64, 90, device="cuda"))
    assert len(step.forward.triton) == 5
    assert len(step.backward.triton) == 2


@pytest.mark.parametrize("loss", [SSIMLoss(), MSSSIMLoss(levels=3)])
def test_layouts(loss):
    """Images are read as they lie, and a gradient lies like its image."""
    channels_last = torch.empty(2, 3, 64, 90, device="cuda", memory_format=torch.channels_last)
    sliced = torch.empty(2, 3, 64, 100, device="cuda")[..., 5:-5]
    turned = torch.empty(90, 64, 3, 2, device="cuda").permute(3, 2, 1, 0)
    _, y = steps.images(2, 3, 64, 90)
    for x in channels_last, sliced, turned:
        for _ in range(2):
            step = steps.take(loss, x.detach().requires_grad_(), y)
        assert step.gradients[0].stride() == torch.empty_like(x).stride()
        assert not [event for event in step.forward.launches if not event.triton]
        arrived = [p for event in step.forward.triton for p in event.parameters]
        assert x.data_ptr() in {parameter.value for parameter in arrived}


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
@pytest.mark.parametrize("gradients", [1, 2])
def test_half_precision(dtype, gradients):
    """float16 is too narrow for a gradient of a mean: it is computed in float32, and converted."""
    loss = L1SSIMLoss()
    for _ in range(2):
        x, y = steps.images(2, 3, 64, 90, dtype=dtype, gradients=gradients)
        step = steps.take(loss, x, y)
        assert step.value.dtype == torch.float32
        assert [gradient.dtype for gradient in step.gradients] == gradients * [dtype]
        assert len(step.forward.triton) == 1
        assert len(step.backward.triton) == gradients
        converted = gradients if dtype == torch.float16 else 0
        assert len(step.backward.launches) == gradients + converted
        sizes = [event.bytes for event in step.forward.of("allocation")]
        stored = 4 if dtype == torch.float16 else dtype.itemsize
        assert sizes.count(stored * x.numel()) == gradients


SIZES = [
    *((2, 3, 64, 90), (1, 3, 73, 101), (2, 3, 96, 131), (2, 3, 64, 96), (3, 2, 78, 106)),
    *((4, 1, 120, 187), (1, 3, 80, 128), (8, 3, 200, 333), (1, 3, 68, 74)),
]


@pytest.mark.parametrize(
    ("name", "most"), [("SSIM", (5, 3)), ("L1-SSIM", (5, 3)), ("MS-SSIM", (3, 2, 5, 1, 1, 3))]
)
def test_sizes_share_compilations(name, most):
    """Kernels differ by how rows are aligned and by how a size is shared out, and no further.

    The coarser levels differ only by whether all their rows are aligned, whatever their sizes.
    """
    found = [steps.take(CALLS[name][0], *steps.images(*shape)) for shape in SIZES]
    launches = [step.forward.triton + step.backward.triton for step in found]
    for events, limit in zip(zip(*launches, strict=True), most, strict=True):
        assert len({event.function for event in events}) <= limit


@pytest.mark.parametrize(
    ("loss", "shape", "options"),
    [
        (SSIMLoss, (2, 3, 96, 131), {}),
        (L1MSSSIMLoss, (2, 3, 96, 131), {"levels": 3}),
        (SSIMLoss, (2, 3, 96, 131), {"window_size": 25, "padding": "zeros"}),
        (L1SSIMLoss, (2, 3, 96, 131), {}),
        (MSSSIMLoss, (2, 3, 176, 256), {}),
        (SSIMLoss, (1, 1, 20, 32), {"window_size": 17, "padding": "zeros", "reduction": "none"}),
    ],
)
@pytest.mark.parametrize("gradients", [0, 1])
def test_parameters_arrive(through_triton, data_range, loss, shape, options, gradients):
    """All that a kernel is given, and nothing else, as the bits that it has in its type."""
    x, y = steps.images(*shape, gradients=gradients)
    step = steps.take(loss(data_range=data_range, **options), x, y)
    assert_parameters_arrived(step, through_triton)


def test_parameters_of_half_precision_arrive(through_triton, data_range):
    loss = MSSSIMLoss(levels=2, padding="symmetric", data_range=data_range)
    x, y = steps.images(2, 3, 96, 131, dtype=torch.bfloat16, gradients=2)
    x = x.detach().contiguous(memory_format=torch.channels_last).requires_grad_()
    step = steps.take(loss, x, y, mask=torch.ones(96, 131, device="cuda"))
    assert_parameters_arrived(step, through_triton)
    arrived = {parameter.value for event in step.forward.triton for parameter in event.parameters}
    assert {96, 131, 3 * 131, 3 * 96 * 131, x.data_ptr(), y.data_ptr()} <= arrived


def assert_parameters_arrived(step, given):
    launches = step.forward.triton + step.backward.triton
    assert [event.name for event in launches] == [name for name, _ in given]
    for event, (_, arguments) in zip(launches, given, strict=True):
        values = list(flat(arguments))
        for parameter in event.parameters:
            # Triton has compiled ones in.
            while values and type(values[0]) is int and values[0] == 1:
                if bits(1, parameter.size) == parameter.value:
                    break
                values.pop(0)
            assert values, f"{event.name} got {parameter.value}, which nobody gave"
            assert bits(values.pop(0), parameter.size) == parameter.value, event.name
        assert set(values) <= {1}, event.name


def flat(values):
    for value in values:
        if isinstance(value, tuple):
            yield from flat(value)
        else:
            yield value.data_ptr() if isinstance(value, torch.Tensor) else value


def bits(value, size):
    if isinstance(value, float):
        return int.from_bytes(struct.pack("<f", value), "little")
    return value % 2 ** (8 * size)
