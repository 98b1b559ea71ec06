"""Losses inside what people train with."""

import os

import pytest
import torch
from torch import distributed, multiprocessing, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.autograd import forward_ad
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.utils.checkpoint import checkpoint

from perceptual_losses import (
    L1MSSSIMLoss,
    L1SSIMLoss,
    LPIPSLoss,
    MSSSIMLoss,
    SSIMLoss,
    StyleLoss,
    VGGLoss,
    _ssim,
    ms_ssim,
    ssim,
    ssim_map,
    vgg_features,
)
from perceptual_losses._ssim.gpu import backend as gpu

pytestmark = pytest.mark.large

LOSSES = {
    "ssim": lambda **kw: SSIMLoss(window_size=3, **kw),
    "ms_ssim": lambda **kw: MSSSIMLoss(window_size=3, weights=(0.4, 0.6), **kw),
    "l1_ssim": lambda **kw: L1SSIMLoss(window_size=3, **kw),
    "l1_ms_ssim": lambda **kw: L1MSSSIMLoss(window_size=3, weights=(0.4, 0.6), **kw),
}
every_loss = pytest.mark.parametrize("name", LOSSES)


def pair(*shape):
    generator = torch.Generator().manual_seed(0)
    return torch.rand(2, *shape, generator=generator).unbind()


def model():
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), nn.SiLU(), nn.Conv2d(4, 3, 3, padding=1))


def gradients(module):
    return [parameter.grad.clone() for parameter in module.parameters()]


@every_loss
def test_accumulated_gradients_are_those_of_the_batch(backend, name):
    x, y = pair(4, 3, 16, 18)
    loss, whole, parts = LOSSES[name](backend=backend), model(), model()
    loss(whole(x), y).backward()
    for a, b in zip(x.split(2), y.split(2), strict=True):
        (loss(parts(a), b) / 2).backward()
    for got, expected in zip(gradients(parts), gradients(whole), strict=True):
        torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-7)


@pytest.mark.parametrize("reentrant", [False, True])
@every_loss
def test_in_a_checkpoint(backend, name, reentrant):
    x, y = pair(2, 3, 16, 18)
    loss, plain, recomputed = LOSSES[name](backend=backend), model(), model()
    expected = loss(plain(x), y)
    expected.backward()
    x.requires_grad_()
    value = checkpoint(lambda a: loss(recomputed(a), y), x, use_reentrant=reentrant)
    value.backward()
    assert torch.equal(value, expected)
    for got, wanted in zip(gradients(recomputed), gradients(plain), strict=True):
        assert torch.equal(got, wanted)


@every_loss
def test_scaled_gradients_are_the_plain_ones_once_unscaled(backend, name):
    x, y = pair(2, 3, 16, 18)
    loss, plain, scaled = LOSSES[name](backend=backend), model(), model()
    loss(plain(x), y).backward()
    expected = gradients(plain)
    optimizer = torch.optim.SGD(scaled.parameters(), lr=0.1)
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**16)
    scaler.scale(loss(scaled(x), y)).backward()
    scaler.unscale_(optimizer)
    for got, wanted in zip(gradients(scaled), expected, strict=True):
        assert torch.equal(got, wanted)
    before = [parameter.detach().clone() for parameter in scaled.parameters()]
    scaler.step(optimizer)
    scaler.update()
    assert scaler.get_scale() == 2.0**16
    assert not any(map(torch.equal, before, scaled.parameters()))


@every_loss
def test_a_scaler_skips_a_step_that_is_not_finite(backend, name):
    x, y = pair(2, 3, 16, 18)
    loss, trained = LOSSES[name](backend=backend), model()
    optimizer = torch.optim.SGD(trained.parameters(), lr=0.1)
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**16)
    y[0, 0, 8, 8] = torch.nan
    before = [parameter.detach().clone() for parameter in trained.parameters()]
    scaler.scale(loss(trained(x), y)).backward()
    scaler.step(optimizer)
    scaler.update()
    assert scaler.get_scale() == 2.0**15
    assert all(map(torch.equal, before, trained.parameters()))


