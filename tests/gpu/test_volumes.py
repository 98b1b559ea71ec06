"""The kernels for volumes: in Triton's interpreter, compiled for the emulator, and planned."""

import contextlib
import functools
import itertools
import math
import os

import pytest
import torch
from kernel_steps import needs_triton, pair

from benchmarks.gpu import registers
from perceptual_losses import L1MSSSIMLoss, L1SSIMLoss, MSSSIMLoss, SSIMLoss, ssim, ssim_map
from perceptual_losses._ssim.backend import NO_AUXILIARY, Layout
from perceptual_losses._ssim.gpu import levels as gpu_levels
from perceptual_losses._ssim.gpu import programs
from perceptual_losses._ssim.gpu import tiles as gpu_tiles
from perceptual_losses._ssim.gpu import volume as gpu_volume
from perceptual_losses._ssim.gpu.launch import Allocation
from perceptual_losses._ssim.request import Definition, Request, gaussian

pytestmark = needs_triton

compiles = pytest.mark.skipif(
    os.environ.get("TRITON_INTERPRET") == "1", reason="the interpreter is switched on"
)

EVERYTHING = {"mask", "valid", "ranges"}
BY_AXIS = {"window_size": (3, 5, 7), "sigma": (0.6, 1.0, 2.0)}
DEEP = {"window_size": (23, 3, 1), "sigma": (4.0, 1.0, 1.0)}
UNIFORM = {"window": "uniform", "sample_covariance": True}
LEVELS = {"window_size": 3, "weights": (0.2, 0.3, 0.5)}
TWO_LEVELS = {"window_size": 3, "weights": (0.4, 0.6)}

# The loss, the shape of the volumes, its options, and the tensors beside the volumes.
CASES = {
    "valid": (SSIMLoss, (1, 2, 6, 9, 13), {"window_size": 5}, set()),
    "zeros": (SSIMLoss, (1, 2, 4, 8, 9), {**BY_AXIS, "padding": "zeros"}, set()),
    "symmetric": (SSIMLoss, (1, 1, 4, 8, 9), {**BY_AXIS, "padding": "symmetric"}, set()),
    "deep": (SSIMLoss, (1, 1, 24, 3, 5), {**DEEP, "padding": "zeros"}, set()),
    "deep mirror": (SSIMLoss, (1, 1, 24, 3, 5), {**DEEP, "padding": "symmetric"}, set()),
    "mask": (SSIMLoss, (2, 3, 3, 5, 6), {"window_size": 3, "padding": "zeros"}, {"mask"}),
    "all": (SSIMLoss, (2, 1, 4, 5, 6), {"window_size": 3, "padding": "symmetric"}, EVERYTHING),
    "mix": (L1SSIMLoss, (2, 1, 4, 6, 13), {"window_size": 3}, {"ranges"}),
    "mirrored mix": (
        L1SSIMLoss,
        (1, 1, 4, 7, 9),
        {"window_size": 3, "padding": "symmetric"},
        set(),
    ),
    "uniform": (SSIMLoss, (1, 1, 6, 7, 9), {**UNIFORM, "window_size": 5}, set()),
    # As deep as the window, and so more mirror images of planes than planes.
    "thin": (SSIMLoss, (1, 1, 7, 7, 9), {"window_size": 7, "padding": "symmetric"}, {"valid"}),
    "thin deep": (SSIMLoss, (1, 1, 23, 3, 5), {**DEEP, "padding": "symmetric"}, {"mask"}),
    "slice": (SSIMLoss, (1, 2, 1, 6, 9), {"window_size": (1, 3, 5), "padding": "symmetric"}, set()),
    "levels": (MSSSIMLoss, (1, 1, 9, 11, 10), LEVELS, set()),
    "valid levels": (MSSSIMLoss, (1, 1, 9, 10, 11), LEVELS, {"valid"}),
    "mixed levels": (L1MSSSIMLoss, (1, 1, 5, 6, 5), TWO_LEVELS, set()),
}
LAYOUTS = {
    "float32": lambda volume: volume,
    "bfloat16": torch.Tensor.bfloat16,
    "float16": torch.Tensor.half,
    "channels_last": lambda volume: volume.contiguous(memory_format=torch.channels_last_3d),
    # The channels first, then the images, and the slices last.
    "permuted": lambda volume: volume.permute(1, 0, 3, 4, 2).contiguous().permute(1, 0, 4, 2, 3),
}


