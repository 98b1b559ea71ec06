"""The GPU path's kernels compiled ahead of time: registers, barriers, instructions."""

import itertools
import math

import pytest
import torch
from kernel_steps import accumulate, needs_triton, run, settings

from benchmarks.gpu import registers
from benchmarks.gpu.registers import Case
from perceptual_losses._ssim.backend import NO_AUXILIARY, layout_of
from perceptual_losses._ssim.gpu import backend as gpu
from perceptual_losses._ssim.gpu import tiles as gpu_tiles
from perceptual_losses._ssim.request import Request

pytestmark = needs_triton

VALUE, FUSED = ["value_kernel"], ["fused_kernel"]
MAPS, LEVELS = ["value_kernel", "gradient_kernel"], ["coarse_levels_kernel", "fused_kernel"]
# Kernels that take all registers there are, or more of them on 9.0 than on 8.0.
TIGHT = [
    (Case(11, 0), VALUE),
    (Case(11, 2), FUSED),
    (Case(11, 2, l1="mixed"), FUSED),
    (Case(11, 2, l1="separate"), FUSED),
    (Case(11, 0, other="ranges"), VALUE),
    (Case(11, 1, levels=5), LEVELS),
    (Case(11, 2, "symmetric", True, torch.bfloat16, levels=5), LEVELS),
    (Case(21, 2, levels=5), LEVELS),
    (Case(11, 0, levels=5), ["coarse_levels_kernel", "value_kernel"]),
    (Case(11, 0, "symmetric", True, levels=5), ["coarse_levels_kernel", "value_kernel"]),
]
# Kernels that take as many registers on 8.0 as on 9.0, or more.
SHIPPED = [
    (Case(11, 0, "zeros"), VALUE),
    (Case(11, 0, "symmetric", True, channels_last=True), VALUE),
    (Case(11, 1), FUSED),
    (Case(11, 1, "zeros", False, torch.bfloat16), FUSED),
    (Case(11, 2, "symmetric", True, torch.bfloat16), FUSED),
    (Case(17, 0), VALUE),
    (Case(21, 2, "zeros", True), FUSED),
    (Case(33, 2, "zeros", True), MAPS),
    (Case(11, 2, "symmetric", True, channels_last=True), FUSED),
    (Case(33, 0, "symmetric", True), VALUE),
    (Case(33, 2, "symmetric", True), MAPS),
    (Case(33, 2, "symmetric", True, channels_last=True), MAPS),
    (Case(11, 0, l1="mixed"), VALUE),
    (Case(11, 1, "zeros", l1="mixed"), FUSED),
    (Case(11, 2, "symmetric", dtype=torch.bfloat16, l1="mixed"), FUSED),
    (Case(33, 2, "symmetric", l1="mixed"), MAPS),
    (Case(11, 0, other="map"), VALUE),
    (Case(11, 1, other="valid"), FUSED),
    (Case(11, 1, levels=5, other="valid"), LEVELS),
]

# The devices that the tiles are chosen for; older ones are tested with fewer cases.
CAPABILITIES = 80, 90


def judge_compiled(capability, case, launches, name):
    import triton

    launch = launches[name]
    found = registers.figures(registers.compiled(launch, capability))
    # The settings were chosen with Triton 3.6; another's compiler may be some registers short. That
    # of 3.9 takes a fifth more instructions for 21 taps on 9.0 in any order.
    assert found.spilled <= (0 if triton.__version__.startswith("3.6.") else 136)
    # As many programs as the table says share the registers of a multiprocessor.
    sizes = gpu_tiles.TILES.get(f"sm_{capability}", gpu_tiles.TILES[None])
    variant = launch.constants["K"]
    tiles = sizes[min(size for size in sizes if size >= case.window_size)]
    plain = case.padding == "valid" and not case.weighted and case.l1 == "no"
    plain = plain and case.other not in ("map", "valid")
    kernel = name.removesuffix("_kernel")
    if name == "coarse_levels_kernel":
        kernel = "fused" if "fused_kernel" in launches else "value"
    if case.gradients == 0 and plain:
        kernel = "plain_value"
    (tile,) = (tile for tile in getattr(tiles, kernel) if tile[:2] == variant[:2])
    warps = tile.resident_warps
    if name == "coarse_levels_kernel":
        warps = min(warps, gpu_tiles.COARSE_WARPS)
    programs = warps // launch.warps
    assert variant.DENSE.value is not case.channels_last
    assert programs * launch.warps * 32 * 8 * math.ceil(found.registers / 8) <= 2**16
    assert found.instructions > 10 * case.window_size
    # A row that is written to scratch memory is read as the next one, which the interpreter, where
    # threads do not run at once, does not show.
    rows = variant.ROWS_PER_ITERATION.value
    assert found.barriers == (0 if name == "gradient_kernel" else rows)


