import contextlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import hypothesis
import numpy as np
import pytest
import skimage.data
import torch
from backends import BACKENDS, INTERPRETED, INTERPRETER

from perceptual_losses import _evaluator
from perceptual_losses._ssim.gpu import combine as gpu_combine
from perceptual_losses._ssim.gpu import levels as gpu_levels
from perceptual_losses._ssim.gpu import programs as gpu_programs
from perceptual_losses._ssim.gpu import tiles as gpu_tiles
from perceptual_losses._ssim.gpu import volume as gpu_volume

# The backend refuses float64. The others take the interpreter minutes.
NOT_INTERPRETED = ("float64", "volumes", "training", "large")

if INTERPRETED:
    import interpreter  # noqa: F401

T = TypeVar("T")

hypothesis.settings.register_profile(
    "suite", deadline=None, derandomize=True, max_examples=3 if INTERPRETED else 60
)
hypothesis.settings.load_profile("suite")


def pytest_configure(config: pytest.Config) -> None:
    """Ignores warnings of the interpreter: masked columns compute with whatever lies in memory."""
    if INTERPRETED:
        config.addinivalue_line("filterwarnings", "ignore::RuntimeWarning")


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leaves the tests of the interpreter where it is switched on, and the others elsewhere."""
    elsewhere = [item for item in items if _interpreted(item) != INTERPRETER]
    config.hook.pytest_deselected(items=elsewhere)
    items[:] = [item for item in items if _interpreted(item) == INTERPRETER]


def _interpreted(item: pytest.Item) -> bool:
    marked = item.get_closest_marker("interpreted") is not None
    return marked and not any(item.get_closest_marker(name) for name in NOT_INTERPRETED)


@contextlib.contextmanager
def _wide_tiles() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        tiles = gpu_tiles.Tile(64, 1, 1, 8), gpu_tiles.Tile(256, 1, 1, 8)
        of_kernels = gpu_tiles.KernelTiles(tiles, tiles, tiles, tiles)
        patch.setattr(gpu_tiles, "TILES", {None: {33: of_kernels}})
        patch.setattr(gpu_programs, "MIN_ROWS", 256)
        patch.setattr(gpu_volume, "DEPTH_TILE", gpu_tiles.Tile(1024, 1, 1, 8))
        patch.setattr(gpu_combine, "ROWS", 64)
        patch.setattr(gpu_levels, "TILES", 4)
        _evaluator._evaluator.cache_clear()
        yield
    _evaluator._evaluator.cache_clear()


@pytest.fixture(scope="session")
def wide_tiles() -> Callable[[], contextlib.AbstractContextManager[None]]:
    """Few tiles: the interpreter takes as long for one thread as for all of a program."""
    return _wide_tiles


@pytest.fixture(scope="module", params=BACKENDS)
def backend(request: pytest.FixtureRequest) -> Iterator[str]:
    """Every path, by name: each property is asserted on each of them.

    The tiles of one module's tests are not those of the next one's.
    """
    with _wide_tiles() if request.param == "triton" else contextlib.nullcontext():
        yield request.param


@pytest.fixture(scope="module")
def sized(backend: str) -> Callable[[T, T], T]:
    """The first of two sizes; in the interpreter, which takes seconds for a kernel, the second."""
    return lambda usual, small: small if backend == "triton" else usual


class Precision(NamedTuple):
    """The precision in which a backend is judged.

    Attributes:
        dtype: the widest dtype that it computes in.
        least: the smallest absolute tolerance of values that makes sense in that dtype.
        least_relative: the smallest relative tolerance of gradients.
    """

    dtype: torch.dtype
    least: float
    least_relative: float

    def value(self, tolerance: float) -> float:
        return max(tolerance, self.least)

    def gradient(self, tolerance: float) -> float:
        return max(tolerance, self.least_relative)


@pytest.fixture(scope="module")
def precision(backend: str) -> Precision:
    """Tolerances are written for float64: a path that has less takes what float32 keeps of them."""
    if backend == "triton":
        return Precision(torch.float32, 1e-6, 1e-5)
    return Precision(torch.float64, 0.0, 0.0)


@pytest.fixture(scope="module")
def assert_within_budget(backend: str, precision: Precision) -> Callable[..., None]:
    """Compares what a function of ``backend=`` gives with what is exact.

    In float32 the budget is twice the reference's own error and one rounding, where the tolerance
    is less.
    """

    def check(function: Callable[..., torch.Tensor], exact: Any, tolerance: float) -> None:
        tolerance = precision.value(tolerance)
        if precision.dtype == torch.float32:
            rough = function(backend="reference").numpy()
            rounding = torch.finfo(torch.float32).eps * np.abs(exact).max()
            tolerance = max(tolerance, 2 * np.abs(rough - exact).max() + rounding)
        got = function(backend=backend).numpy()
        np.testing.assert_allclose(got, exact, rtol=0, atol=tolerance)

    return check


@pytest.fixture(scope="session")
def photo() -> torch.Tensor:
    """A colour photo as (1, 3, 512, 512), float64 in [0, 1]."""
    return torch.from_numpy(np.moveaxis(skimage.data.astronaut(), -1, 0)[None] / 255.0)


@pytest.fixture(scope="session")
def root() -> Path:
    return Path(__file__).parent.parent