def beside(shape, names):
    """The tensors beside the volumes, as the call takes them."""
    generator = torch.Generator().manual_seed(1)
    weights, exists = torch.rand(2, shape[0], 1, *shape[2:], generator=generator)
    tensors = {
        "mask": weights,
        "valid": exists < 0.8,
        "ranges": torch.linspace(0.5, 2, shape[0]),
    }
    return {{"ranges": "data_range"}.get(name, name): tensors[name] for name in names}


def step(function, x, y, gradients):
    """The value and the gradients of the first images."""
    images = [image.detach().requires_grad_(i < gradients) for i, image in enumerate((x, y))]
    value = function(*images)
    upstream = torch.linspace(0.5, 2, value.numel(), dtype=value.dtype).reshape(value.shape)
    wanted = images[:gradients]
    found = torch.autograd.grad(value, wanted, upstream) if wanted else []
    return value.detach(), found


def judge(function, images, gradients, running=contextlib.nullcontext):
    """The Triton path's value and gradients against the reference's in float64."""
    with running():
        value, found = step(functools.partial(function, backend="triton"), *images, gradients)
    reference = functools.partial(function, backend="reference")
    expected, exact = step(reference, *[image.double() for image in images], gradients)
    assert (value - expected).abs().max() < 1e-6
    # The last rounding of a gradient, and what float32 loses before it.
    error = max(torch.finfo(images[0].dtype).eps, 1e-5)
    for gradient, target in zip(found, exact, strict=True):
        assert gradient.dtype == images[0].dtype
        assert (gradient - target).norm() < error * target.norm()


def of_case(name, layout="float32"):
    """The loss as a function of the images, and the images."""
    loss, shape, options, names = CASES[name]
    tensors = beside(shape, names)
    images = [LAYOUTS[layout](image) for image in pair(*shape)]

    def function(x, y, backend):
        return loss(**options, backend=backend, reduction="none")(x, y, **tensors)

    return function, images


@pytest.fixture
def small(monkeypatch, tiles):
    """Tiles that small volumes have several of, and memory for one volume at a time."""
    tiles(8, 2, 4)
    monkeypatch.setattr(gpu_volume, "DEPTH_TILE", gpu_tiles.Tile(64, 1, 1, 8))
    monkeypatch.setattr(gpu_volume, "CACHED_BYTES", 1)


@pytest.fixture
def wide(wide_tiles):
    """Few programs, each of which takes the interpreter as long as a thread does."""
    with wide_tiles():
        yield


@pytest.mark.interpreted
@pytest.mark.parametrize(
    ("name", "gradients"),
    [("valid", 0), ("valid", 1), ("zeros", 2), ("symmetric", 1), ("mix", 1), ("all", 1)],
)
def test_programs_meet_without_a_seam(small, name, gradients):
    judge(*of_case(name), gradients)


@pytest.mark.interpreted
@pytest.mark.parametrize(
    ("name", "gradients"),
    [(name, k) for name in CASES for k in (1, 2) if not (k == 2 and name.startswith("deep"))],
)
def test_interpreted(wide, name, gradients):
    function, images = of_case(name)
    judge(function, images, gradients)
    if gradients == 1:
        judge(function, images, 0)


@pytest.mark.interpreted
@pytest.mark.parametrize("layout", [name for name in LAYOUTS if name != "float32"])
def test_layouts(wide, layout):
    function, images = of_case("mask", layout)
    assert images[0].is_contiguous() == (layout in ("bfloat16", "float16"))
    judge(function, images, 1)


@pytest.mark.interpreted
def test_the_gradient_of_the_second_volume(wide):
    """Each volume has a layout of its own, so that one taken for the other shows."""
    function, (x, y) = of_case("mix")
    y = LAYOUTS["permuted"](y)
    judge(lambda y, x, backend: function(x, y, backend), (y, x), 1)


@pytest.mark.interpreted
@pytest.mark.parametrize(
    ("value", "padding", "place", "windows", "reach"),
    [
        # One of the voxels that the level of a volume is sampled at, and one that is not.
        (math.nan, "zeros", 0, slice(0, 2), slice(0, 3)),
        (math.inf, "valid", 3, slice(1, 4), slice(1, 6)),
    ],
    ids=["sampled", "other"],
)
def test_nonfinite_voxels_stay_in_their_windows(wide, value, padding, place, windows, reach):
    x, y = pair(1, 2, 6, 7, 8)
    x[0, 1, place, place, place] = value
    function = functools.partial(ssim_map, window_size=3, padding=padding)
    got, (gradient,) = step(functools.partial(function, backend="triton"), x, y, 1)
    reference = functools.partial(function, backend="reference")
    expected, (exact,) = step(reference, x.double(), y.double(), 1)
    for found, target, part in ((got, expected, windows), (gradient, exact, reach)):
        spoiled = torch.zeros(found.shape, dtype=torch.bool)
        spoiled[0, 1, part, part, part] = True
        assert torch.equal(found.isnan(), spoiled)
        torch.testing.assert_close(found[~spoiled], target[~spoiled].float(), rtol=1e-5, atol=1e-5)


