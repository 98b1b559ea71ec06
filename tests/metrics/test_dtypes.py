"""Precision, mixed dtypes, autocast and layouts."""

import functools

import pytest
import torch
from metric_steps import few
from torch.utils._python_dispatch import TorchDispatchMode

from perceptual_losses import L1SSIMLoss, MSSSIMLoss, SSIMLoss, ms_ssim, ssim, ssim_map

FLOATS = [
    *(torch.float16, torch.bfloat16, torch.float32),
    pytest.param(torch.float64, marks=pytest.mark.float64),
]


class Operations(TorchDispatchMode):
    """The names of the operations that run inside, backward included."""

    def __init__(self):
        super().__init__()
        self.names = set()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.names.add(func._schema.name)
        return func(*args, **(kwargs or {}))


ALL = {"ssim": ssim, "ms_ssim": ms_ssim, "l1_ssim": lambda x, y, **kw: L1SSIMLoss(**kw)(x, y)}


@pytest.fixture
def functions(backend, sized):
    """`ALL`, with a window for which little is compiled, and as many levels as fit."""
    levels = sized({}, {"weights": (0.4, 0.6)})
    return {
        name: functools.partial(
            function, backend=backend, window_size=3, **(levels if name == "ms_ssim" else {})
        )
        for name, function in ALL.items()
    }


def images(shape):
    generator = torch.Generator().manual_seed(0)
    x = torch.rand(shape, generator=generator, dtype=torch.float64)
    return x, 0.7 * x + 0.3 * torch.rand(shape, generator=generator, dtype=torch.float64)


@pytest.fixture
def pair(sized):
    return images(sized((2, 3, 176, 178), (1, 2, 6, 7)))


@pytest.mark.parametrize("name", ALL)
@pytest.mark.parametrize("x_dtype", FLOATS)
@pytest.mark.parametrize("y_dtype", FLOATS)
def test_every_pair_of_dtypes(functions, pair, sized, name, x_dtype, y_dtype):
    x, y = pair
    x, y = x.to(x_dtype).requires_grad_(), y.to(y_dtype).requires_grad_()
    value = functions[name](x, y)
    value.backward()
    exact_x, exact_y = (image.detach().double().requires_grad_() for image in (x, y))
    exact = functions[name](exact_x, exact_y, backend="reference")
    exact.backward()

    double = torch.float64 in (x_dtype, y_dtype)
    assert value.dtype == (torch.float64 if double else torch.float32)
    assert abs(value.item() - exact.item()) < (1e-14 if double else 1e-6)
    for image, expected in ((x, exact_x), (y, exact_y)):
        assert image.grad.dtype == image.dtype
        error = (image.grad.double() - expected.grad).norm() / expected.grad.norm()
        # The gradient's own rounding; float16 also loses what lies below 6e-8. The GPU path rounds
        # the finest level's gradient before it adds the coarser ones', which partly cancel it.
        limit = {torch.float16: 0.1, torch.bfloat16: sized(4e-3, 8e-3), torch.float32: 1e-5}
        assert error < (limit.get(image.dtype, 1e-12 if double else 1e-5))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("name", ALL)
def test_autocast_changes_nothing(functions, pair, dtype, name):
    x, y = (image.float().requires_grad_() for image in pair)
    plain = functions[name](x, y)
    (plain_grad,) = torch.autograd.grad(plain, x)
    with torch.autocast("cpu", dtype=dtype):
        value = functions[name](x, y)
        (grad,) = torch.autograd.grad(value, x)
    assert value.dtype == torch.float32
    assert torch.equal(value, plain)
    assert torch.equal(grad, plain_grad)


@pytest.mark.parametrize("name", ALL)
def test_precision_settings_change_nothing(functions, pair, name):
    x, y = (image.float().requires_grad_() for image in pair)
    plain = functions[name](x, y)
    (plain_grad,) = torch.autograd.grad(plain, x)
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("medium")
    try:
        value = functions[name](x, y)
        (grad,) = torch.autograd.grad(value, x)
    finally:
        torch.set_float32_matmul_precision(before)
    assert torch.equal(value, plain)
    assert torch.equal(grad, plain_grad)


