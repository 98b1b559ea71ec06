"""Bad input: the right kind of error, before any work, that tells the value and the fix."""

import functools
import inspect
import re
from collections import UserList

import numpy as np
import pytest
import torch

from perceptual_losses import (
    FeatureLoss,
    L1MSSSIMLoss,
    L1SSIMLoss,
    MSSSIMLoss,
    SSIMLoss,
    ms_ssim,
    ssim,
    ssim_map,
)

FUNCTIONS = [ssim, ssim_map, ms_ssim]
LOSSES = [SSIMLoss, MSSSIMLoss, L1SSIMLoss, L1MSSSIMLoss]

IMAGES = {
    "rank": ((3, 32, 32), (3, 32, 32), "x has shape (3, 32, 32).*x.unsqueeze(0) is one image"),
    "rank_6": ((1,) * 6, (1,) * 6, "shape (1, 1, 1, 1, 1, 1).*volumes"),
    "shapes": ((1, 3, 32, 32), (1, 1, 32, 32), "(1, 3, 32, 32) and y (1, 1, 32, 32).*expand_as"),
    "empty_batch": ((0, 3, 32, 32), (0, 3, 32, 32), "(0, 3, 32, 32), which holds no image"),
    "no_channel": ((1, 0, 32, 32), (1, 0, 32, 32), "at least one image and one channel"),
    "window": ((1, 3, 10, 32), (1, 3, 10, 32), "window_size=11.*10x32.*window_size=9.*11x11"),
    "no_pixel": ((1, 3, 0, 32), (1, 3, 0, 32), "0x32: pass images of at least 11x11"),
}


def pattern(text):
    return ".*".join(re.escape(part) for part in text.split(".*"))


@pytest.mark.parametrize("function", FUNCTIONS)
@pytest.mark.parametrize("case", IMAGES)
def test_images(backend, function, case):
    x_shape, y_shape, text = IMAGES[case]
    with pytest.raises(ValueError, match=pattern(text)):
        function(torch.rand(x_shape), torch.rand(y_shape), backend=backend)


@pytest.mark.parametrize("function", FUNCTIONS)
def test_devices(backend, function):
    x = torch.rand(1, 1, 176, 176)
    with pytest.raises(ValueError, match=re.escape("x is on cpu and y on meta") + ".*y.to"):
        function(x, x.to("meta"), backend=backend)
    if function is not ssim_map:
        with pytest.raises(ValueError, match=r"mask is on meta and x on cpu.*mask\.to"):
            function(x, x, mask=x.to("meta"), backend=backend)


@pytest.mark.filterwarnings("ignore:torch.quantize_per_tensor:UserWarning")
@pytest.mark.parametrize("function", FUNCTIONS)
def test_kinds_of_images(backend, function):
    x = torch.rand(1, 1, 32, 32)
    with pytest.raises(TypeError, match=r"y is of type list: pass a torch.Tensor"):
        function(x, x.tolist(), backend=backend)
    with pytest.raises(TypeError, match=r"x is of type ndarray: pass a torch.Tensor"):
        function(x.numpy(), x, backend=backend)
    with pytest.raises(TypeError, match="x is torch.complex64: pass real values"):
        function(x + 1j, x, backend=backend)
    for other, kind in (
        (x.to_sparse(), "torch.sparse_coo"),
        (torch.quantize_per_tensor(x, 1 / 255, 0, torch.quint8), "torch.quint8"),
        (torch.nested.nested_tensor([x[0], x[0]], layout=torch.jagged), "nested"),
    ):
        with pytest.raises(TypeError, match=f"x is .*{kind}.*: pass a plain tensor"):
            function(other, x, backend=backend)


@pytest.mark.parametrize("function", FUNCTIONS)
def test_integer_images_need_their_range(backend, function):
    x = torch.zeros(1, 1, 32, 32, dtype=torch.uint8)
    for y in (x, x.float()):
        with pytest.raises(ValueError, match="torch.uint8 and data_range=1.0.*data_range=255"):
            function(x, y, backend=backend)
    with pytest.raises(ValueError, match="y is torch.uint8"):
        function(x.float(), x, backend=backend)


