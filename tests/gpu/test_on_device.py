"""What needs a GPU: the compiled kernels' numbers, streams, graphs, memory, devices."""

import pytest
import torch

from perceptual_losses import (
    L1MSSSIMLoss,
    L1SSIMLoss,
    LPIPSLoss,
    MSSSIMLoss,
    SSIMLoss,
    ms_ssim,
    ssim,
)
from perceptual_losses._features import lpips_gpu
from perceptual_losses._features.lpips import layer_distance, layer_distance_formula
from perceptual_losses._ssim.gpu import launch as gpu_launch

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU"),
]

LOSSES = {"SSIM": SSIMLoss, "MS-SSIM": MSSSIMLoss, "L1-SSIM": L1SSIMLoss}


def pair(*shape, seed=0, dtype=torch.float32, device="cuda"):
    generator = torch.Generator(device).manual_seed(seed)
    x = torch.rand(shape, generator=generator, device=device)
    noise = torch.rand(shape, generator=generator, device=device)
    return x.to(dtype), (0.7 * x + 0.3 * noise).to(dtype)


def step(function, x, y, **options):
    x, y = x.detach().requires_grad_(), y.detach().requires_grad_()
    value = function(x, y, **options)
    return value.detach(), *torch.autograd.grad(value, (x, y))


@pytest.fixture(params=LOSSES)
def loss(request):
    return LOSSES[request.param](backend="triton")


@pytest.mark.parametrize("padding", ["valid", "zeros", "symmetric"])
@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("shape", [(2, 3, 176, 180), (1, 1, 183, 1021), (3, 2, 256, 256)])
@pytest.mark.parametrize("function", [ssim, ms_ssim])
def test_the_numbers(function, shape, masked, padding):
    x, y = pair(*shape)
    mask = pair(1, 1, *shape[2:], seed=1)[0] if masked else None
    options = {"padding": padding, "mask": mask, "data_range": (-0.5, 1)}
    fast = step(function, x, y, backend="triton", **options)
    exact = step(function, x.double(), y.double(), backend="reference", **options)
    for got, true in zip(fast, exact, strict=True):
        assert (got - true).norm() < 3e-6 * true.norm()


