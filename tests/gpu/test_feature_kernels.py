"""LPIPS's Triton kernels: in the interpreter, compiled for the emulator, and ahead of time."""

import contextlib
import functools
import re

import pytest
import torch
from backends import INTERPRETED, INTERPRETER
from kernel_steps import needs_triton

from benchmarks.gpu import feature_registers, registers
from benchmarks.gpu.feature_registers import Case
from perceptual_losses import LPIPSLoss
from perceptual_losses._features import lpips_cpu, lpips_gpu
from perceptual_losses._features.lpips import layer_distance, layer_distance_formula
from perceptual_losses._ssim.gpu import backend as gpu

pytestmark = needs_triton

compiles = pytest.mark.skipif(INTERPRETER, reason="the interpreter is switched on")

HALVES = torch.bfloat16, torch.float16
LAYOUTS = {
    "contiguous": lambda features: features,
    "channels_last": lambda features: features.contiguous(memory_format=torch.channels_last),
    # Rows and columns that no one stride goes through.
    "columns": lambda features: features.mT.contiguous().mT,
    "slices": lambda features: torch.cat([features, features], 1)[:, : features.shape[1]],
}


@pytest.fixture(autouse=True)
def launched(monkeypatch):
    """The names of the kernels that were launched, which features on the CPU take."""
    names, launch = [], lpips_gpu._launch

    def record(kernel, *arguments, **constants):
        names.append(kernel.__name__)
        launch(kernel, *arguments, **constants)

    monkeypatch.setattr(lpips_gpu, "_launch", record)
    monkeypatch.setattr(lpips_gpu, "takes", lambda device, dtype: dtype != torch.float64)
    monkeypatch.setattr(lpips_cpu, "suits", lambda *tensors: False)
    return names


@pytest.fixture(autouse=True)
def small(monkeypatch):
    """Tiles that small features have several of, in the interpreter."""
    if INTERPRETED:
        monkeypatch.setattr(lpips_gpu, "TILE", 64)


def features(*shape, dtype=torch.float32, seed=0):
    """Rectified features of two similar images, and the weights of their channels."""
    generator = torch.Generator().manual_seed(seed)
    a = torch.randn(shape, generator=generator)
    b = a + 0.5 * torch.randn(shape, generator=generator)
    return a.relu().to(dtype), b.relu().to(dtype), torch.rand(shape[1], generator=generator)


def step(function, a, b, weight, wanted=(True, True)):
    """The distances and the wanted gradients, which are as large as the features."""
    a, b = (f.detach().requires_grad_(want) for f, want in zip((a, b), wanted, strict=True))
    value = function(a, b, weight)
    upstream = torch.linspace(10, 20, len(a), dtype=value.dtype) * a[0, 0].numel()
    wanted = [feature for feature in (a, b) if feature.requires_grad]
    return value.detach(), *torch.autograd.grad(value, wanted, upstream)


def judge(launched, a, b, weight, wanted=(True, True), running=contextlib.nullcontext):
    """The kernels against the formula in float64, within float32's error and the last rounding."""
    launched.clear()
    with running():
        value, *found = step(layer_distance, a, b, weight, wanted)
    assert launched == ["distance_kernel", "gradient_kernel"]
    wide = (tensor.double() for tensor in (a, b, weight))
    expected, *exact = step(layer_distance_formula, *wide, wanted)
    assert value.dtype == torch.float32
    assert ((value - expected).abs() <= 1e-6 * expected).all()
    inputs = [feature for feature, want in zip((a, b), wanted, strict=True) if want]
    for feature, gradient, target in zip(inputs, found, exact, strict=True):
        assert gradient.dtype == feature.dtype
        assert gradient.shape == feature.shape
        error = {torch.float32: 1e-6}.get(feature.dtype, 0.5 * torch.finfo(feature.dtype).eps)
        assert (gradient - target).norm() <= error * target.norm()
    return found


@pytest.mark.interpreted
@pytest.mark.parametrize("dtype", [torch.float32, *HALVES])
@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
@pytest.mark.parametrize(
    "shape",
    [(2, 3, 5, 7), (3, 5, 1, 1), (1, 8, 4, 4), (2, 64, 3, 3), (1, 96, 2, 5), (1, 512, 1, 3)],
)
def test_values_and_gradients(launched, shape, layout, dtype):
    a, b, weight = features(*shape, dtype=dtype)
    a, b = LAYOUTS[layout](a), LAYOUTS[layout](b)
    for gradient in judge(launched, a, b, weight):
        assert gradient.is_contiguous(
            memory_format=torch.channels_last
            if layout == "channels_last"
            else torch.contiguous_format
        )


@pytest.mark.interpreted
@pytest.mark.parametrize("wanted", [(True, False), (False, True)])
def test_a_gradient_of_one(launched, wanted):
    a, b, weight = features(2, 5, 3, 7)
    judge(launched, a, b, weight, wanted)


