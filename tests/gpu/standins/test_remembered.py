"""A call like an earlier one launches the same kernels, without Triton's handling of arguments."""

import copy
import pickle
import warnings

import pytest
import standins
import steps
import torch
import triton

from perceptual_losses import (
    L1MSSSIMLoss,
    L1SSIMLoss,
    MSSSIMLoss,
    SSIMLoss,
    ms_ssim,
    ssim,
    ssim_map,
)

SHAPE = 2, 3, 64, 90
CALLS = {
    "SSIM": SSIMLoss,
    "SSIM per image": lambda **options: SSIMLoss(reduction="none", **options),
    "L1-SSIM": L1SSIMLoss,
    "MS-SSIM": lambda **options: MSSSIMLoss(levels=3, **options),
    "MS-SSIM per image": lambda **options: MSSSIMLoss(levels=3, reduction="none", **options),
    "L1-MS-SSIM": lambda **options: L1MSSSIMLoss(levels=3, **options),
    "large window": lambda **options: SSIMLoss(window_size=25, padding="zeros", **options),
    "ssim": lambda **options: lambda x, y: ssim(x, y, **options),
    "ms_ssim": lambda **options: lambda x, y: ms_ssim(x, y, levels=3, **options),
}


@pytest.fixture
def told():
    """The names of the kernels that a hook of Triton's was told of, once it is added."""
    names = []
    hooks = triton.knobs.runtime.launch_enter_hook, triton.knobs.runtime.launch_exit_hook

    class Told:
        def __init__(self):
            self.names = names

        def begin(self):
            for hook in hooks:
                hook.add(self.tell)

        def tell(self, metadata):
            names.append(metadata.get()["name"])

        def end(self):
            for hook in hooks:
                hook.remove(self.tell)

    told = Told()
    yield told
    if names:
        told.end()


@pytest.mark.parametrize("gradients", [0, 1, 2])
@pytest.mark.parametrize("name", CALLS)
def test_the_same_launches(name, gradients, data_range, through_triton, told):
    call = CALLS[name](data_range=data_range)
    # The counter of programs is made by the first call on a stream.
    first = steps.take(call, *steps.images(*SHAPE, gradients=gradients))
    count = len(first.launches)
    assert len(through_triton) == count
    again = [steps.take(call, *steps.images(*SHAPE, gradients=gradients)) for _ in range(2)]
    assert len(through_triton) == count
    assert again[0].launches == again[1].launches == first.launches
    told.begin()
    hooked = steps.take(call, *steps.images(*SHAPE, gradients=gradients))
    assert hooked.launches == first.launches
    assert told.names == [name for name, *_ in first.launches for _ in ("enter", "exit")]
    told.end()
    assert steps.take(call, *steps.images(*SHAPE, gradients=gradients)).launches == first.launches
    assert len(told.names) == 2 * count


def exists():
    """Which pixels are valid."""
    return torch.empty(64, 90, device="cuda", dtype=torch.bool)


def with_ranges(length):
    """A mix of images with ranges of their own; a constant tells it from other calls."""
    loss = L1MSSSIMLoss(levels=3, k1=0.01 * length)
    return lambda x, y: loss(x, y, data_range=torch.empty(2, device="cuda"))


def term(length):
    """A term of a mix."""
    loss = L1SSIMLoss(data_range=length)
    return lambda x, y: loss.terms(x, y).l1


# Calls with tensors beside the images, and for other results than similarities, by a data range.
OTHERS = {
    "map": lambda length: lambda x, y: ssim_map(x, y, data_range=length).sum(),
    "map of valid": lambda length: (
        lambda x, y: ssim_map(x, y, data_range=length, valid=exists()).sum()
    ),
    "map of a large window": lambda length: (
        lambda x, y: ssim_map(x, y, data_range=length, window_size=(3, 25)).sum()
    ),
    "valid": lambda length: lambda x, y: ssim(x, y, data_range=length, valid=exists()),
    "MS-SSIM of valid": lambda length: (
        lambda x, y: ms_ssim(x, y, levels=3, data_range=length, valid=exists())
    ),
    "mask": lambda length: lambda x, y: ms_ssim(x, y, levels=2, data_range=length, mask=exists()),
    "ranges": with_ranges,
    "term": term,
}