@pytest.mark.parametrize("padding", ["valid", "zeros", "symmetric"])
@pytest.mark.parametrize("shape", [(2, 3, 176, 180), (1, 1, 183, 1021)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("mix", [L1SSIMLoss, L1MSSSIMLoss])
def test_the_mixes(mix, dtype, shape, padding):
    x, y = pair(*shape, dtype=dtype)
    y[..., :9] = x[..., :9]
    options = {"padding": padding, "data_range": (-0.5, 1)}
    fast = step(mix(backend="triton", **options), x, y)
    exact = step(mix(backend="reference", **options), x.double(), y.double())
    assert abs(fast[0] - exact[0]) < 1e-6
    tolerance = max(3e-6, torch.finfo(dtype).eps if dtype == torch.bfloat16 else 0)
    for got, true in zip(fast[1:], exact[1:], strict=True):
        assert (got - true).norm() < tolerance * true.norm()


@pytest.mark.parametrize("padding", ["valid", "zeros", "symmetric"])
@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("shape", [(64, 3, 64, 64), (1, 1, 183, 1021), (3, 2, 256, 256)])
def test_values_alone(loss, shape, masked, padding):
    """Which other kernels compute, and for small images one launch."""
    x, y = pair(*shape)
    mask = pair(1, 1, *shape[2:], seed=1)[0] if masked else None
    options = {"padding": padding, "data_range": (-0.5, 1)}
    if isinstance(loss, MSSSIMLoss):
        options["levels"] = 2
    value = type(loss)(backend="triton", **options)(x, y, mask=mask)
    exact = type(loss)(backend="reference", **options)(x.double(), y.double(), mask=mask)
    assert abs(value - exact) < 1e-6


@pytest.mark.parametrize("window_size", [1, 3, 9, 11, 13, 17, 25, 33])
def test_windows(window_size):
    x, y = pair(2, 2, 90, 131)
    options = {"window_size": window_size, "sigma": window_size / 7}
    fast = step(ssim, x, y, backend="triton", **options)
    exact = step(ssim, x.double(), y.double(), backend="reference", **options)
    for got, true in zip(fast, exact, strict=True):
        # With one tap there is no variance, and two large terms of the gradient cancel.
        assert (got - true).norm() < (3e-5 if window_size == 1 else 3e-6) * true.norm()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_and_autocast(loss, dtype):
    x, y = pair(2, 3, 192, 200, dtype=dtype)
    value, *gradients = step(loss, x, y)
    exact, *expected = step(type(loss)(backend="reference"), x.double(), y.double())
    assert value.dtype == torch.float32
    assert abs(value - exact) < 1e-6
    for got, true in zip(gradients, expected, strict=True):
        assert got.dtype == dtype
        # Small gradients are subnormal in float16: one rounding of the largest is what it has.
        assert (got - true).abs().max() < torch.finfo(dtype).eps * true.abs().max() + 6e-8
    # Without gradients other kernels run, which round otherwise.
    alone = loss(x, y)
    with torch.autocast("cuda", dtype):
        assert loss(x, y) == alone


def test_layouts(loss):
    x, y = pair(2, 3, 180, 190)
    expected = step(loss, x, y)
    rows = x.permute(0, 2, 3, 1).contiguous().permute(0, 3, 1, 2)
    sliced = torch.cat([x, x], 3)[..., 190:]
    for layout in (rows, sliced):
        for got, same in zip(step(loss, layout, y), expected, strict=True):
            torch.testing.assert_close(got, same, rtol=1e-4, atol=1e-9)


def test_the_same_each_time(loss):
    x, y = pair(4, 3, 200, 210)
    first = step(loss, x, y)
    for _ in range(5):
        assert all(map(torch.equal, step(loss, x, y), first))


def test_on_a_side_stream(loss):
    x, y = pair(4, 3, 512, 512)
    expected = step(loss, x, y)
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        # The kernels have to wait for this, which another stream would not.
        torch.cuda._sleep(10**8)
        late = torch.zeros_like(x).add_(x)
        got = step(loss, late, y)
    stream.synchronize()
    assert all(map(torch.equal, got, expected))


def test_on_several_streams_at_once(loss):
    """Whose launches count their programs each for themselves."""
    pairs = [pair(n, 3, 192, 192, seed=n) for n in (1, 3, 8)]
    expected = [loss(*images) for images in pairs]
    torch.cuda.synchronize()
    streams = [torch.cuda.Stream() for _ in pairs]
    found = []
    for _ in range(200):
        for images, stream in zip(pairs, streams, strict=True):
            with torch.cuda.stream(stream):
                found.append(loss(*images))
    torch.cuda.synchronize()
    assert all(torch.equal(value, expected[k % len(pairs)]) for k, value in enumerate(found))


@pytest.mark.filterwarnings("ignore:Synchronization debug mode is a prototype")
def test_no_synchronisation(loss):
    x, y = pair(2, 3, 192, 192)
    step(loss, x, y)
    torch.cuda.set_sync_debug_mode("error")
    try:
        step(loss, x, y)
    finally:
        torch.cuda.set_sync_debug_mode("default")


def test_in_a_graph(loss):
    x, y = pair(2, 3, 192, 192)
    x.requires_grad_()

    def forward_and_backward():
        value = loss(x, y)
        return value.detach(), torch.autograd.grad(value, x)[0]

    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(3):
            forward_and_backward()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        value, gradient = forward_and_backward()
    other = pair(2, 3, 192, 192, seed=7)[0]
    with torch.no_grad():
        x.copy_(other)
    graph.replay()
    expected = forward_and_backward()
    assert torch.equal(value, expected[0])
    assert torch.equal(gradient, expected[1])


def test_a_graph_beside_other_launches(loss):
    """On the stream of which it was captured, and on another at the same time."""
    x, y = pair(4, 3, 192, 192)
    other = pair(2, 3, 200, 192, seed=1)
    expected, of_other = loss(x, y), loss(*other)
    graph, stream = torch.cuda.CUDAGraph(), torch.cuda.Stream()
    with torch.cuda.graph(graph):
        value = loss(x, y)
    for _ in range(100):
        value.zero_()
        stream.wait_stream(torch.cuda.current_stream())
        graph.replay()
        with torch.cuda.stream(stream):
            beside = loss(*other)
        torch.cuda.current_stream().wait_stream(stream)
        assert torch.equal(value, expected)
        assert torch.equal(beside, of_other)
        assert torch.equal(loss(*other), of_other)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of how torch.compile itself traces
def test_compiled_into_graphs(loss, monkeypatch):
    """Torch takes back what is allocated while it prepares a graph, and so nothing may stay."""
    x, y = pair(2, 3, 192, 192)
    expected = step(loss, x, y)
    monkeypatch.setattr(gpu_launch, "_zeros", {})
    compiled = torch.compile(loss, fullgraph=True, mode="reduce-overhead")
    for _ in range(5):
        torch.compiler.cudagraph_mark_step_begin()
        for a, b in zip(step(compiled, x, y), expected, strict=True):
            assert (a - b).norm() < 3e-6 * b.norm()


@pytest.mark.parametrize(("name", "limit"), [("SSIM", 1.1), ("MS-SSIM", 1.8), ("L1-SSIM", 1.1)])
def test_memory(name, limit):
    """Beyond the images: the gradient, little scratch, and for MS-SSIM the pyramid's."""
    x, y = pair(8, 3, 540, 960)
    x.requires_grad_()
    loss = LOSSES[name](backend="triton")
    torch.autograd.grad(loss(x, y), x)
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    torch.autograd.grad(loss(x, y), x)
    peak = torch.cuda.max_memory_allocated() - before
    scratch = 16 * 2**20
    assert peak < limit * x.numel() * x.element_size() + scratch


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of how torch.compile itself traces
def test_compiled():
    x, y = pair(2, 3, 192, 192)
    loss = L1MSSSIMLoss(backend="triton")
    expected = step(loss, x, y)
    got = step(torch.compile(loss, fullgraph=True), x, y)
    for a, b in zip(got, expected, strict=True):
        # The compiler takes another logarithm to combine the levels.
        assert (a - b).norm() < 3e-6 * b.norm()


def test_beyond_32_bits():
    height, width = 2**16 + 3, 2**15 + 5
    x = torch.rand(1, 1, height, width, device="cuda", dtype=torch.float16)
    y = x * 0.5
    whole = ssim(x, y, backend="triton")
    corner, target = (image[..., -64:, -64:].clone() for image in (x, y))
    assert abs(whole - ssim(corner, target)) < 0.02
    scale = 2.0**30
    (gradient,) = torch.autograd.grad(scale * ssim(x.requires_grad_(), y, backend="triton"), x)
    share = 54 * 54 / ((height - 10) * (width - 10))
    (expected,) = torch.autograd.grad(scale * share * ssim(corner.requires_grad_(), target), corner)
    # Where no window reaches beyond the corner.
    got, same = (part[..., -54:, -54:].float() for part in (gradient, expected))
    assert (got - same).norm() < 1e-2 * same.norm()
    x.detach_()[..., -1, -1] = float("nan")
    assert ssim(x, y, backend="triton").isnan()


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="there is one GPU")
def test_on_a_second_device(loss):
    x, y = pair(2, 3, 192, 192)
    expected = step(loss, x, y)
    got = step(loss, x.to("cuda:1"), y.to("cuda:1"))
    for a, b in zip(got, expected, strict=True):
        assert a.device.index == 1
        torch.testing.assert_close(a.to("cuda:0"), b)


def features(*shape, dtype, layout):
    """Rectified features of two similar images, and the weights of their channels."""
    images = pair(*shape)
    x, y = ((image - 0.4).relu().to(dtype).to(memory_format=layout) for image in images)
    return x, y, torch.linspace(0.1, 1, shape[1], device="cuda")


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("shape", [(2, 64, 64, 66), (3, 512, 14, 14), (1, 192, 27, 27)])
def test_lpips_of_a_layer(shape, dtype, layout):
    x, y, weight = features(*shape, dtype=dtype, layout=layout)
    assert lpips_gpu.takes(x.device, dtype)
    # Gradients that float16 can hold.
    scale = shape[2] * shape[3]
    first = step(lambda x, y: scale * layer_distance(x, y, weight).sum(), x, y)
    again = step(lambda x, y: scale * layer_distance(x, y, weight).sum(), x, y)
    exact = step(
        lambda x, y: scale * layer_distance_formula(x, y, weight.double()).sum(),
        *(x.double(), y.double()),
    )
    assert abs(first[0] - exact[0]) < 1e-6 * exact[0]
    tolerance = 2e-6 if dtype == torch.float32 else 0.5 * torch.finfo(dtype).eps
    for gradient, same, true in zip(first[1:], again[1:], exact[1:], strict=True):
        assert gradient.dtype == dtype
        assert gradient.is_contiguous(memory_format=layout)
        assert (gradient - true).norm() < tolerance * true.norm()
        assert torch.equal(gradient, same)
    assert torch.equal(first[0], again[0])
    value, *gradients = step(lambda x, y: layer_distance(x, y, weight).sum(), x, x.clone())
    assert value == 0
    assert not any(gradient.any() for gradient in gradients)


@pytest.mark.filterwarnings("ignore:the features of")
@pytest.mark.parametrize("backbone", ["vgg16", "alexnet", "squeezenet1_1"])
def test_lpips(monkeypatch, backbone):
    """The kernels against torch's operations on features of the same network."""
    x, y = pair(2, 3, 70, 90)
    loss = LPIPSLoss(backbone, weights=None).cuda()
    fast = step(loss, x, y)
    monkeypatch.setattr(lpips_gpu, "takes", lambda device, dtype: False)
    for got, true in zip(fast, step(loss, x, y), strict=True):
        assert (got - true).norm() < 1e-4 * true.norm()


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_lpips_beyond_32_bits(layout):
    height, width = 2**13, 2**12 + 3
    x = torch.rand(1, 64, height, width, dtype=torch.float16, device="cuda")
    assert x.numel() > 2**31
    x = x.to(memory_format=layout)
    y, weight = 1 - x, torch.linspace(0.1, 1, 64, device="cuda")
    scale, rows = height * width, 3
    _, gradient, _ = step(lambda x, y: scale * layer_distance(x, y, weight).sum(), x, y)
    last, target = (feature[:, :, -rows:].clone() for feature in (x, y))
    scale = rows * width
    _, same, _ = step(lambda x, y: scale * layer_distance(x, y, weight).sum(), last, target)
    assert (gradient[:, :, -rows:] - same).norm() < 1e-3 * same.norm()