@pytest.mark.parametrize("function", FUNCTIONS)
def test_constants_that_the_dtype_cannot_hold(backend, function):
    """They would be zero or infinite, and flat images NaN."""
    x = torch.rand(1, 1, 176, 176)
    for options, text in (
        ({"k2": 1e-30}, "(k2 L)^2 is 1e-60 with data_range=1.0, beyond torch.float32"),
        ({"k1": 1e200}, "(k1 L)^2 is inf"),
        ({"data_range": 1e-18}, "(k1 L)^2 is 1e-40 with data_range=1e-18"),
        ({"data_range": (-1e308, 1e308)}, "(k1 L)^2 is inf"),
    ):
        with pytest.raises(ValueError, match=re.escape(text) + ".*pass a range nearer to 1"):
            function(x, x, backend=backend, **options)


@pytest.mark.float64
@pytest.mark.parametrize("backend", ["reference", "numba"])
def test_small_ranges_in_float64(backend):
    x = torch.rand(1, 1, 16, 16, dtype=torch.float64)
    value = ssim(x, x.square(), backend=backend)
    scaled = ssim(1e-30 * x, 1e-30 * x.square(), data_range=1e-30, backend=backend)
    assert scaled.item() == pytest.approx(value.item(), abs=1e-12)


def test_the_narrowest_window_is_its_centre():
    x = torch.rand(1, 1, 16, 16)
    assert ssim(x, x.square(), sigma=1e-200) == ssim(x, x.square(), sigma=1e-3)