@pytest.mark.interpreted
@pytest.mark.parametrize("padding", ["valid", "zeros", "symmetric"])
def test_maps(wide, padding):
    shape = (2, 1, 4, 5, 7)
    tensors = beside(shape, {"valid", "ranges"} if padding != "zeros" else {})
    function = functools.partial(ssim_map, window_size=3, padding=padding, **tensors)
    for gradients in (0, 2):
        judge(function, pair(*shape), gradients)


@pytest.mark.interpreted
@pytest.mark.parametrize("together", [1, 2**30])
def test_means(wide, monkeypatch, together):
    """The last program adds up all volumes if they are computed at once; else another launch."""
    monkeypatch.setattr(gpu_volume, "CACHED_BYTES", together)

    def function(x, y, backend):
        return L1SSIMLoss(window_size=3, backend=backend)(x, y)

    judge(function, pair(1, 2, 4, 6, 7), 1)


@pytest.mark.filterwarnings("ignore:.*should not be instantiated:DeprecationWarning")
@pytest.mark.interpreted
def test_calls_without_autograd_and_compiled_ones(wide):
    loss = L1MSSSIMLoss(**TWO_LEVELS, backend="triton")
    x, y = pair(1, 1, 5, 6, 5)
    value, (gradient,) = step(loss, x, y, 1)
    compiled = torch.compile(loss, fullgraph=True, backend="aot_eager")
    other, (of_compiled,) = step(compiled, x, y, 1)
    assert abs(other - value) < 1e-6
    torch.testing.assert_close(of_compiled, gradient, rtol=1e-4, atol=1e-7)
    # A step's upstream gradient is a half.
    other, of_loss = loss.value_and_grad(x, y)
    assert other == value
    assert (0.5 * of_loss - gradient).norm() < 1e-6 * gradient.norm()


@pytest.mark.interpreted
def test_volumes_that_are_their_own_images(wide):
    x, _ = pair(1, 1, 4, 6, 7)
    loss = SSIMLoss(window_size=3, backend="triton")
    value, (gradient,) = step(loss, x, x.clone(), 1)
    assert value == 0
    assert not gradient.any()


# Each kernel in each padding, and each group of options once.
COMPILED = [
    *(("valid", 0, "float32"), ("valid", 1, "bfloat16"), ("zeros", 2, "float32")),
    *(("symmetric", 1, "float16"), ("deep", 1, "float32"), ("all", 1, "float32")),
    *(("thin", 1, "float32"), ("thin deep", 1, "float32")),
    *(("mix", 1, "float32"), ("mix", 1, "bfloat16"), ("valid levels", 1, "float32")),
]


@compiles
@pytest.mark.parametrize(
    ("capability", "name", "gradients", "layout"),
    [
        *((90, *case) for case in COMPILED),
        (75, "mix", 1, "float16"),
        (80, "symmetric", 2, "float32"),
    ],
)
def test_compiled(capability, name, gradients, layout):
    """As compiled for a GPU, with shared memory and threads that race if they can."""
    import ptx

    judge(*of_case(name, layout), gradients, functools.partial(ptx.running, capability, 2))


@compiles
@pytest.mark.parametrize(
    ("capability", "case"),
    [
        (90, registers.Case(11, 1, shape=registers.VOLUME)),
        (90, registers.Case(21, 2, "symmetric", True, shape=registers.VOLUME)),
        (90, registers.Case(33, 1, "zeros", dtype=torch.bfloat16, shape=registers.VOLUME)),
        (80, registers.Case(21, 1, shape=registers.VOLUME)),
        (75, registers.Case(11, 1, "zeros", dtype=torch.float16, shape=registers.VOLUME)),
        (75, registers.Case(33, 2, shape=registers.VOLUME)),
        (80, registers.Case(33, 2, "symmetric", shape=registers.VOLUME)),
        (75, registers.Case(33, 2, "zeros", True, shape=registers.VOLUME)),
    ],
    ids=lambda part: "-".join(map(str, part.cells)) if isinstance(part, tuple) else None,
)
def test_compiles_without_spills(capability, case):
    launches = registers.launched(case, capability)
    names = {"plane_moments_kernel", "depth_kernel", "gradient_kernel"}
    # Volumes one after the other have their sums added up by another launch.
    assert launches.keys() == {*names, "reduce_tiles_kernel"}
    for name in names:
        found = registers.figures(registers.compiled(launches[name], capability))
        assert found.spilled == 0
        assert found.shared < 2**16
        # The rows that threads exchange through scratch memory.
        exchanged = {"plane_moments_kernel"}
        if case.padding != "valid":
            exchanged.add("gradient_kernel")
        assert found.barriers == (name in exchanged)


