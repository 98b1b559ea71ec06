"""The plans of launches: taps, tiles, and the programs that share them."""

import functools
import itertools
import json
import math

import hypothesis
import numpy as np
import pytest
import torch
from hypothesis import strategies as st
from kernel_steps import PADDINGS, needs_triton, planned, request_of, settings

from benchmarks.gpu import tune
from perceptual_losses._ssim.backend import NO_AUXILIARY, Layout, layout_of
from perceptual_losses._ssim.gpu import launch as gpu_launch
from perceptual_losses._ssim.gpu import levels as gpu_levels
from perceptual_losses._ssim.gpu import programs, taps
from perceptual_losses._ssim.gpu import tiles as gpu_tiles
from perceptual_losses._ssim.pyramid import halved_shape
from perceptual_losses._ssim.request import gaussian, uniform

pytestmark = needs_triton


@hypothesis.given(
    size=st.integers(1, 16).map(lambda radius: 2 * radius + 1), sigma=st.floats(0.3, 1e9)
)
def test_taps_in_float32_have_a_sum_of_one(size, sigma):
    window = gaussian(size, sigma)
    across, down, root = taps.passes_of((window, window))[:3]
    arrays = [np.array((*half, *half[-2::-1])) for half in (across, down)]
    assert all((array == np.float32(array)).all() for array in (*arrays, root))
    # Of three taps there are few roundings to choose from.
    assert abs(root * root * arrays[0].sum() * arrays[1].sum() - 1) < (3e-8 if size == 3 else 2e-8)
    passed = root * root * np.outer(arrays[1], arrays[0])
    assert np.abs(passed - np.outer(window, window)).max() < 2e-7
    # A tap that is next to nothing stays that, under a pixel of 1e30 too.
    exact = np.array(window) / max(window)
    np.testing.assert_allclose(arrays[0], exact, rtol=1e-3, atol=1e-37)


@hypothesis.given(
    windows=st.lists(
        st.one_of(
            st.integers(0, 16).map(lambda radius: uniform(2 * radius + 1)),
            st.builds(
                lambda radius, sigma: gaussian(2 * radius + 1, sigma),
                st.integers(0, 16),
                st.floats(0.3, 1e9),
            ),
        ),
        min_size=2,
        max_size=3,
    )
)
def test_taps_by_axis_have_a_sum_of_one(windows):
    passes = taps.passes_of(windows)
    halves = [passes.through] * (len(windows) == 3) + [passes.down, passes.across]
    arrays = [np.array((*half, *half[-2::-1])) for half in halves]
    assert all((array == np.float32(array)).all() for array in (*arrays, passes.root))
    outer = functools.partial(functools.reduce, np.multiply.outer)
    passed = passes.root**2 * outer(arrays)
    # Where three taps are all there are, few roundings can be chosen.
    few = max(map(len, windows)) == 3
    assert abs(passed.sum() - 1) < (6e-8 if few else 3e-8)
    assert np.abs(passed - outer(windows)).max() < 2e-7
    if len(windows) == 3:
        assert passes.plane_total == pytest.approx(outer(arrays[1:]).sum(), rel=1e-7)


@pytest.mark.parametrize(
    ("image", "dense"),
    [
        (torch.empty(2, 3, 8, 48), True),
        (torch.empty(2, 3, 8, 48)[..., 4:36], True),
        (torch.empty(2, 3, 8, 48)[..., 1:33], False),
        (torch.empty(2, 3, 8, 40), False),
        (torch.empty(2, 16, 8, 48).to(memory_format=torch.channels_last), False),
    ],
    ids=["rows of 48", "from the 4th on", "from the 1st on", "rows of 40", "channels last"],
)
def test_what_is_loaded_at_once(image, dense):
    assert gpu_launch.Image(gpu_launch.Buffer("x"), *layout_of(image)[1:]).dense is dense


@pytest.mark.parametrize(
    ("shape", "gradients", "programs", "rows"),
    [
        # As many as fit on 132 multiprocessors at once: two each of 128 threads, eight of 32.
        ((1, 3, 1080, 1920), 1, 264, 99),
        ((1, 3, 1080, 1920), 0, 1047, 46),
        ((8, 3, 1080, 1920), 0, 1056, 365),
        ((1, 3, 512, 512), 1, 525, 15),
        # Three times as many, less few.
        ((8, 3, 1080, 1920), 1, 768, 270),
        # No more of rows that neighbours compute too.
        ((1, 1, 64, 64), 1, 8, 8),
        ((64, 3, 64, 64), 1, 384, 32),
        ((64, 3, 64, 64), 0, 1296, 8),
        ((4096, 3, 64, 64), 0, 12288, 54),
    ],
)
def test_programs_fill_the_multiprocessors(shape, gradients, programs, rows):
    cover = planned([shape], gradients).first
    assert (cover.programs(math.prod(shape[:2])), cover.rows) == (programs, rows)
    assert (cover.sums == 1) == (rows == cover.height)