@every_loss
def test_deterministic_algorithms(backend, name):
    x, y = pair(2, 3, 16, 18)
    x.requires_grad_()
    loss = LOSSES[name](backend=backend)
    (expected,) = torch.autograd.grad(loss(x, y), x)
    torch.use_deterministic_algorithms(True)
    try:
        (got,) = torch.autograd.grad(loss(x, y), x)
        (again,) = torch.autograd.grad(loss(x, y), x)
    finally:
        torch.use_deterministic_algorithms(False)
    assert torch.equal(got, expected)
    assert torch.equal(got, again)


class Judged(nn.Module):
    """A model whose output is its loss."""

    def __init__(self, loss):
        super().__init__()
        self.model, self.loss = model(), loss

    def forward(self, x, y):
        return self.loss(self.model(x), y)


FEATURE_LOSSES = {
    "vgg": lambda: VGGLoss({"conv1_2": 1.0}, weights=None),
    "lpips": lambda: LPIPSLoss("alexnet", weights=None, linear=lpips_weights()),
}


def lpips_weights():
    widths = enumerate((64, 192, 384, 256, 256))
    return {f"lin{i}.model.1.weight": torch.full((1, width, 1, 1), 0.1) for i, width in widths}


def traced(module, x, y):
    return torch.jit.trace(module, (x, y))


def exported(module, x, y):
    return torch.export.export(module, (x, y), strict=False).module()


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::torch.jit.TracerWarning")
@pytest.mark.filterwarnings("ignore:.*jit.trace.* is deprecated:FutureWarning")
@pytest.mark.filterwarnings("ignore:the features of")
@pytest.mark.parametrize("export", [traced, exported])
@pytest.mark.parametrize("wanted", [False, True])
@pytest.mark.parametrize("name", [*LOSSES, *FEATURE_LOSSES])
def test_exported_with_the_model(name, wanted, export):
    """In torch's own operations, whose gradient is there even if none was when it was made."""
    x, y = pair(2, 3, 64, 64)
    module = Judged({**LOSSES, **FEATURE_LOSSES}[name]())
    with torch.set_grad_enabled(wanted):
        graph = export(module, x, y)
    assert "perceptual_losses::" not in str(graph.graph)
    if name in LOSSES:
        assert set(graph.state_dict()) == set(module.state_dict())
    x, y = y, x
    value, image = module(x, y), x.clone().requires_grad_()
    got = graph(image, y)
    torch.testing.assert_close(got, value, rtol=1e-5, atol=0)
    (gradient,) = torch.autograd.grad(got, image)
    image = x.clone().requires_grad_()
    (expected,) = torch.autograd.grad(module(image, y), image)
    assert (gradient - expected).norm() < 1e-2 * expected.norm()


def test_an_exported_graph_serves_all_sizes():
    module, (x, y) = LOSSES["ms_ssim"](), pair(2, 3, 32, 41)
    count, height, width = (
        torch.export.Dim(side, min=2 if side == "n" else 20, max=512) for side in "nhw"
    )
    sides = {0: count, 2: height, 3: width}
    graph = torch.export.export(module, (x, y), dynamic_shapes=(sides, sides), strict=False)
    for size in ((3, 3, 33, 40), (4, 3, 26, 23)):
        x, y = pair(*size)
        torch.testing.assert_close(graph.module()(x, y), module(x, y), rtol=1e-5, atol=0)


def test_kernels_refuse_to_be_exported():
    x, y = pair(2, 3, 16, 18)
    with pytest.raises(ValueError, match="an export is active.*pass backend='auto'"):
        exported(Judged(SSIMLoss(backend="numba")), x, y)


@pytest.mark.filterwarnings("ignore:the features of")
@pytest.mark.parametrize("name", [*LOSSES, *FEATURE_LOSSES])
def test_batches_of_gradients(name):
    x, y = pair(2, 3, 64, 64)
    image, loss = x.clone().requires_grad_(), {**LOSSES, **FEATURE_LOSSES}[name]()
    value = loss(image, y)
    (expected,) = torch.autograd.grad(value, image, retain_graph=True)
    factors = torch.tensor([1.0, -2.0, 0.0])
    (got,) = torch.autograd.grad(value, image, factors, is_grads_batched=True)
    assert not got.requires_grad
    for gradient, factor in zip(got, factors, strict=True):
        assert (gradient - factor * expected).norm() < 1e-3 * expected.norm()


# Several processes.