@pytest.mark.interpreted
@pytest.mark.parametrize("layouts", [("columns",) * 2, ("slices",) * 2, tuple(LAYOUTS)[:2]])
def test_other_layouts(launched, layouts):
    *pair, weight = features(2, 6, 5, 3)
    judge(launched, *(LAYOUTS[k](f) for k, f in zip(layouts, pair, strict=True)), weight)


@pytest.mark.interpreted
@pytest.mark.parametrize(
    "strides", [(2**29, 20, 4, 1), (20, 2**29, 4, 1), (5, 1, 2**29, 2**27)], ids=["N", "C", "HW"]
)
def test_offsets_beyond_32_bits(launched, strides):
    """The offsets of gradients come from the same function as those of features."""
    # Pages that are not touched take no memory.
    memory = torch.ByteTensor(2 * 5 * 2**29).view(torch.float16)
    a, b, weight = features(5, 5, 5, 4, dtype=torch.float16)
    strided = memory.as_strided(a.shape, strides)
    strided.copy_(a)
    for got, expected in zip(
        step(layer_distance, strided, b, weight), step(layer_distance, a, b, weight), strict=True
    ):
        assert torch.equal(got, expected)
    assert launched == ["distance_kernel", "gradient_kernel"] * 2


def equal_features_have_no_distance(a, weight, other):
    value, *gradients = step(layer_distance, a, LAYOUTS[other](a), weight)
    assert not value.any()
    assert not any(gradient.any() for gradient in gradients)


@pytest.mark.interpreted
@pytest.mark.parametrize("dtype", [torch.float32, *HALVES])
@pytest.mark.parametrize("other", ["contiguous", "channels_last"])
def test_equal_features(launched, dtype, other):
    a, _, weight = features(2, 96, 3, 5, dtype=dtype)
    equal_features_have_no_distance(a, weight, other)
    assert launched == ["distance_kernel", "gradient_kernel"]


@pytest.mark.interpreted
@pytest.mark.parametrize("dtype", [torch.float32, *HALVES])
def test_features_of_zero(launched, dtype):
    """They have no direction, and so their gradient is zero, not that of the other features."""
    a, b, weight = features(1, 4, 2, 3, dtype=dtype)
    a[..., 0, :] = 0
    b[..., 0, 0] = 0
    of_a, of_b = judge(launched, a, b, weight)
    assert not of_a[..., 0, :].any()
    assert not of_b[..., 0, 0].any()
    assert of_b[..., 0, 1:].any()


@pytest.mark.interpreted
@pytest.mark.parametrize("large", ["a", "b", "ab"])
def test_norms_that_overflow(launched, large):
    """They make the distance of their image NaN, and the gradients at their position."""
    a, b, weight = features(2, 4, 2, 3)
    expected, *_ = step(layer_distance, a, b, weight)
    for name in large:
        {"a": a, "b": b}[name][1, :, 0, 0] = 1e20
    value, *gradients = step(layer_distance, a, b, weight)
    assert value[0] == expected[0]
    assert value[1].isnan()
    for gradient in gradients:
        assert gradient[1, :, 0, 0].isnan().all()
        assert gradient[1, :, 1].isfinite().all()
        assert gradient[0].isfinite().all()


@pytest.mark.interpreted
def test_the_largest_norms(launched):
    """Their product would overflow, and that of their reciprocals would be zero."""
    a, b, weight = features(1, 4, 2, 3)
    value, *_ = step(layer_distance, a, b, weight)
    larger, *gradients = step(layer_distance, 2.0**62 * a, 2.0**62 * b, weight)
    # No number that small would fit: epsilon is part of the norm of the smaller features only.
    assert abs(larger - value) < 1e-6 * value
    assert all(gradient.any() for gradient in gradients)


@pytest.mark.interpreted
def test_an_upstream_gradient_without_memory_of_its_own(launched):
    a, b, weight = features(3, 4, 2, 3)
    a.requires_grad_()
    (found,) = torch.autograd.grad(layer_distance(a, b, weight).sum(), a)
    assert launched == ["distance_kernel", "gradient_kernel"]
    (expected,) = torch.autograd.grad(layer_distance(a, b, weight), a, torch.ones(3))
    assert torch.equal(found, expected)


@pytest.mark.interpreted
def test_second_derivatives_take_the_formula(launched):
    a, b, weight = features(1, 4, 2, 3)
    a.requires_grad_()
    found = []
    for function in (layer_distance, layer_distance_formula):
        (gradient,) = torch.autograd.grad(function(a, b, weight), a, create_graph=True)
        found.append(torch.autograd.grad(gradient.square().sum(), a)[0])
    torch.testing.assert_close(*found)
    assert launched == ["distance_kernel"]


@pytest.mark.interpreted
def test_features_that_the_formula_takes(launched):
    """Those of float64 or of two dtypes, and those that a transform of torch looks at."""
    a, b, weight = features(2, 4, 2, 3)
    layer_distance(a.double(), b.double(), weight)
    layer_distance(a, b.half(), weight)
    torch.func.vmap(layer_distance, in_dims=(0, 0, None))(a[:, None], b[:, None], weight)
    assert not launched