@pytest.mark.parametrize(
    ("capability", "case", "kernels"),
    [
        *[(75, Case(21, 0, "zeros", other="valid"), VALUE)],
        *[(80, *of_case) for of_case in TIGHT + SHIPPED],
        *[(90, *of_case) for of_case in TIGHT],
    ],
    ids=lambda part: "-".join(map(str, part)) if isinstance(part, tuple | list) else str(part),
)
def test_compiles_without_spills(capability, case, kernels):
    launches = registers.launched(case, capability)
    more = {"reduce_tiles_kernel"} | ({"downsample_kernel"} if case.levels > 1 else set())
    single = kernels in (VALUE, FUSED) and case.levels == 1 and case.l1 != "separate"
    single = single or case.other == "map"
    assert launches.keys() == {*kernels, *(() if single else more)}
    for name in kernels:
        judge_compiled(capability, case, launches, name)


@pytest.mark.parametrize(
    ("capability", "window", "kernel", "tile"),
    [
        (capability, window, kernel, tile)
        for capability in CAPABILITIES
        for window, of_kernels in gpu_tiles.TILES[None].items()
        for kernel, tiles in of_kernels._asdict().items()
        for tile in tiles
        # The others take as many registers on 8.0, or more.
        if capability == 80 or window == 21
    ],
    ids=lambda part: "x".join(map(str, part[:2])) if isinstance(part, tuple) else None,
)
def test_every_tile_compiles_without_spills(monkeypatch, capability, window, kernel, tile):
    """Those too that are for images of another size."""
    sizes = gpu_tiles.TILES[None]
    one = {**sizes, window: sizes[window]._replace(**{kernel: (tile,)})}
    monkeypatch.setitem(gpu_tiles.TILES, None, one)
    case = {
        "plain_value": Case(window, 0),
        "fused": Case(window, 2, "symmetric", True, torch.bfloat16),
        "value": Case(window, 0, "symmetric", True),
        "gradient": Case(window, 2, weighted=True, shape=registers.VOLUME),
    }[kernel]
    launches = registers.launched(case, capability)
    judge_compiled(capability, case, launches, f"{kernel.removeprefix('plain_')}_kernel")


@pytest.mark.parametrize("gradients", [0, 1])
def test_bfloat16_takes_as_many_instructions(gradients):
    """But for one for each pixel: what is loaded as pairs is not taken apart on the way."""
    counts = []
    for dtype in (torch.float32, torch.bfloat16):
        (launch,) = registers.launched(Case(11, gradients, dtype=dtype), 90).values()
        counts.append(registers.figures(registers.compiled(launch, 90)).instructions)
    assert counts[1] < 1.025 * counts[0]


@pytest.mark.parametrize("width", [1921, 1926])
@pytest.mark.parametrize("case", [Case(11, 0), Case(11, 1, "zeros", dtype=torch.bfloat16)])
def test_threads_keep_their_columns(case, width):
    """Of images of any width: the compiler would exchange them between threads, in turns."""
    case = case._replace(shape=(8, 3, 1080, width))
    (launch,) = registers.launched(case, 90).values()
    found = registers.figures(registers.compiled(launch, 90))
    rows = launch.constants["K"].ROWS_PER_ITERATION.value
    assert (found.barriers, found.spilled) == (rows, 0)