def train(trained, loss, x, y, steps=3):
    """Of the model that is given; its parameters afterwards."""
    optimizer = torch.optim.SGD(trained.parameters(), lr=0.5)
    for _ in range(steps):
        optimizer.zero_grad()
        loss(trained(x), y).backward()
        optimizer.step()
    return [parameter.detach() for parameter in trained.parameters()]


CASES = [(path, name) for path in ("reference", "numba") for name in LOSSES]


def one_of_two(rank, folder):
    """Trains on half of each batch, sharded and in copies; the first process writes what came."""
    torch.set_num_threads(1)
    distributed.init_process_group("gloo", f"file://{folder}/store", rank=rank, world_size=2)
    mesh = init_device_mesh("cpu", (2,))
    x, y = (images[2 * rank :][:2] for images in pair(4, 3, 16, 18))
    found = {}
    for path, name in CASES:
        loss = LOSSES[name](backend=path)
        copies = nn.parallel.DistributedDataParallel(model())
        sharded = model()
        for module in (sharded[0], sharded[2], sharded):
            fully_shard(module, mesh=mesh)
        inside = fully_shard(Judged(loss), mesh=mesh)
        inside(x, y).backward()
        found[path, name] = {
            "ddp": train(copies, loss, x, y),
            "fsdp": [part.full_tensor() for part in train(sharded, loss, x, y)],
            "inside": [part.grad.full_tensor() for part in inside.parameters()],
        }
    if rank == 0:
        torch.save(found, folder / "found")
    distributed.destroy_process_group()
    # Gloo's threads may still let go of tensors, which aborts an interpreter that is ending.
    os._exit(0)


def test_two_processes_train_as_one(tmp_path):
    workers = multiprocessing.spawn(one_of_two, (tmp_path,), nprocs=2, join=False)
    try:
        # Each waits until one process has ended.
        assert any(workers.join(timeout=300) for _ in range(2))
    finally:
        for process in workers.processes:
            process.kill()
    found = torch.load(tmp_path / "found")
    x, y = pair(4, 3, 16, 18)
    for path, name in CASES:
        loss, single = LOSSES[name](backend=path), model()
        before = [parameter.detach().clone() for parameter in single.parameters()]
        trained = train(single, loss, x, y)
        assert not any(map(torch.equal, before, trained))
        judged = Judged(loss)
        judged(x, y).backward()
        expected = {"ddp": trained}
        if not torch.__version__.startswith("2.7."):  # Its FSDP2 over gloo trains on no loss right.
            expected |= {"fsdp": trained, "inside": gradients(judged)}
        for kind, wanted in expected.items():
            for got, exact in zip(found[path, name][kind], wanted, strict=True):
                torch.testing.assert_close(got, exact, rtol=1e-4, atol=1e-6)


# Whole steps under the compiler.


def training_step(trained, loss, optimizer, autocast, x, y):
    optimizer.zero_grad()
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        value = loss(trained(x), y)
    value.backward()
    optimizer.step()
    return value.detach()