@pytest.mark.parametrize("gradients", [0, 2])
@pytest.mark.parametrize("name", OTHERS)
def test_the_same_launches_of_other_calls(name, gradients, data_range, through_triton):
    call = OTHERS[name](data_range)
    first = steps.take(call, *steps.images(*SHAPE, gradients=gradients))
    count = len(first.launches)
    assert len(through_triton) == count > 0
    for _ in range(2):
        again = steps.take(call, *steps.images(*SHAPE, gradients=gradients))
        assert again.launches == first.launches
    assert len(through_triton) == count


@pytest.mark.parametrize(
    ("name", "dtype"),
    [("SSIM", torch.float16), ("SSIM", torch.bfloat16), ("L1-MS-SSIM", torch.float16)],
)
def test_half_precision(name, dtype, data_range, through_triton):
    call = CALLS[name](data_range=data_range)
    first, again = (steps.take(call, *steps.images(*SHAPE, dtype=dtype)) for _ in range(2))
    assert again.launches == first.launches
    assert len(through_triton) == len(first.launches)
    # Another dtype is another call.
    steps.take(call, *steps.images(*SHAPE))
    assert len(through_triton) == 2 * len(first.launches)


@pytest.mark.parametrize("name", ["SSIM", "ssim"])
def test_one_of_each_kind(name, data_range):
    """Calls that differ in one thing only are told apart, in whichever order they come."""
    x, y = steps.images(*SHAPE)
    plain = x.detach()
    rows = plain.contiguous(memory_format=torch.channels_last)
    shifted = torch.empty(plain.numel() + 1, device="cuda")[1:].view(SHAPE)
    calls = {
        "value": (plain, y),
        "gradient": (x, y),
        "gradient of the second": (plain, y.detach().clone().requires_grad_()),
        "both": steps.images(*SHAPE, gradients=2),
        "rows": (rows, y),
        "rows of the second": (plain, rows),
        "shifted": (shifted, y),
        "smaller": steps.images(2, 3, 64, 74),
        "bfloat16": steps.images(*SHAPE, dtype=torch.bfloat16),
        "one bfloat16": (plain.bfloat16(), y),
    }
    call = CALLS[name](data_range=data_range)
    first = {kind: steps.take(call, *pair).launches for kind, pair in calls.items()}
    kinds = list(calls)
    for i, kind in enumerate(kinds):
        assert first[kind] not in [first[other] for other in kinds[:i]]
    for kind in reversed(kinds):
        assert steps.take(call, *calls[kind]).launches == first[kind]
    with torch.no_grad():
        assert steps.take(call, x, y).launches == first["value"]
    assert steps.take(call, x, y).launches == first["gradient"]


@pytest.mark.parametrize("place", [0, 1])
@pytest.mark.parametrize("aligned_first", [False, True])
def test_an_image_that_is_not_aligned(place, aligned_first, data_range):
    """The compiler takes four values at once of an image that begins at 16 bytes, only there."""
    loss = SSIMLoss(data_range=data_range)
    functions = {}
    for shift in (0, 1) if aligned_first else (1, 0):
        pair = list(steps.images(2, 3, 64, 96, gradients=0))
        pair[place] = torch.empty(pair[0].numel() + shift, device="cuda")[shift:].view_as(pair[0])
        for _ in range(2):
            step = steps.take(loss, *pair)
        functions[shift] = {event.function for event in step.forward.triton}
    assert not functions[0] & functions[1]


def test_the_second_image(data_range):
    """Its gradient is the first one's with the images exchanged."""
    x, y = steps.images(*SHAPE)
    loss = MSSSIMLoss(levels=3, data_range=data_range)
    for _ in range(2):
        forth, back = steps.take(loss, x, y), steps.take(loss, y, x)
        exchanged = {"x": "y", "y": "x"}
        found = back._replace(
            blocks={number: exchanged.get(name, name) for number, name in back.blocks.items()}
        )
        assert found.launches == forth.launches


def test_an_image_with_itself(data_range):
    """Both gradients go to one image."""
    x, _ = steps.images(*SHAPE)
    loss = SSIMLoss(data_range=data_range)
    for _ in range(2):
        with standins.record() as recording:
            loss(x, x).backward()
        assert len(recording.triton) == 3


CHANGES = {
    "data_range": 255.0,
    "window_size": 7,
    "sigma": 1.2,
    "k1": 0.02,
    "k2": 0.05,
    "padding": "zeros",
    "reduction": "none",
}


