"""Tiles of the GPU path in Triton's interpreter: images that cross their edges, and windows and
layouts of many kinds.
"""

import pytest
import torch
from kernel_steps import PADDINGS, SCHEMES, compare, needs_triton, pair, run, settings, weights_of

from perceptual_losses import L1MSSSIMLoss, L1SSIMLoss, MSSSIMLoss, SSIMLoss

pytestmark = needs_triton


# A thread's columns are loaded at once, where 16 divides the strides, or one by one.
WIDTHS = [13, 32]


@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.parametrize("padding", PADDINGS)
@pytest.mark.interpreted
def test_tiles_meet_without_a_seam_in_the_interpreter(tiles, scheme, padding, width):
    tiles(*scheme)
    x, y = pair(1, 1, 8, width)
    chosen = settings(padding=padding)
    compare(x, y, chosen, weights_of(x, chosen) if padding == "symmetric" else [])


@pytest.mark.parametrize("padding", PADDINGS)
@pytest.mark.parametrize(
    ("taps", "shape", "scheme"),
    [
        (1, (1, 2, 5, 9), (4, 1, 2, True)),
        (1, (1, 1, 5, 9), (4, 2, 2, False)),
        (5, (1, 1, 9, 18), (8, 2, 4, True)),
        (7, (1, 1, 10, 7), (16, 1, 7, False)),
    ],
)
@pytest.mark.interpreted
def test_windows_in_the_interpreter(tiles, padding, taps, shape, scheme):
    tiles(*scheme)
    # With one tap there is no variance, and two large terms of the gradient cancel.
    compare(*pair(*shape), settings(taps, padding), tolerance=3e-5 if taps == 1 else 2e-6)


@pytest.mark.parametrize(
    ("taps", "shape", "padding", "scheme", "gradients"),
    [
        (11, (1, 1, 11, 11), "valid", (16, 2, 16, True), 2),
        (11, (1, 1, 12, 31), "valid", (16, 2, 16, True), 1),
        (11, (1, 1, 9, 23), "zeros", (32, 1, 5, True), 1),
        (15, (1, 1, 15, 16), "symmetric", (32, 1, 16, False), 1),
        (33, (1, 1, 2, 40), "zeros", (128, 1, 64, False), 1),
        (33, (1, 1, 33, 35), "valid", (128, 1, 64, False), 0),
    ],
)
@pytest.mark.interpreted
def test_large_windows_in_the_interpreter(tiles, taps, shape, padding, scheme, gradients):
    tiles(*scheme)
    compare(*pair(*shape), settings(taps, padding), gradients=gradients)


@pytest.mark.parametrize("fused", [True, False])
@pytest.mark.interpreted
def test_images_smaller_than_the_window_in_the_interpreter(tiles, fused):
    tiles(16, 2, 8, fused)
    for padding in ("zeros", "symmetric"):
        compare(*pair(1, 1, 4, 5), settings(7, padding))


@pytest.mark.parametrize(
    ("gradients", "padding"),
    [(0, "valid"), (0, "zeros"), (0, "symmetric"), (1, "zeros"), (1, "valid"), (1, "symmetric")],
)
@pytest.mark.interpreted
def test_as_many_gradients_as_are_requested_in_the_interpreter(tiles, gradients, padding):
    tiles(8, 2, 4)
    x, y = pair(2, 1, 6, 11)
    chosen = settings(padding=padding)
    compare(x, y, chosen, weights_of(x, chosen, 2), 2, gradients)


@pytest.mark.parametrize("padding", PADDINGS)
@pytest.mark.parametrize("loss", [SSIMLoss, L1SSIMLoss, MSSSIMLoss, L1MSSSIMLoss])
@pytest.mark.interpreted
def test_the_gradient_of_the_second_image_only_in_the_interpreter(tiles, loss, padding):
    tiles(8, 2, 4)
    x, y = pair(2, 1, 6, 11)
    options = {"window_size": 3, "padding": padding}
    options |= {"weights": (0.3, 0.7)} if loss in (MSSSIMLoss, L1MSSSIMLoss) else {}
    gradients = []
    for backend, images in (("triton", (x, y)), ("reference", (x.double(), y.double()))):
        second = images[1].requires_grad_()
        value = loss(backend=backend, **options)(images[0], second)
        gradients += torch.autograd.grad(value, second)
    assert (gradients[0] - gradients[1]).norm() < 3e-6 * gradients[1].norm()


@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize("padding", PADDINGS)
@pytest.mark.interpreted
def test_four_columns_in_the_interpreter(tiles, padding, width):
    tiles(4, 4, 4)
    x, y = pair(1, 1, 9, width)
    compare(x, y, settings(5, padding), gradients=0)


@pytest.mark.parametrize("padding", PADDINGS)
@pytest.mark.parametrize("width", [9, 16])
@pytest.mark.interpreted
def test_maps_of_several_planes_in_the_interpreter(tiles, padding, width):
    """All planes' derivatives are in memory at once."""
    tiles(16, 1, 5, fused=False)
    compare(*pair(2, 3, 7, width), settings(padding=padding))


LAYOUTS = {
    "channels last": lambda x: x.contiguous(memory_format=torch.channels_last),
    "height first": lambda x: x.permute(2, 3, 0, 1).contiguous().permute(2, 3, 0, 1),
    "transposed": lambda x: x.mT.contiguous().mT,
    "sliced": lambda x: torch.cat([x, x, x, x], 3)[..., 9:][..., ::2][:, :, 1:, 1:9],
    "one image": lambda x: x[:1].expand(2, 2, 6, 9),
    "one row": lambda x: x[:, :, :1].expand(2, 2, 6, 9),
}


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.interpreted
def test_layouts_in_the_interpreter(tiles, layout):
    tiles(8, 2, 8)
    x, y = pair(2, 2, 6, 9)
    x = LAYOUTS[layout](x)
    y = y[:, :, : x.shape[2], : x.shape[3]]
    _, (of_x,), (of_y,) = compare(x, y, settings())
    assert of_x.stride() == torch.empty_like(x).stride()
    assert of_y.stride() == torch.empty_like(y).stride()


# From row to row, and from the first one.
@pytest.mark.parametrize("padding", ["valid", "symmetric"])
@pytest.mark.interpreted
def test_offsets_beyond_32_bits_in_the_interpreter(tiles, padding):
    tiles(16, 1, 8)
    # Pages that are not touched take no memory.
    memory = torch.ByteTensor(2 * 2**31 + 2**20).view(torch.float16)
    small, y = pair(1, 1, 9, 13, dtype=torch.float16)
    x = memory.as_strided((1, 1, 9, 13), (0, 0, 2**28, 1))
    x.copy_(small)
    chosen = settings(padding=padding)
    got, same = run(x, y, chosen), run(small, y, chosen)
    assert torch.equal(got[0], same[0])
    assert torch.equal(got[1][0], same[1][0])