OPTIONS = [
    ({"window_size": 10}, ValueError, "window_size=10 is not odd"),
    ({"window_size": 0}, ValueError, "window_size=0 is not odd and positive"),
    ({"window_size": -3}, ValueError, "window_size=-3 is not odd and positive"),
    ({"window_size": 11.0}, TypeError, "window_size is 11.0 (float): pass an odd int"),
    ({"window_size": True}, TypeError, "window_size is True (bool)"),
    ({"sigma": 0}, ValueError, "sigma=0 is not positive"),
    ({"sigma": float("nan")}, ValueError, "sigma=nan is not finite"),
    ({"sigma": "wide"}, TypeError, "sigma is 'wide' (str): pass a Python number"),
    ({"k1": -0.01}, ValueError, "k1=-0.01 is not positive"),
    ({"k2": 0.0}, ValueError, "k2=0.0 is not positive"),
    ({"padding": "reflect"}, ValueError, "padding='reflect' is unknown.*'symmetric'"),
    ({"padding": np.zeros(2)}, ValueError, "padding=array([0., 0.]) is unknown"),
    ({"backend": "cuda"}, ValueError, "backend='cuda' is unknown.*'reference'"),
    ({"data_range": -1}, ValueError, "data_range=-1.0 is not positive.*(low, high)"),
    ({"data_range": 0}, ValueError, "data_range=0.0 is not positive"),
    ({"data_range": (1, -1)}, ValueError, "data_range=(1, -1) has low >= high"),
    ({"data_range": (1, 1)}, ValueError, "data_range=(1, 1) has low >= high"),
    ({"data_range": (0, 1, 2)}, ValueError, "data_range=(0, 1, 2) has 3 entries"),
    ({"data_range": (0, float("inf"))}, ValueError, "data_range=inf is not finite"),
    ({"data_range": 10**400}, ValueError, "is not finite"),
    ({"data_range": [0, 1]}, TypeError, "data_range is of type list.*a tuple (low, high)"),
    ({"data_range": np.ones(2)}, TypeError, "data_range is of type ndarray.*torch.tensor([...])"),
    ({"data_range": None}, TypeError, "data_range is None (NoneType)"),
    ({"window": "box"}, ValueError, "window='box' is unknown: pass one of.*'uniform'"),
    ({"window": None}, ValueError, "window=None is unknown"),
    ({"window_size": (11, 10)}, ValueError, "window_size=10 is not odd"),
    ({"window_size": (11, 7.0)}, TypeError, "window_size is 7.0 (float): pass an odd int"),
    ({"window_size": (3, 3, 3, 3)}, ValueError, "window_size=(3, 3, 3, 3) has 4 entries"),
    ({"window_size": ()}, ValueError, "window_size=() has 0 entries: pass an odd int, or one for"),
    ({"window_size": "11"}, TypeError, "window_size is '11' (str): pass an odd int"),
    ({"window_size": ["11", 11]}, TypeError, "window_size is '11' (str): pass an odd int"),
    ({"window_size": np.float64(11)}, TypeError, "(float64): pass an odd int"),
    ({"window_size": np.array([11, 11])}, TypeError, "window_size is of type ndarray"),
    ({"sigma": (1.5, -1)}, ValueError, "sigma=-1 is not positive"),
    ({"sigma": (1.5, None)}, TypeError, "sigma is None (NoneType)"),
    ({"sigma": (1.0, 1.0, 1.0, 1.0)}, ValueError, "has 4 entries and window_size 1: pass one"),
    ({"sigma": [1.5, -1]}, ValueError, "sigma=-1 is not positive"),
    ({"sigma": np.ones(2)}, TypeError, "sigma is of type ndarray"),
    ({"sigma": "1.5"}, TypeError, "sigma is '1.5' (str): pass a Python number"),
    ({"k1": "0.01"}, TypeError, "k1 is '0.01' (str): pass a Python number"),
    ({"data_range": "255"}, TypeError, "data_range is '255' (str): pass a number L"),
    ({"sample_covariance": 1}, TypeError, "sample_covariance is 1 (int): pass True or False"),
    ({"sample_covariance": np.True_}, TypeError, "sample_covariance is of type bool"),
]
REDUCTION = [({"reduction": "sum"}, ValueError, "reduction='sum' is unknown.*'none'")]
LEVELS = [
    ({"weights": []}, ValueError, "weights=(): pass at least one weight"),
    ({"weights": [0.5, -0.1]}, ValueError, "weights=(0.5, -0.1).*none negative"),
    ({"weights": [0, 0]}, ValueError, "not all zero"),
    ({"weights": torch.ones(5)}, TypeError, "weights is of type Tensor.*tolist"),
    ({"weights": 1.0}, TypeError, "weights is 1.0 (float): pass a list or tuple"),
    ({"weights": None}, TypeError, "weights is None (NoneType): pass a list or tuple"),
    ({"levels": 6}, ValueError, "levels=6: pass 'auto' or 1 to 5"),
    ({"levels": 0}, ValueError, "levels=0"),
    ({"levels": "all"}, TypeError, "levels is 'all' (str): pass 'auto' or an int"),
    ({"levels": np.ones(2)}, TypeError, "levels is of type ndarray"),
    ({"levels": 2.0}, TypeError, "levels is 2.0 (float)"),
    ({"levels": "2"}, TypeError, "levels is '2' (str): pass 'auto' or an int"),
    ({"weights": ["0.5", "0.5"]}, TypeError, "weights is '0.5' (str): pass a Python number"),
    ({"weights": "0.5"}, TypeError, "weights is '0.5' (str): pass a list or tuple"),
    ({"normalize": "sigmoid"}, ValueError, "normalize='sigmoid' is unknown.*'floor'.*None"),
]


@pytest.mark.parametrize(("options", "error", "text"), OPTIONS + REDUCTION + LEVELS)
def test_options(options, error, text):
    x = torch.rand(1, 1, 176, 176)
    (name,) = options
    takers = [taker for taker in FUNCTIONS + LOSSES if name in inspect.signature(taker).parameters]
    assert len(takers) in (3, 6, 7)
    for taker in takers:
        with pytest.raises(error, match=pattern(text)) as raised:
            taker(**options) if taker in LOSSES else taker(x, x, **options)
        # One traceback, not two with "During handling of the above exception" between.
        assert raised.value.__context__ is None


class Configured(UserList):
    """A sequence that is no list, as those of configuration files are."""

    def __hash__(self):
        return hash(str(self))