TUNED = sorted(tune.TUNING.glob("*.json"))


@pytest.mark.parametrize("path", TUNED, ids=lambda path: path.stem)
def test_the_table_has_what_was_fastest(path):
    """Of the settings that were timed, or nearly so, at each size."""
    rows = json.loads(path.read_text())["settings"]
    for window, kernels in dict.fromkeys((row["window"], row["kernels"]) for row in rows):
        gradients = 0 if kernels == "plain_value" else 1
        for size, most in zip(rows[0]["milliseconds"], (1.2, 1.15, 1.03, 1.03), strict=True):
            tile = planned([map(int, size.split("x"))], gradients, window).first.tile
            (shipped,) = (
                row["milliseconds"][size]
                for row in rows
                if (row["window"], row["kernels"]) == (window, kernels) and of_row(row) == of(tile)
            )
            fastest = tune.fastest(rows, window, kernels, size)
            assert shipped <= most * fastest["milliseconds"][size]


def of_row(row):
    return [row[key] for key in ("lanes", "columns", "rows_per_iteration", "store_after_read")]


def of(tile):
    return [tile.lanes, tile.columns, tile.rows_per_iteration, tile.store_after_read]


@pytest.mark.parametrize("path", TUNED, ids=lambda path: path.stem)
def test_the_table_has_what_a_row_took(monkeypatch, path):
    """Of the largest images, for whose plans the table is needed."""
    rows, sizes = json.loads(path.read_text())["settings"], gpu_tiles.TILES[None]
    for window, kernels in itertools.product(sizes, ("plain_value", "fused")):
        taken = []
        for tile in getattr(sizes[window], kernels):
            (row,) = (
                row
                for row in rows
                if (row["window"], row["kernels"]) == (window, kernels) and of_row(row) == of(tile)
            )
            size, milliseconds = [*row["milliseconds"].items()][-1]
            one = {window: sizes[window]._replace(**{kernels: (tile._replace(row_time=1.0),)})}
            monkeypatch.setattr(gpu_tiles, "TILES", {None: one})
            gradients = 0 if kernels == "plain_value" else 1
            plan = planned([map(int, size.split("x"))], gradients, window)
            taken.append(milliseconds / plan.first.time)
            assert abs(taken[-1] / taken[0] - tile.row_time) < 0.01