def test_no_operation_that_lower_precision_settings_reach(functions, pair):
    """TF32 and autocast act on convolutions and matrix products: there are none, on any device."""
    x, y = (image.float().requires_grad_() for image in pair)
    with Operations() as operations:
        for function in functions.values():
            function(x, y).backward()
    lowered = ("conv", "mm", "addmv", "linear", "dot")
    assert not [name for name in operations.names if any(op in name for op in lowered)]


def test_no_copy_and_no_reading_of_values(functions, pair):
    """A window made on the CPU and moved, or a value read, would wait for the GPU at every call."""
    x, y = (image.float().requires_grad_() for image in pair)
    with Operations() as operations:
        for function in functions.values():
            function(x, y).backward()
    waits = {"aten::_to_copy", "aten::_local_scalar_dense", "aten::lift_fresh", "aten::nonzero"}
    assert not operations.names & waits
    with Operations() as operations:
        functions["ssim"](x.half(), y).item()
    assert operations.names >= {"aten::_to_copy", "aten::_local_scalar_dense"}


@pytest.mark.parametrize("name", ALL)
@pytest.mark.parametrize("place", [0, 1])
def test_what_torch_has_yet_to_negate(functions, pair, name, place):
    """An imaginary part of a conjugate has its values in memory with the other sign."""
    plain = [image.float().requires_grad_() for image in pair]
    lazy = list(plain)
    image = plain[place].detach()
    lazy[place] = torch.complex(image, -image).conj().imag.requires_grad_()
    assert lazy[place].is_neg()
    value, expected = functions[name](*lazy), functions[name](*plain)
    assert torch.equal(value, expected)
    factor = torch.tensor(-2.0)
    minus = torch.complex(factor, -factor).conj().imag
    gradients = torch.autograd.grad(value, lazy, minus)
    for gradient, same in zip(gradients, torch.autograd.grad(expected, plain, factor), strict=True):
        assert torch.equal(gradient, same)


@pytest.mark.parametrize("name", ["mask", "data_range"])
def test_what_torch_has_yet_to_negate_beside_the_images(pair, name):
    x, y = (image.float() for image in pair)
    plain = torch.rand(x.shape[0], 1, *x.shape[2:]) if name == "mask" else torch.rand(x.shape[0])
    lazy = torch.complex(plain, -plain).conj().imag
    assert lazy.is_neg()
    values = [ssim(x, y, window_size=3, **{name: given}) for given in (lazy, plain)]
    assert torch.equal(*values)


@pytest.mark.parametrize("name", ["ssim", "ms_ssim"])
def test_low_contrast_under_autocast(functions, sized, name):
    x, y = images(sized((2, 3, 64, 64), (1, 1, 12, 12)))
    x, y = (0.5 + 0.02 * x).bfloat16(), (0.5 + 0.02 * y).float()
    options = sized({"levels": 3}, {}) if name == "ms_ssim" else {}
    exact = functions[name](x.double(), y.double(), backend="reference", **options).item()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        value = functions[name](x, y, **options).item()
    assert 0.3 < exact < 0.999
    assert abs(value - exact) < 1e-4


@pytest.mark.parametrize("name", ["ssim", "ms_ssim"])
def test_low_contrast_on_a_high_level(functions, sized, name):
    # Of fewer pixels float32's own roundings would not average out.
    pair = images(sized((2, 3, 176, 178), (1, 1, 20, 21)))
    x, y = (200 + 0.1 * (image - 0.5) for image in pair)
    x, y = x.float(), y.float()
    # Small constants too: with the usual ones a lost variance would hardly show.
    for options in ({}, {"k2": 1e-4}):
        options |= {"data_range": 255}
        exact = functions[name](x.double(), y.double(), backend="reference", **options).item()
        assert abs(functions[name](x, y, **options).item() - exact) < 1e-5


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int16, torch.int64])
def test_integers_are_read_as_numbers(functions, pair, precision, dtype):
    x, y = ((image * 255).to(dtype) for image in pair)
    value = functions["ssim"](x, y, data_range=255)
    assert value == functions["ssim"](x.float(), y.float(), data_range=255)
    assert value.dtype == torch.float32
    widest = precision.dtype
    mixed = functions["ms_ssim"](x, y.to(widest), data_range=255)
    assert mixed == functions["ms_ssim"](x.to(widest), y.to(widest), data_range=255)