@pytest.mark.parametrize(
    ("options", "plain"),
    [
        ({"window_size": np.int64(7)}, {"window_size": 7}),
        ({"window_size": [np.int32(7), 5]}, {"window_size": (7, 5)}),
        ({"window_size": Configured([7, 5])}, {"window_size": (7, 5)}),
        ({"sigma": np.float32(2)}, {"sigma": 2.0}),
        ({"sigma": Configured([1.0, 2.0])}, {"sigma": (1.0, 2.0)}),
        ({"sigma": [1.0, 2.0]}, {"sigma": (1.0, 2.0)}),
        ({"k1": np.float32(0.25), "k2": np.int8(1)}, {"k1": 0.25, "k2": 1}),
        ({"data_range": np.uint8(255)}, {"data_range": 255}),
        ({"data_range": (np.int64(-1), np.float64(1))}, {"data_range": (-1, 1)}),
        ({"weights": Configured([0.5, 0.5])}, {"weights": (0.5, 0.5)}),
        (
            {"weights": np.array([0.5, 0.5]).tolist(), "levels": np.int64(2)},
            {"weights": (0.5, 0.5)},
        ),
    ],
)
def test_options_as_configuration_files_and_numpy_give_them(options, plain):
    x = torch.rand(1, 1, 176, 176)
    takers = [
        t for t in FUNCTIONS + LOSSES if options.keys() <= inspect.signature(t).parameters.keys()
    ]
    assert len(takers) in (3, 7)
    for taker in takers:
        values = []
        for given in (options, plain):
            # No kernels are compiled for so many windows.
            given = {**given, "backend": "reference"}
            compare = taker(**given) if taker in LOSSES else functools.partial(taker, **given)
            values.append(compare(x, x.square()))
        assert torch.equal(*values)


@pytest.mark.parametrize("kind", [list, Configured])
def test_a_sequence_that_changes_later_changes_no_loss(kind):
    x = torch.rand(1, 1, 24, 24)
    sizes = kind([7, 5])
    loss = SSIMLoss(window_size=sizes, backend="reference")
    similarity = functools.partial(ssim, x, x.square(), window_size=sizes, backend="reference")
    before = loss(x, x.square())
    assert similarity() == 1 - before
    sizes[0] = 3
    assert loss.window_size == (7, 5)
    assert loss(x, x.square()) == before
    assert similarity() != 1 - before


ORDERS = {
    "one_grey_image": ((32, 40), "; x[None, None] is one grey image (H, W)"),
    "one_image": ((3, 32, 40), "; x.unsqueeze(0) is one image (C, H, W)"),
    "channels_last_of_one": (
        (32, 40, 3),
        "; x.permute(2, 0, 1).unsqueeze(0) is one image (H, W, C)",
    ),
    "channels_last": (
        (2, 32, 40, 3),
        "pass x.permute(0, 3, 1, 2) if these are images (N, H, W, C)",
    ),
    "grey_last": ((2, 32, 40, 1), "pass x.permute(0, 3, 1, 2) if these are images (N, H, W, C)"),
    "volumes": ((2, 16, 32, 40, 3), "pass x.permute(0, 4, 1, 2, 3) if these are volumes"),
    "videos_last": ((2, 4, 32, 40, 3), "x.flatten(0, 1).permute(0, 3, 1, 2) if they are videos"),
    "videos": ((2, 8, 3, 32, 40), "pass x.flatten(0, 1) if these are videos (B, T, C, H, W)"),
    "grey_videos": (
        (2, 8, 1, 32, 40),
        "or x.flatten(0, 1) if they are grey videos (B, T, 1, H, W)",
    ),
    "slices": ((2, 3, 1, 32, 40), "pass x.squeeze(2) if these are single slices (N, C, 1, H, W)"),
}


@pytest.mark.parametrize("function", FUNCTIONS)
@pytest.mark.parametrize("case", ORDERS)
def test_the_advice_for_another_order_of_axes(function, case):
    shape, text = ORDERS[case]
    with pytest.raises(ValueError, match=re.escape(text)) as raised:
        function(torch.rand(shape), torch.rand(shape))
    assert str(shape) in str(raised.value)
    assert "pass window_size" not in str(raised.value)
    # Windows with a size for each axis of images do not fit either.
    if len(shape) == 5:
        with pytest.raises(ValueError, match=re.escape(text.removeprefix("pass "))):
            function(torch.rand(shape), torch.rand(shape), window_size=(11, 11))


@pytest.mark.parametrize("function", FUNCTIONS)
def test_one_of_two_images_in_another_order(function):
    x, y = torch.rand(2, 3, 32, 40), torch.rand(2, 32, 40, 3)
    text = "pass {}.permute(0, 3, 1, 2) if these are images (N, H, W, C)"
    for pair, name in (((x, y), "y"), ((y, x), "x")):
        with pytest.raises(ValueError, match=re.escape(text.format(name))):
            function(*pair)