@pytest.mark.parametrize(
    ("name", "option"),
    [*(("SSIM", option) for option in CHANGES), ("L1-MS-SSIM", "k1"), ("L1-MS-SSIM", "reduction")],
)
def test_a_changed_option(name, option):
    """It counts from the next call on, as in a loss that never had another."""
    loss = CALLS[name]
    changed = loss()
    before = [steps.take(changed, *steps.images(*SHAPE)).launches for _ in range(2)]
    usual = getattr(changed, option)
    setattr(changed, option, CHANGES[option])
    new = loss(**{option: CHANGES[option]})
    for _ in range(2):
        found = steps.take(changed, *steps.images(*SHAPE)).launches
        assert found == steps.take(new, *steps.images(*SHAPE)).launches
        assert found != before[0]
    setattr(changed, option, usual)
    assert steps.take(changed, *steps.images(*SHAPE)).launches == before[0] == before[1]


@pytest.mark.parametrize(
    ("loss", "option", "value"),
    [
        (L1SSIMLoss(), "weight", 0.3),
        (MSSSIMLoss(levels=3), "levels", 2),
        (MSSSIMLoss(levels=2, weights=(0.3, 0.7)), "weights", (0.6, 0.4)),
        (MSSSIMLoss(levels=2), "normalize", "relu"),
    ],
)
def test_a_changed_option_of_some(loss, option, value):
    before = [steps.take(loss, *steps.images(*SHAPE)).launches for _ in range(2)]
    assert before[0] == before[1]
    usual = getattr(loss, option)
    setattr(loss, option, value)
    changed = [steps.take(loss, *steps.images(*SHAPE)).launches for _ in range(2)]
    assert changed[0] == changed[1] != before[0]
    setattr(loss, option, usual)
    assert steps.take(loss, *steps.images(*SHAPE)).launches == before[0]


@pytest.mark.parametrize(
    "copied", [copy.copy, copy.deepcopy, lambda x: pickle.loads(pickle.dumps(x))]
)
def test_a_copy_of_a_used_loss(copied):
    loss = L1SSIMLoss()
    first = [steps.take(loss, *steps.images(*SHAPE)).launches for _ in range(2)]
    size = len(pickle.dumps(L1SSIMLoss()))
    assert abs(len(pickle.dumps(loss)) - size) < 100
    other = copied(loss)
    for _ in range(2):
        assert steps.take(other, *steps.images(*SHAPE)).launches == first[0]
    other.k1 = 0.05
    assert steps.take(other, *steps.images(*SHAPE)).launches != first[0]
    assert steps.take(loss, *steps.images(*SHAPE)).launches == first[0]


@pytest.mark.parametrize("gradients", [0, 1])
@pytest.mark.parametrize(
    "call", [MSSSIMLoss(), L1MSSSIMLoss(), lambda x, y: ms_ssim(x, y, levels="auto")]
)
def test_fewer_levels_warn_each_time(call, gradients):
    """With ``levels="auto"`` images that are too small for five levels are compared in fewer."""
    launches = []
    for _ in range(3):
        x, y = steps.images(*SHAPE, gradients=gradients)
        with pytest.warns(UserWarning, match="levels") as caught:
            launches.append(steps.take(call, x, y).launches)
        assert len(caught) == 1
        assert caught[0].filename == __file__ or "steps" in caught[0].filename
    assert launches[0] == launches[1] == launches[2]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        steps.take(MSSSIMLoss(levels=3), x, y)


def test_refused_images_are_not_remembered():
    loss = SSIMLoss()
    x, y = steps.images(2, 3, 8, 90)
    for _ in range(2):
        with pytest.raises(ValueError, match="window"):
            loss(x, y)
    for _ in range(2):
        with pytest.raises(ValueError, match="shape"):
            loss(*steps.images(*SHAPE)[:1], y)


@pytest.mark.parametrize(
    ("name", "scaled"),
    [("SSIM", False), ("L1-SSIM", False), ("MS-SSIM", True), ("SSIM per image", True)],
)
def test_value_and_grad(name, scaled, data_range, through_triton):
    """The launches of a step, but that a stored gradient which is right already stays as it is."""
    loss = CALLS[name](data_range=data_range)
    x, y = steps.images(*SHAPE)
    loss.value_and_grad(x, y)
    planned = len(through_triton)
    step = steps.take(loss, x, y)
    expected = [event.name for event in step.forward.triton + step.backward.triton * scaled]
    for _ in range(2):
        with standins.record() as recording:
            value, gradient = loss.value_and_grad(x, y)
        assert value.shape == step.value.shape
        assert gradient.shape == x.shape
        assert not value.requires_grad
        assert not gradient.requires_grad
        assert [event.name for event in recording.triton] == expected
    # The first call has left all that a step needs, and the other way round.
    assert len(through_triton) == planned
