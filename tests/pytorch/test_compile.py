"""torch.compile without a graph break: every public loss, value and gradients."""

import functools
import shutil

import pytest
import torch
from torch.autograd import forward_ad

from perceptual_losses import L1MSSSIMLoss, L1SSIMLoss, MSSSIMLoss, SSIMLoss, ssim_map

# How torch.compile itself traces an autograd.Function.
pytestmark = [
    pytest.mark.filterwarnings("ignore:.*should not be instantiated:DeprecationWarning"),
    pytest.mark.large,
]

# Tracing takes time for each tap and level: few show the same.
SMALL = {"window_size": 3, "weights": (0.4, 0.6)}
LOSSES = {
    "ssim": lambda **kw: SSIMLoss(window_size=3, **kw),
    "ms_ssim": lambda **kw: MSSSIMLoss(**SMALL, **kw),
    "ms_ssim_relu": lambda **kw: MSSSIMLoss(normalize="relu", padding="symmetric", **SMALL, **kw),
    "l1_ssim": lambda **kw: L1SSIMLoss(data_range=(-1, 1), padding="zeros", window_size=3, **kw),
    "l1_ms_ssim": lambda **kw: L1MSSSIMLoss(**SMALL, **kw),
    "box": lambda **kw: SSIMLoss(
        window="uniform", window_size=(3, 5), sample_covariance=True, **kw
    ),
    "map": lambda **kw: lambda x, y: ssim_map(x, y, window_size=3, **kw).square().mean(),
}
# Inductor compiles C++ on a CPU. Where there is no compiler the graph is captured all the same.
COMPILERS = ["aot_eager"] + ["inductor"] * (shutil.which("g++") is not None)


def step(loss, x, y):
    x, y = x.requires_grad_(), y.requires_grad_()
    value = loss(x, y)
    return value.detach(), *torch.autograd.grad(value, (x, y))


def pair(shape, seed=0):
    generator = torch.Generator().manual_seed(seed)
    x = torch.rand(shape, generator=generator)
    return x, 0.7 * x + 0.3 * torch.rand(shape, generator=generator)


@pytest.fixture(autouse=True)
def fresh():
    torch.compiler.reset()


@pytest.mark.parametrize("name", LOSSES)
def test_every_loss(backend, name):
    check_loss(backend, name, dynamic=False)


# Tracing the reference takes long, with levels half a minute.
@pytest.mark.parametrize(
    ("path", "name"),
    [
        *(("reference", name) for name in ("l1_ssim", "map")),
        *(("numba", name) for name in ("ssim", "l1_ssim", "box", "map", "l1_ms_ssim")),
    ],
)
def test_sizes_left_open(path, name):
    check_loss(path, name, dynamic=True)


def check_loss(backend, name, dynamic):
    loss = LOSSES[name](backend=backend)
    compiled = torch.compile(loss, fullgraph=True, dynamic=dynamic, backend="aot_eager")
    # With sizes fixed, others are compiled from the start.
    for shape in ((2, 3, 24, 28), (3, 2, 31, 25))[: 1 + dynamic]:
        x, y = pair(shape)
        for value, expected in zip(step(compiled, x, y), step(loss, x, y), strict=True):
            # In float32 a compiler rounds a gradient of 4e-5 otherwise by 1.4e-9.
            torch.testing.assert_close(value, expected, rtol=1e-5, atol=3e-9)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # Inductor's imports give some.