@pytest.mark.parametrize("shape", [(1, 1, 3, 32, 40), (1, 8, 4, 4), (2, 3, 8, 8)])
def test_small_images_and_thin_volumes_are_told_the_size(shape):
    with pytest.raises(ValueError, match="pass window_size=(3|7) or images of at least") as raised:
        ssim(torch.rand(shape), torch.rand(shape))
    assert "if these are" not in str(raised.value)


@pytest.mark.parametrize(
    ("shape", "text"),
    [
        ((32, 40, 3), "x.permute(2, 0, 1).unsqueeze(0) is one image (H, W, C)"),
        ((2, 32, 40, 3), "pass x.permute(0, 3, 1, 2) if these are images (N, H, W, C)"),
        ((2, 8, 3, 32, 40), "pass x.transpose(1, 2) if these are videos (N, T, C, H, W)"),
        ((2, 8, 32, 40, 3), "pass x.permute(0, 4, 1, 2, 3) if these are videos (N, T, H, W, C)"),
    ],
)
def test_the_advice_of_losses_on_features(shape, text):
    loss = FeatureLoss(torch.nn.Sequential(torch.nn.Conv2d(3, 2, 3)), {"0": 1.0})
    with pytest.raises(ValueError, match=re.escape(text)):
        loss(torch.rand(shape), torch.rand(shape))


@pytest.mark.filterwarnings("ignore:.*jit.* is (deprecated|not supported)")
@pytest.mark.parametrize(
    "loss",
    [
        *[loss() for loss in LOSSES],
        FeatureLoss(torch.nn.Sequential(torch.nn.Conv2d(3, 2, 3)), {"0": 1.0}),
    ],
    ids=lambda loss: type(loss).__name__,
)
def test_scripting_is_refused(loss):
    text = f"torch.jit.script cannot compile {type(loss).__name__}: .*torch.export.export"
    for module in (loss, torch.nn.Sequential(torch.nn.ReLU(), loss)):
        with pytest.raises(RuntimeError, match=text):
            torch.jit.script(module)


@pytest.mark.parametrize("loss", LOSSES)
def test_options_that_change_are_checked_too(loss):
    x = torch.rand(1, 1, 176, 176)
    for name, value, text in (
        ("data_range", 0, "data_range=0.0 is not positive"),
        ("reduction", "sum", "reduction='sum' is unknown"),
        ("weights", [], "pass at least one weight"),
        ("weight", 2, "weight=2.0: pass the share"),
    ):
        changed = loss()
        if hasattr(changed, name):
            setattr(changed, name, value)
            with pytest.raises(ValueError, match=text):
                changed(x, x)


@pytest.mark.parametrize("loss", [L1SSIMLoss, L1MSSSIMLoss])
def test_the_share_of_a_mix(loss):
    for weight in (-0.1, 1.1):
        with pytest.raises(ValueError, match=f"weight={weight}: pass the share"):
            loss(weight)
    with pytest.raises(TypeError, match="weight is None"):
        loss(None)


@pytest.mark.parametrize("function", [ssim, ms_ssim])
def test_masks(backend, function):
    x = torch.rand(2, 3, 176, 180)
    for shape in [(2, 3, 176, 180), (2, 176, 180), (176,), (1, 2, 1, 176, 180), (3, 1, 176, 180)]:
        text = f"mask has shape {shape}: pass one that broadcasts to (2, 1, 176, 180)"
        with pytest.raises(ValueError, match=re.escape(text)):
            function(x, x, mask=torch.ones(shape), backend=backend)
    with pytest.raises(TypeError, match="mask is 1 .int.: pass a torch.Tensor"):
        function(x, x, mask=1, backend=backend)
    with pytest.raises(TypeError, match="mask is torch.complex64"):
        function(x, x, mask=torch.ones(176, 180) * 1j, backend=backend)


def test_weights_that_all_lie_on_levels_that_do_not_fit():
    x = torch.rand(1, 1, 32, 32)
    with pytest.raises(ValueError, match="leave no weight to the 2 levels"):
        ms_ssim(x, x, weights=[0, 0, 1], levels=2)