@hypothesis.given(
    planes=st.integers(1, 9),
    strips=st.integers(1, 5),
    height=st.integers(1, 50),
    share=st.integers(1, 50),
)
def test_programs_share_the_rows(planes, strips, height, share):
    """Each row of each strip has one program, and each sum one place."""
    rows = min(share, height)
    tile = gpu_tiles.Tile(32, 2, 1, 8)
    cover = programs.Cover(tile, True, strips, height, rows, spans_strips=True, time=0.0)
    assert cover.lines(planes) == planes * strips * height
    owners = [line // rows for line in range(cover.lines(planes))]
    assert owners[-1] == cover.programs(planes) - 1
    for strip in range(planes * strips):
        of_strip = owners[strip * height : (strip + 1) * height]
        parts = len(set(of_strip))
        # The kernels write a zero after the last, and no more.
        assert cover.parts - 1 <= parts <= cover.parts
    assert cover.sums == strips * cover.parts


@hypothesis.given(
    shape=st.tuples(*(st.integers(1, most) for most in (64, 4, 2000))),
    # Near to where another tile begins.
    width=st.tuples(st.integers(1, 8), st.integers(1, 40)).map(lambda at: 256 * at[0] - at[1]),
    taps=st.integers(11, 16).map(lambda radius: 2 * radius + 1),
    multiprocessors=st.integers(1, 200),
    padding=st.sampled_from(PADDINGS),
    gradients=st.sampled_from([1, 2]),
)
def test_maps_fit_their_memory(shape, width, taps, multiprocessors, padding, gradients):
    """Rows of derivatives, in which the last threads reach beyond the image."""
    hypothesis.assume(padding != "valid" or min(shape[2], width) >= taps)
    planes, shape = math.prod(shape[:2]), (*shape, width)
    plan = planned([shape], gradients, taps, padding, multiprocessors)
    assert plan.value.height == shape[2] + taps - 1
    assert plan.gradient.height == shape[2]
    for cover, beyond in ((plan.value, 0), (plan.gradient, taps + 3)):
        assert cover.strips * cover.tile.lanes * cover.tile.columns + beyond <= plan.pitch
        assert 1 <= cover.rows <= cover.height
    # All planes have their maps at once, and a kernel is launched for all.
    machine = programs.Machine("sm_90", multiprocessors)
    x, request = Layout(torch.float32, shape, (1,) * 4, True), request_of(settings(taps, padding))
    request = request._replace(gradients=gradients)
    device = torch.device("meta")
    value, gradient, *_ = gpu_levels.forward_launches(machine, device, x, x, NO_AUXILIARY, request)
    (maps,) = (allocation for allocation in value.allocations if allocation.name == "maps0")
    assert maps.shape == (planes * plan.maps * plan.value.height * plan.pitch,)
    assert (value.programs, gradient.programs) == (
        plan.value.programs(planes),
        plan.gradient.programs(planes),
    )
    assert gradient.frees == ("maps0",)


@hypothesis.given(
    shape=st.tuples(*(st.integers(1, most) for most in (64, 4, 2000, 2000))),
    levels=st.integers(2, 6),
    multiprocessors=st.integers(1, 200),
    gradients=st.sampled_from([0, 1, 2]),
    padding=st.sampled_from(PADDINGS),
    later=st.booleans(),
)
def test_coarse_levels_share_a_launch(shape, levels, multiprocessors, gradients, padding, later):
    """Their kernel works out each level's programs from what all have in common."""
    shapes = [shape]
    while len(shapes) < levels:
        shapes.append(tuple(halved_shape(shapes[-1])))
    if padding == "valid":
        shapes = [shape for shape in shapes if min(shape[2:]) > 10]
        hypothesis.assume(len(shapes) > 1)
    plans = [
        planned(shapes, gradients, 11, padding, multiprocessors, level=j, summed_later=later)
        for j in range(1, len(shapes))
    ]
    assert all(plan.is_single for plan in plans)
    coarse = [plan.first for plan in plans]
    rows = max(cover.rows for cover in coarse)
    assert len({(c.tile, c.aligned_width, c.spans_strips) for c in coarse}) == 1
    for cover, (n, c, height, width) in zip(coarse, shapes[1:], strict=True):
        own = cover.tile.lanes * cover.tile.columns
        if gradients:
            strips, here = math.ceil(width / (own - 10)), rows
            programs = strips * n * c * math.ceil(height / rows)
        else:
            before = -5 % cover.tile.columns  # beside the five that the window reaches
            width, height = (width - 10, height - 10) if padding == "valid" else (width, height)
            strips = math.ceil((width + before * (padding != "valid")) / own)
            here = min(rows, height)
            programs = math.ceil(strips * n * c * height / here)
        parts = math.ceil(height / here) + (gradients == 0 and height % here > 0)
        assert (cover.strips, cover.rows, cover.parts) == (strips, here, parts)
        assert (cover.height, cover.programs(n * c)) == (height, programs)


@pytest.mark.parametrize(
    ("padding", "store_after_read"), [("valid", True), ("zeros", False), ("symmetric", False)]
)
@pytest.mark.parametrize("gradients", [1, 2])
def test_padded_iterations_begin_with_their_pixels(padding, store_after_read, gradients):
    plan = planned([(8, 3, 1080, 1920)], gradients, padding=padding)
    assert plan.fused.tile.store_after_read == store_after_read


@pytest.mark.interpreted
def test_tuning_in_the_interpreter():
    before = dict(gpu_tiles.TILES[None])
    settings = [
        tune.Setting(3, "fused", 8, 1, 1, 8, True),
        tune.Setting(3, "maps", 8, 2, 2, 8, False),
        tune.Setting(3, "plain_value", 4, 1, 1, 8, True),
        # Two columns do not reach under a window of three.
        tune.Setting(3, "fused", 2, 1, 1, 8, False),
    ]
    rows = tune.tune([(1, 1, 6, 6)], settings, "cpu", calls=1)
    assert [row["error"] is None for row in rows] == [True, True, True, False]
    assert all(row["milliseconds"]["1x1x6x6"] > 0 for row in rows[:3])
    for row, kernels in zip(rows, ("fused", "maps", "plain_value"), strict=False):
        assert tune.fastest(rows, 3, kernels, "1x1x6x6") == row
    assert gpu_tiles.TILES[None] == before