@pytest.mark.parametrize("case", [Case(11, 0), Case(3, 2, "symmetric", True), Case(33, 1)])
def test_compiles_where_there_is_no_shared_memory(case):
    """For other GPUs' architectures, which this compiler has not: the kernels through memory."""
    own, others = registers.launched(case, 90), registers.launched(case, 90, "gfx942")
    assert own.keys() == others.keys()
    for name in own.keys() - {"reduce_tiles_kernel", "gradient_kernel"}:
        variants = own[name].constants["K"], others[name].constants["K"]
        assert [variant.SHARED.value for variant in variants] == [True, False]
        found = registers.figures(registers.compiled(others[name], 90))
        assert found.barriers == variants[1].ROWS_PER_ITERATION.value
        assert found.shared < registers.figures(registers.compiled(own[name], 90)).shared


@pytest.mark.parametrize("capability", CAPABILITIES)
def test_the_small_kernels_compile(capability):
    x = torch.empty(8, 3, 270, 480, dtype=torch.bfloat16, device="meta")
    with registers.recording(capability) as launches:
        _, gradients, _ = run(x, x, settings(11), levels=4, gradients=1)
        accumulate(gradients, torch.empty(4, 8, 3, device="meta"), [], [], -1.0)
        accumulate(gradients[:1], torch.empty(1, 8, 3, device="meta"), [], [], -1.0)
        factor, derivatives = torch.empty((), device="meta"), torch.empty(4, 8, 3, device="meta")
        accumulate(gradients, factor, [derivatives], [], 1.0)
        images = x, x.float()
        accumulate(gradients, torch.empty(5, 8, 3, device="meta"), [], images, -1.0)
        run(x, x, settings(11), gradients=0, reduction="loss")
        exponents, layouts = (0.1, 0.2, 0.3, 0.4), (layout_of(x), layout_of(x), NO_AUXILIARY)
        for normalize, reduction, mix in (
            *itertools.product(("floor", "relu", "simple", None), ("none", "loss"), (None,)),
            ("floor", "loss", (0.84, 0.16)),
        ):
            request = Request(settings(11), exponents, normalize, mix, reduction)
            gpu.plan(*layouts, request, x.device).forward(x, x)
        run(x, x, settings(11), gradients=1, reduction="loss", mix=(0.84, 0.16))
    small = [
        launch
        for launch in launches
        if launch.kernel.__name__ not in ("fused_kernel", "value_kernel", "coarse_levels_kernel")
    ]
    assert {launch.kernel.__name__.removesuffix("_kernel") for launch in small} == {
        *("downsample", "reduce_tiles", "combine_levels", "accumulate_levels")
    }
    compiled = (registers.compiled(launch, capability) for launch in small)
    # Several launches are of one kernel.
    for kernel in {kernel.hash: kernel for kernel in compiled}.values():
        assert registers.figures(kernel).spilled == 0


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("width", [480, 481])
def test_levels_load_several_columns_at_once(dtype, width):
    """Of the finest images and of their gradient, where a row is made of them."""
    x = torch.empty(1, 3, 32, width, dtype=dtype, device="meta")
    with registers.recording(90) as launches:
        _, gradients, _ = run(x, x, settings(3), levels=2, gradients=1)
        accumulate(gradients, torch.empty(2, 1, 3, device="meta"), [], [], -1.0)
    small = {launch.kernel.__name__: launch for launch in launches}
    for name, access in (
        ("downsample_kernel", "ld.global"),
        ("accumulate_levels_kernel", "st.global"),
    ):
        ptx = registers.compiled(small[name], 90).asm["ptx"]
        assert (f"{access}.v4.b32" in ptx) == (width % 8 == 0)


def test_the_longest_loop():
    assembly = """
        /*0000*/                   MOV R1, c[0x0][0x28] ;         /* 0x00 */
        /*0010*/                   FADD R0, R0, R1 ;              /* 0x00 */
        /*0020*/              @!P0 BRA 0x10 ;                     /* 0x00 */
        /*0030*/                   FFMA R0, R0, R1, R2 ;          /* 0x00 */
        /*0040*/               @P1 BRA 0x60 ;                     /* 0x00 */
        /*0050*/                   FADD R0, R0, R1 ;              /* 0x00 */
        /*0060*/               @P0 BRA 0x30 ;                     /* 0x00 */
        /*0070*/                   EXIT ;                         /* 0x00 */
        /*0080*/                   BRA 0x80;                      /* 0x00 */
    """
    assert [line.split()[-2] for line in registers.longest_loop(assembly)] == [
        "R1,",
        "BRA",
        "R0,",
        "BRA",
    ]
    assert registers.longest_loop("") == []