@pytest.mark.parametrize("compiler", COMPILERS)
def test_a_training_step(backend, compiler):
    """With a mask, mixed dtypes and levels that do not all fit (the warning cannot be given)."""
    ms_ssim_loss = MSSSIMLoss(window_size=3, backend=backend)
    ssim_loss = SSIMLoss(window_size=3, backend=backend)

    def objective(x, y):
        mask = (y[:, :1] > 0.2).float()
        return ms_ssim_loss(x, y, mask=mask) + ssim_loss(x, y)

    compiled = torch.compile(objective, fullgraph=True, backend=compiler)
    x, y = pair((2, 3, 6, 8))
    x = x.bfloat16()
    with pytest.warns(UserWarning, match="fit 2 of 5"):
        expected = step(objective, x, y)
    value, x_grad, y_grad = step(compiled, x, y)
    torch.testing.assert_close(value, expected[0], rtol=1e-6, atol=0)
    # The compiler adds the two terms' gradients before it rounds them to bfloat16, eager after.
    rounding = expected[1].abs().max().item() * 2**-8
    torch.testing.assert_close(x_grad, expected[1], rtol=0, atol=2 * rounding)
    torch.testing.assert_close(y_grad, expected[2], rtol=1e-4, atol=1e-8)


def test_one_graph_serves_all_sizes(backend):
    loss = SSIMLoss(backend=backend)
    graphs = []

    def count(module, inputs):
        graphs.append(module)
        return module.forward

    compiled = torch.compile(loss, fullgraph=True, dynamic=True, backend=count)
    for size in (40, 41, 57):
        x, y = pair((2, 3, size, size + 3))
        torch.testing.assert_close(compiled(x, y), loss(x, y), rtol=1e-5, atol=1e-7)
    assert len(graphs) == 1


def jvp(loss, x, y):
    return torch.func.jvp(lambda a: loss(a, y), (x,), (y,))[1]


def dual(loss, x, y):
    with forward_ad.dual_level():
        return forward_ad.unpack_dual(loss(forward_ad.make_dual(x, y), y)).tangent


def batch(loss, x, y):
    return torch.func.vmap(lambda a: loss(a[None], y[:1]))(x)


def gradients(loss, x, y):
    return torch.func.vmap(torch.func.grad(lambda a: loss(a[None], y[:1])))(x)


def twice(loss, x, y):
    slope = torch.func.grad(lambda a: loss(a, y))
    return torch.func.grad(lambda a: slope(a).square().sum())(x)


# How torch traces forward mode.
@pytest.mark.filterwarnings("ignore:`torch.jit:DeprecationWarning")
@pytest.mark.parametrize("name", ["ssim", "ms_ssim", "l1_ssim"])
@pytest.mark.parametrize("function", [jvp, dual, batch, gradients, twice])
def test_what_kernels_do_not_know(name, function):
    loss, (x, y) = LOSSES[name](), pair((2, 3, 12, 14))
    expected = function(loss, x, y)
    assert expected.abs().max() > 0
    compiled = torch.compile(functools.partial(function, loss), fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(x, y), expected, rtol=1e-4, atol=1e-9)


@pytest.mark.parametrize("name", ["ssim", "ms_ssim", "l1_ssim"])
def test_second_derivatives_are_refused(name):
    """Torch has none of a compiled backward; it must not take those of the kernels for zero."""
    compiled = torch.compile(LOSSES[name](), fullgraph=True, backend="aot_eager")
    x, y = pair((2, 3, 12, 14))
    value = compiled(x.requires_grad_(), y)

    def penalty():
        (slope,) = torch.autograd.grad(value, x, create_graph=True)
        slope.square().sum().backward()

    with pytest.raises(RuntimeError, match="create_graph=False|double backward"):
        penalty()


@pytest.mark.parametrize("name", ["ssim", "l1_ms_ssim"])
def test_value_and_grad_inside_of_a_compiled_function(backend, name):
    loss = LOSSES[name](backend=backend)
    x, y = pair((2, 3, 24, 28))
    expected = loss.value_and_grad(x, y)

    def doubled(x, y):
        value, gradient = loss.value_and_grad(x, y)
        return 2 * value, 2 * gradient

    compiled = torch.compile(doubled, backend="aot_eager")
    for found, exact in zip(compiled(x, y), expected, strict=True):
        torch.testing.assert_close(found, 2 * exact, rtol=1e-5, atol=1e-9)
        assert not found.requires_grad