def test_booleans_are_zero_and_one(functions, pair):
    x, y = (image > 0.5 for image in pair)
    assert functions["ssim"](x, y) == functions["ssim"](x.float(), y.float())


def test_the_range_shifts(functions, pair, precision):
    x, y = (image.to(precision.dtype) for image in pair)
    tolerance = precision.value(1e-12)
    for function in functions.values():
        value = function(x, y).item()
        shifted = function(2 * x - 1, 2 * y - 1, data_range=(-1, 1)).item()
        assert shifted == pytest.approx(value, abs=tolerance)
        as_bytes = function(255 * x, 255 * y, data_range=255).item()
        assert as_bytes == pytest.approx(value, abs=tolerance)
        # The mistake that the pair is there for.
        wrong = function(2 * x - 1, 2 * y - 1, data_range=2).item()
        assert abs(wrong - value) > 5e-4


LAYOUTS = {
    "channels_last": lambda t: t.contiguous(memory_format=torch.channels_last),
    "rows_first": lambda t: t.permute(2, 3, 1, 0).contiguous().permute(3, 2, 0, 1),
    "transposed": lambda t: t.transpose(2, 3).contiguous().transpose(2, 3),
    "sliced": lambda t: torch.stack([t, -t], -1).flatten(-2)[..., ::2],
    "offset": lambda t: torch.nn.functional.pad(t, (3, 2, 1, 4), value=9.0)[..., 1:-4, 3:-2],
    "batch_inside": lambda t: t.transpose(0, 1).contiguous().transpose(0, 1),
}


@pytest.mark.parametrize("layout", LAYOUTS)
@few("name", ALL, ["ms_ssim"])
def test_layouts(functions, sized, name, layout):
    x, y = (image.float() for image in images(sized((2, 3, 176, 178), (2, 2, 6, 7))))
    x.requires_grad_()
    plain = functions[name](x, y)
    plain.backward()
    other = LAYOUTS[layout](x.detach()).requires_grad_()
    assert torch.equal(other, x)
    assert other.stride() != x.stride()
    value = functions[name](other, LAYOUTS[layout](y))
    value.backward()
    torch.testing.assert_close(value, plain, rtol=0, atol=2e-7)
    torch.testing.assert_close(other.grad, x.grad, rtol=1e-5, atol=1e-10)


def test_expanded_images(functions, sized):
    side, shape = sized(32, 12), sized((4, 3), (2, 2))
    x, y = (image.float() for image in images((1, 1, side, side)))
    function = functions["ssim"]
    wide = function(x.expand(*shape, side, side), y.expand(*shape, side, side))
    assert wide.item() == pytest.approx(function(x, y).item(), abs=2e-7)
    x.requires_grad_()
    function(x.expand(*shape, side, side), y.expand(*shape, side, side)).backward()
    plain = x.detach().requires_grad_()
    function(plain, y).backward()
    torch.testing.assert_close(x.grad, plain.grad, rtol=1e-5, atol=1e-9)


def test_channels_last_gradients_keep_their_layout(functions, pair):
    x, y = (image.float().contiguous(memory_format=torch.channels_last) for image in pair)
    x.requires_grad_()
    functions["ms_ssim"](x, y).backward()
    assert x.grad.is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize("backend", ["auto", "reference"])
def test_meta_tensors(backend):
    x = torch.empty(2, 3, 176, 180, device="meta", requires_grad=True)
    for loss in (SSIMLoss, MSSSIMLoss, L1SSIMLoss):
        value = loss(backend=backend)(x, x.detach())
        assert value.shape == ()
        assert value.device.type == "meta"
        value.backward()
        assert x.grad.shape == x.shape
    assert ssim_map(x, x, backend=backend).shape == (2, 3, 166, 170)