@pytest.mark.interpreted
@pytest.mark.filterwarnings("ignore:the features of")
def test_the_loss(launched, monkeypatch):
    monkeypatch.setattr(lpips_gpu, "TILE", 4096)
    loss = LPIPSLoss("alexnet", weights=None)
    x, y = torch.rand(2, 1, 3, 35, 35, generator=torch.Generator().manual_seed(0))
    x.requires_grad_()
    value = loss(x, y)
    (gradient,) = torch.autograd.grad(value, x)
    assert launched == ["distance_kernel"] * 5 + ["gradient_kernel"] * 5
    layers = loss.layer_distances(x, y)
    assert launched[10:] == ["distance_kernel"] * 5
    assert value == torch.stack(list(layers.values())).sum(0).mean()
    monkeypatch.setattr(lpips_gpu, "takes", lambda device, dtype: False)
    expected = loss(x, y)
    assert abs(value - expected) < 1e-6 * expected
    (exact,) = torch.autograd.grad(expected, x)
    assert (gradient - exact).norm() < 1e-5 * exact.norm()


@pytest.mark.parametrize(
    ("capability", "dtypes"),
    [
        ((9, 0), {torch.float32, *HALVES}),
        ((8, 0), {torch.float32, *HALVES}),
        ((7, 5), {torch.float32, torch.float16}),
        ((7, 0), set()),
    ],
)
def test_devices(monkeypatch, launched, capability, dtypes):
    monkeypatch.undo()
    gpu._capability.cache_clear()
    lpips_gpu.takes.cache_clear()
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
    device = torch.device("cuda", 5)
    found = {d for d in (torch.float64, torch.float32, *HALVES) if lpips_gpu.takes(device, d)}
    assert found == dtypes
    lpips_gpu.takes.cache_clear()
    monkeypatch.setattr(torch.version, "hip", "7.0")
    assert not lpips_gpu.takes(device, torch.float32)
    assert not lpips_gpu.takes(torch.device("cpu"), torch.float32)
    gpu._capability.cache_clear()
    lpips_gpu.takes.cache_clear()


@compiles
@pytest.mark.parametrize(
    ("capability", "shape", "layout", "dtype"),
    [
        (90, (2, 5, 5, 7), "contiguous", torch.float32),
        (90, (1, 64, 16, 9), "contiguous", torch.bfloat16),
        (90, (1, 512, 3, 3), "channels_last", torch.bfloat16),
        (80, (1, 192, 5, 5), "channels_last", torch.float32),
        (75, (1, 96, 5, 5), "contiguous", torch.float16),
    ],
)
def test_compiled(launched, capability, shape, layout, dtype):
    """As compiled for a GPU: threads that race if they can, and accesses that are checked."""
    import ptx

    a, b, weight = features(*shape, dtype=dtype)
    a, b = LAYOUTS[layout](a), LAYOUTS[layout](b)
    running = functools.partial(ptx.running, capability, 2)
    found = judge(launched, a, b, weight, running=running)
    with running():
        again = step(layer_distance, a, b, weight)[1:]
        assert all(map(torch.equal, found, again))
        equal_features_have_no_distance(a, weight, layout)


@compiles
@pytest.mark.parametrize(
    ("capability", "case"),
    [
        (90, Case((4, 64, 224, 224), wanted=(True, True))),
        (90, Case((4, 64, 224, 224), torch.bfloat16, channels_last=False, wanted=(True, True))),
        (90, Case((4, 512, 14, 14), torch.bfloat16)),
        (90, Case((4, 192, 27, 27), channels_last=False, wanted=(True, True))),
        (80, Case((4, 512, 14, 14), torch.bfloat16, channels_last=False, wanted=(True, False))),
        (75, Case((4, 384, 13, 13), torch.float16, wanted=(True, True))),
    ],
    ids=lambda part: "-".join(part.cells) if isinstance(part, tuple) else None,
)
def test_registers(capability, case):
    """A multiprocessor has registers for two programs; nothing spills, and sums have one order."""
    kernel = registers.compiled(feature_registers.launched(case, capability), capability)
    found, ptx = registers.figures(kernel), kernel.asm["ptx"]
    assert found.spilled == 0
    assert found.registers <= 128
    assert found.shared < 2**13
    assert not re.search(r"\b(atom|red)\.", ptx)
    # 16 bytes at a time where the address of each row or position allows it.
    aligned = case.channels_last or case.shape[2] * case.shape[3] % 16 == 0
    assert ("ld.global.v4" in ptx) == aligned
    assert ("st.global.v4" in ptx) == (aligned and any(case.wanted))


@compiles
def test_products_and_sums_are_not_fused():
    """The compiler's own choice could differ for the two norms, and equal ones be unequal."""
    launch = feature_registers.launched(Case((1, 64, 16, 16), channels_last=False), 90)
    # One for each feature of a thread, for the difference.
    per_thread = lpips_gpu.TILE // (32 * lpips_gpu.WARPS)
    assert registers.compiled(launch, 90).asm["ptx"].count("fma.rn.f32") == per_thread