# How the compiler itself traces an autograd.Function, imports what is old, and leaves the graph.
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor:UserWarning")
@pytest.mark.parametrize("autocast", [False, True])
@pytest.mark.parametrize("what", ["the loss", "model and loss", "the step"])
def test_a_compiled_training_step(what, autocast):
    torch.compiler.reset()
    x, y = pair(2, 3, 16, 18)
    loss = LOSSES["l1_ms_ssim"]()
    plain, compiled = model(), model()
    optimizers = [torch.optim.SGD(m.parameters(), lr=0.5) for m in (plain, compiled)]
    step, judge, run = training_step, loss, compiled
    if what == "the loss":
        judge = torch.compile(loss, fullgraph=True, backend="aot_eager")
    elif what == "model and loss":
        whole = torch.compile(
            lambda x, y: loss(compiled(x), y), fullgraph=True, backend="aot_eager"
        )
        run, judge = (lambda x: x), whole
    else:
        step = torch.compile(training_step, backend="aot_eager")
    for _ in range(3):
        expected = training_step(plain, loss, optimizers[0], autocast, x, y)
        value = step(run, judge, optimizers[1], autocast, x, y)
        tolerance = 2e-2 if autocast else 1e-5
        torch.testing.assert_close(value, expected, rtol=tolerance, atol=0)
    for got, wanted in zip(compiled.parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(got, wanted, rtol=tolerance, atol=tolerance / 10)


# Derivatives and batches by other means than autograd's.

# What torch itself takes for forward mode.
forward_mode = pytest.mark.filterwarnings(
    *(f"ignore:`torch.jit:{kind}Warning" for kind in ("Deprecation", "Future"))
)

TRANSFORMED = {
    **LOSSES,
    "none": lambda **kw: SSIMLoss(window_size=3, reduction="none", **kw),
    "symmetric": lambda **kw: SSIMLoss(window_size=3, padding="symmetric", **kw),
    "relu": lambda **kw: MSSSIMLoss(
        window_size=3, weights=(0.4, 0.6), normalize="relu", padding="zeros", **kw
    ),
    "map": lambda **kw: lambda x, y: ssim_map(x, y, window_size=3, **kw).square().mean(),
    "mask": lambda **kw: lambda x, y: ssim(x, y, window_size=3, mask=y[:, :1] > 0.2, **kw),
}


def pairs():
    generator = torch.Generator().manual_seed(0)
    return torch.rand(2, 3, 2, 3, 12, 14, generator=generator, dtype=torch.float64).unbind()


def derivative(function, x, y):
    x = x.clone().requires_grad_()
    return torch.autograd.grad(function(x, y).sum(), x)[0]


def assert_equal(got, expected):
    torch.testing.assert_close(got, expected, rtol=1e-10, atol=1e-14)


@pytest.mark.parametrize("name", TRANSFORMED)
def test_under_transforms(name):
    function, (x, y) = TRANSFORMED[name](), pairs()
    expected = torch.stack([function(a, b) for a, b in zip(x, y, strict=True)])
    assert_equal(torch.func.vmap(function)(x, y), expected)
    shared = torch.stack([function(a, y[0]) for a in x])
    assert_equal(torch.func.vmap(function, in_dims=(0, None))(x, y[0]), shared)
    slopes = torch.stack([derivative(function, a, b) for a, b in zip(x, y, strict=True)])
    gradient = torch.func.grad(lambda a, b: function(a, b).sum())
    assert_equal(gradient(x[0], y[0]), slopes[0])
    assert_equal(torch.func.vmap(gradient)(x, y), slopes)


@forward_mode
@pytest.mark.parametrize("name", TRANSFORMED)
def test_forward_mode(name):
    function, (x, y) = TRANSFORMED[name](), (images[0] for images in pairs())
    direction = torch.rand(x.shape, generator=torch.Generator().manual_seed(1), dtype=x.dtype)
    slope = (derivative(function, x, y) * direction).sum()
    assert slope.abs() > 1e-6
    _, tangent = torch.func.jvp(lambda a: function(a, y), (x,), (direction,))
    assert_equal(tangent.sum(), slope)
    for wanted in (False, True):
        with forward_ad.dual_level():
            dual = forward_ad.make_dual(x.clone().requires_grad_(wanted), direction)
            assert_equal(forward_ad.unpack_dual(function(dual, y)).tangent.detach().sum(), slope)


@forward_mode
@pytest.mark.parametrize("option", ["mask", "valid"])
def test_forward_mode_of_weighted_mixes_in_float32(option):
    loss, (x, y) = LOSSES["l1_ms_ssim"](backend="reference"), (image[0] for image in pairs())
    pixels = {option: y[:, :1] > 0.2}
    slope = (derivative(lambda a, b: loss(a, b, **pixels), x, y) * y).sum()
    x, y = x.float(), y.float()
    _, tangents = torch.func.jvp(lambda a: tuple(loss.terms(a, y, **pixels)), (x,), (y,))
    assert {tangent.dtype for tangent in tangents} == {torch.float32}
    torch.testing.assert_close(tangents[0], slope.float(), rtol=1e-5, atol=0)


# Torch says it of its own constants.
@pytest.mark.filterwarnings("ignore:Attempted to insert a get_attr Node:UserWarning")
@forward_mode
def test_nothing_is_read_where_operations_are_recorded_or_have_no_values():
    loss, (x, y) = LOSSES["l1_ms_ssim"](reduction="none"), (image[0] for image in pairs())
    extras = {"mask": y[:, :1], "valid": y[:, :1] > 0.2, "data_range": torch.ones(2)}
    expected = torch.func.jvp(lambda a: loss(a, y, **extras), (x,), (y,))
    value, tangents = torch.func.linearize(lambda a: loss(a, y, **extras), x)
    assert_equal((value, tangents(y)), expected)
    with FakeTensorMode() as mode:
        fakes = {name: mode.from_tensor(extra) for name, extra in extras.items()}
        assert loss(mode.from_tensor(x), mode.from_tensor(y), **fakes).shape == (2,)


@forward_mode
def test_products_with_the_hessian():
    function, (x, y) = LOSSES["ms_ssim"](), (images[0, :1, :1] for images in pairs())
    direction = torch.rand(x.shape, generator=torch.Generator().manual_seed(1), dtype=x.dtype)
    slope = torch.func.grad(lambda a: function(a, y))
    _, forward = torch.func.jvp(slope, (x,), (direction,))
    image = x.clone().requires_grad_()
    (first,) = torch.autograd.grad(function(image, y), image, create_graph=True)
    (expected,) = torch.autograd.grad((first * direction).sum(), image)
    assert_equal(forward, expected)


@forward_mode
@pytest.mark.parametrize("name", TRANSFORMED)
def test_hessian(name):
    """Forward mode, batched, over a backward."""
    function, (x, y) = TRANSFORMED[name](), (images[0, :1, :1] for images in pairs())
    expected = torch.autograd.functional.hessian(lambda a: function(a, y).sum(), x)
    assert expected.abs().max() > 1e-6
    assert_equal(torch.func.hessian(lambda a: function(a, y).sum())(x), expected)


@forward_mode
@pytest.mark.parametrize("path", ["numba", "triton"])
def test_kernels_refuse_transforms(path):
    loss, (x, y) = SSIMLoss(window_size=3, backend=path), pairs()
    x, y = x.float(), y.float()
    advice = "is active, and its gradient is made for autograd; pass backend='auto'"
    with pytest.raises(ValueError, match=f"a torch.func transform {advice}"):
        torch.func.vmap(loss)(x, y)
    if path == "numba" or gpu._interpreted():
        with (
            forward_ad.dual_level(),
            pytest.raises(ValueError, match=f"forward-mode differentiation {advice}"),
        ):
            loss(forward_ad.make_dual(x[0], y[0]), y[0])


FEATURES = {
    "vgg": lambda: VGGLoss({"relu2_2": 1.0}, weights=None),
    "lpips": lambda: LPIPSLoss(
        backbone="alexnet",
        weights=None,
        linear={
            f"lin{i}.model.1.weight": torch.full((1, width, 1, 1), 0.1)
            for i, width in enumerate((64, 192, 384, 256, 256))
        },
    ),
    "style": lambda: StyleLoss({"relu2_2": 1.0}, weights=None),
}
random_weights = pytest.mark.filterwarnings("ignore:the features of:UserWarning")


@forward_mode
@random_weights
@pytest.mark.parametrize("name", FEATURES)
def test_forward_mode_of_features(name):
    torch.manual_seed(0)
    function, direction = FEATURES[name]().double(), torch.rand(1, 3, 48, 48).double()
    x, y = (image.double() for image in pair(1, 3, 48, 48))
    slope = (derivative(function, x, y) * direction).sum()
    assert slope.abs() > 1e-12
    _, tangent = torch.func.jvp(lambda a: function(a, y), (x,), (direction,))
    torch.testing.assert_close(tangent, slope, rtol=1e-8, atol=0)
    with forward_ad.dual_level():
        value = function(forward_ad.make_dual(x, direction), y)
        torch.testing.assert_close(forward_ad.unpack_dual(value).tangent, slope, rtol=1e-8, atol=0)


@forward_mode
@random_weights
@pytest.mark.parametrize("name", FEATURES)
def test_features_of_batches_of_batches(name):
    torch.manual_seed(0)
    function, directions = FEATURES[name]().double(), torch.rand(2, 1, 3, 36, 36).double()
    x, y = (image.double() for image in pair(2, 3, 36, 36))
    x, y = x[:, None], y[:1]
    values = torch.stack([function(a, y) for a in x])
    torch.testing.assert_close(torch.func.vmap(lambda a: function(a, y))(x), values)
    slopes = torch.stack([derivative(function, a, y) for a in x])
    found = torch.func.vmap(torch.func.grad(lambda a: function(a, y)))(x)
    torch.testing.assert_close(found, slopes, rtol=1e-8, atol=1e-12 * float(slopes.abs().max()))

    def tangent(direction):
        return torch.func.jvp(lambda a: function(a, y), (x[0],), (direction,))[1]

    expected = (slopes[0] * directions).flatten(1).sum(1)
    torch.testing.assert_close(torch.func.vmap(tangent)(directions), expected)


@forward_mode
@random_weights
@pytest.mark.parametrize("name", ["vgg", "lpips"])
def test_forward_mode_where_kernels_would_run(name):
    """In float32 and with enough values for the convolutions with fewer products."""
    torch.manual_seed(0)
    function, direction = FEATURES[name](), torch.rand(1, 3, 64, 64)
    x, y = pair(1, 3, 64, 64)
    slope = (derivative(function, x, y) * direction).sum()
    with forward_ad.dual_level():
        value = function(forward_ad.make_dual(x, direction), y)
        tangent = forward_ad.unpack_dual(value).tangent
    torch.testing.assert_close(tangent, slope, rtol=1e-3, atol=0)


# Devices.

ON_META = {
    **{name: (build(), ()) for name, build in LOSSES.items()},
    "none": (SSIMLoss(window_size=3, reduction="none"), (2,)),
    "ssim": (ssim, ()),
    "map": (ssim_map, (2, 3, 54, 56)),
    "ms_ssim": (lambda x, y: ms_ssim(x, y, levels=2, reduction="none"), (2,)),
    "mask": (lambda x, y: ssim(x, y, mask=y[:, :1] > 0.5), ()),
}


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize("name", ON_META)
def test_on_meta(name, dtype):
    function, shape = ON_META[name]
    x, y = torch.empty(2, 2, 3, 64, 66, dtype=dtype, device="meta").unbind()
    x.requires_grad_()
    value = function(x, y)
    wide = torch.float64 if dtype == torch.float64 else torch.float32
    assert (value.device.type, value.shape, value.dtype) == ("meta", shape, wide)
    (gradient,) = torch.autograd.grad(value.sum(), x)
    assert (gradient.device.type, gradient.shape, gradient.dtype) == ("meta", x.shape, dtype)


@random_weights
@pytest.mark.parametrize("name", FEATURES)
def test_features_on_meta(name):
    x, y = torch.empty(2, 2, 3, 64, 66, device="meta").unbind()
    x.requires_grad_()
    value = FEATURES[name]().to("meta")(x, y)
    assert (value.device.type, value.shape, value.dtype) == ("meta", (), torch.float32)
    (gradient,) = torch.autograd.grad(value, x)
    assert (gradient.device.type, gradient.shape) == ("meta", x.shape)


@random_weights
@pytest.mark.parametrize("dtype", [None, torch.bfloat16])
def test_an_extractor_on_meta(dtype):
    extract = vgg_features(["relu1_1", "pool2"], weights=None, dtype=dtype).to("meta")
    found = extract(torch.empty(2, 1, 64, 66, device="meta"))
    assert [tuple(f.shape) for f in found.values()] == [(2, 64, 64, 66), (2, 128, 16, 16)]
    assert {f.dtype for f in found.values()} == {dtype or torch.float32}


class On:
    """What the choice of a path reads of images, on a device that is not here."""

    dtype, is_floating_point = torch.float32, lambda self: True

    def __init__(self, device):
        self.device = torch.device(device)

    def dim(self):
        return 4


def choose(image, request, path):
    return _ssim.choose_backend(image, image, request, path)


@pytest.mark.parametrize("device", ["mps", "meta", "hpu"])
def test_other_devices_take_the_reference(device):
    definition = _ssim.Definition(((0.25, 0.5, 0.25),) * 2, 0.0, 1.0, 1e-4, 9e-4, "valid")
    request = _ssim.Request(definition)
    image = On(device)
    for path in ("auto", "reference"):
        assert choose(image, request, path) == "reference"
    for path, where in (("numba", "CPUs"), ("triton", "GPUs")):
        with pytest.raises(
            ValueError, match=f"on {device} and it runs on {where}; pass backend='a"
        ):
            choose(image, request, path)