def launches_of(shape, padding, gradients=1, taps=11, mix=None):
    """The launches of a loss of contiguous volumes."""
    definition = Definition((gaussian(taps, 1.5),) * 3, 0.0, 1.0, 1e-4, 9e-4, padding)
    request = Request(definition, mix=mix, reduction="loss", gradients=gradients)
    strides = tuple(math.prod(shape[i + 1 :]) for i in range(5))
    layout = Layout(torch.float32, shape, strides, True)
    machine = programs.Machine("sm_90", 132)
    device = torch.device("meta")
    return gpu_levels.forward_launches(machine, device, layout, layout, NO_AUXILIARY, request)


def scratch_of(launches):
    """The float32 values of the maps, and of all other memory beside the gradients."""
    allocations = [a for launch in launches for a in launch.allocations]
    sizes = {
        a.name: math.prod(a.shape)
        for a in allocations
        if isinstance(a, Allocation) and a.shape is not None
    }
    return sizes.pop("maps0"), sum(sizes.values())


@pytest.mark.parametrize("padding", ["valid", "zeros", "symmetric"])
@pytest.mark.parametrize("taps", [7, 11, 25])
@pytest.mark.parametrize(
    "sides", [(64, 128, 128), (32, 64, 64), (40, 60, 100), (25, 33, 71), (256, 256, 256)]
)
def test_a_step_takes_the_memory_of_four_gradients(sides, taps, padding):
    """A batch takes no more than one of its volumes, unless those fit into the cache."""
    *others, width = sides
    # A row of a map is a multiple of 16 bytes.
    gradient = math.prod(others) * 4 * math.ceil(width / 4)
    volumes = 4 if 16 * gradient > gpu_volume.CACHED_BYTES else 1
    for gradients, mix in ((1, None), (2, None), (1, (0.2, 0.8))):
        for n in (1, volumes):
            maps, sums = scratch_of(launches_of((n, 1, *sides), padding, gradients, taps, mix))
            assert maps <= 4 * gradient
            # Those of each program, and of each plane for |x - y|.
            assert sums <= 0.005 * n * gradient + 1024


@pytest.mark.parametrize("padding", ["valid", "zeros", "symmetric"])
def test_small_volumes_are_computed_together(padding):
    launches = launches_of((4, 3, 16, 32, 32), padding)
    names = [launch.kernel.__name__ for launch in launches]
    assert names == ["plane_moments_kernel", "depth_kernel", "gradient_kernel"]
    assert "maps0" in launches[-1].frees
    large = launches_of((4, 1, 128, 128, 128), padding)
    names = [launch.kernel.__name__ for launch in large]
    assert names == [*["plane_moments_kernel", "depth_kernel", "gradient_kernel"] * 4,
                     "reduce_tiles_kernel"]  # fmt: skip


def test_programs_cover_every_plane():
    shape, taps = (2, 2, 20, 70, 90), 11
    for padding, gradients in itertools.product(("valid", "zeros", "symmetric"), (0, 1)):
        moments, depth, *others = launches_of(shape, padding, gradients, taps)
        plan = gpu_volume.plan_volume(
            programs.Workload((shape,), (taps, taps), padding, gradients),
            Definition((gaussian(taps, 1.5),) * 3, 0.0, 1.0, 1e-4, 9e-4, padding),
            programs.Machine("sm_90", 132),
        )
        assert moments.programs == 4 * shape[2] * plan.moments.sums
        assert depth.programs == 4 * plan.tiles
        assert plan.tiles * gpu_volume.DEPTH_TILE.lanes >= plan.size
        if gradients:
            assert others[0].programs == 4 * shape[2] * plan.gradient.sums
            assert plan.gradient.rows * plan.gradient.parts >= shape[3]


def test_other_windows_than_the_kernels_have_are_refused():
    x = torch.rand(1, 1, 4, 40, 40)
    options = {"window_size": (3, 35, 35), "backend": "triton"}
    with pytest.raises(ValueError, match="windows have at most 33 pixels, not 35|runs on GPUs"):
        ssim(x, x, **options)
