"""The GPU path: launches of the Triton kernels, for tensors read where and as they lie."""

import contextlib
import functools
import importlib.util
import json
import math
import os
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from .contract import FLOOR, Settings, X, Y, halved, usual_scale

INSTALLED = importlib.util.find_spec("triton") is not None


class Tile(NamedTuple):
    """The pixels of a program.

    Attributes:
        lanes: possible numbers of threads.
        columns: neighbouring columns of a thread, 1 or 2 (or 4 without a map to write): what they
            share is loaded once.
        turn: rows of the image in one turn of the loop. More of them move fewer sums from register
            to register, and take longer to compile.
        warps: whose registers fit on a multiprocessor at once.
    """

    lanes: tuple[int, ...]
    columns: int
    turn: int
    warps: int


class Launches(NamedTuple):
    """The tiles of each kernel. Without one for `march`, `derive` and `gather` run."""

    value: Tile
    march: Tile | None
    derive: Tile
    gather: Tile


_WIDTHS = (32, 64, 128)

# For each architecture, and up to each window size. Nothing in here has been timed yet: it is what
# fits into the registers without spills.
LAUNCHES: dict[str | None, dict[int, Launches]] = {
    None: {
        11: Launches(
            value=Tile(_WIDTHS, 2, 2, 12),
            march=Tile(_WIDTHS, 2, 1, 8),
            derive=Tile(_WIDTHS, 2, 2, 8),
            gather=Tile(_WIDTHS, 2, 1, 8),
        ),
        17: Launches(
            value=Tile(_WIDTHS, 2, 2, 8),
            march=None,
            derive=Tile(_WIDTHS, 2, 2, 8),
            gather=Tile(_WIDTHS, 2, 1, 8),
        ),
        33: Launches(
            value=Tile(_WIDTHS, 1, 1, 8),
            march=None,
            derive=Tile(_WIDTHS, 1, 1, 8),
            gather=Tile(_WIDTHS, 1, 1, 8),
        ),
    }
}
# Rows of a band, at least: each computes the rows before it too.
SHORTEST = 8
# Bytes of the derivatives between `derive` and `gather`: what stays in the second-level cache.
WORKSPACE = 24 * 2**20
# Rows and columns of a program of the sweep, and of one that halves: from each halving of its rows
# comes a level.
ROWS, COLUMNS = 4, 256
HALVED_ROWS, HALVED_COLUMNS = 16, 128
# Tiles that a program sums at once.
TILES = 512
# Planes of a program that combines levels.
PLANES = 32
# The filters are multiply-adds, which Triton 3.10 will no longer fuse unless it is asked to.
OPTIONS = {"enable_fp_fusion": True}


def refuses(x: Tensor, y: Tensor, settings: Settings) -> str | None:
    """Why the path is not for these images, or ``None``."""
    if x.device.type not in ("cuda", "xpu") and not (x.device.type == "cpu" and _interpreted()):
        return f"the images are on {x.device} and it runs on GPUs"
    if torch.float64 in (x.dtype, y.dtype):
        return "it computes in float32, and the images are float64"
    if x.dim() != 4:
        return "it takes images (N, C, H, W), and these are volumes"
    if len(settings.window) > max(LAUNCHES[None]):
        return f"its windows have at most {max(LAUNCHES[None])} pixels, not {len(settings.window)}"
    return None


def missing(device: torch.device) -> str | None:
    """What the path would need to run, or ``None``."""
    if not INSTALLED:
        return "Triton is not installed"
    if torch.compiler.is_compiling():
        return None
    return _broken() or _too_old(device)


def _interpreted() -> bool:
    return os.environ.get("TRITON_INTERPRET") == "1"


@functools.cache
def _broken() -> str | None:
    try:
        import triton

        version = triton.__version__
        # Older compilers do not take the kernels' tuples.
        if tuple(map(int, version.split(".")[:2])) < (3, 6):
            return f"Triton {version} is installed and 3.6 is the oldest that compiles the kernels"
        _kernels()
    except Exception as error:  # Whatever a broken installation raises is the reason.
        return f"Triton cannot be used ({type(error).__name__}: {error})"
    return None


@functools.cache
def _too_old(device: torch.device) -> str | None:
    if device.type != "cuda" or torch.version.hip is not None:
        return None
    major, minor = torch.cuda.get_device_capability(device)
    return None if major >= 8 else f"{device} has compute capability {major}.{minor}, not 8.0"


@functools.cache
def _kernels() -> Any:
    from . import gpu_kernels

    return gpu_kernels


def means(
    x: Tensor,
    y: Tensor,
    weights: list[Tensor],
    window: list[float],
    low: float,
    c1: float,
    c2: float,
    padding: str,
    levels: int,
    distance: bool,
    want: int,
) -> tuple[Tensor, list[Tensor], list[Tensor]]:
    """Each level's mean over each plane, and its gradients with respect to the level's images.

    Args:
        x: images ``(N, C, H, W)`` in half precision or float32, of any layout.
        y: same shape and device.
        weights: for each level the weight of each map value, ``(N, 1, H', W')``, summing to one for
            each image; empty for plain means.
        window: taps of the separable window; odd in number, symmetric.
        low: the pixel value that counts as zero.
        c1: ``(k1 L)^2``.
        c2: ``(k2 L)^2``.
        padding: ``"valid"``, ``"zeros"`` or ``"symmetric"``.
        levels: means of the contrast-structure factor, each level's images half the size, and the
            mean of SSIM at the last level.
        distance: whether the mean of ``|x - y|`` follows.
        want: which gradients, `X` and `Y` or their sum; 0 for none.

    Returns:
        The means ``(levels, N, C)``, or one more, and the gradients with respect to each level's x
        and to its y, all times `usual_scale`, empty lists if not wanted.
    """
    if want == Y:
        # SSIM is symmetric, and so the kernels have no third way.
        value, gradients, _ = means(
            *(y, x, weights, window, low, c1, c2, padding, levels, distance, X)
        )
        return value, [], gradients
    n, c = x.shape[:2]
    settings = Settings(tuple(window), low, c1, c2, padding)
    images = [(x, y)]
    of_x: list[Tensor] = []
    of_y: list[Tensor] = []
    with _on(x.device):
        while len(images) < levels:
            images += _halves(*images[-1], levels - len(images))
        machine = _machine(x.device)
        shapes = tuple(tuple(a.shape) for a, _ in images)
        jobs = [
            _job(shapes, j, len(window), padding, want, distance and j == 0, machine)
            for j in range(levels)
        ]
        counts = tuple(job.programs for job in jobs) + (jobs[0].programs,) * distance
        lost = len(window) - 1 if padding == "valid" else 0
        wholes = [1.0 if weights else float((h - lost) * (w - lost)) for *_, h, w in shapes]
        wholes += [float(math.prod(x.shape[2:]))] * distance
        most = max(counts)
        sums = torch.empty([len(counts), n * c, most, 2], dtype=torch.float32, device=x.device)
        # From the coarsest on, for the halves to be gone where the gradients are large.
        for j in reversed(range(levels)):
            a, b = images.pop()
            if want & X:
                of_x.insert(0, unscaled(x) if j == 0 else in_rows(a, a.shape))
            if want & Y:
                of_y.insert(0, unscaled(y) if j == 0 else in_rows(b, b.shape))
            weight = weights[j] if weights else None
            distances = sums[levels] if distance and j == 0 else None
            _run(
                *(jobs[j], a, b, weight, of_x[:1] + of_y[:1], sums[j], distances, settings),
                *(usual_scale(x.shape) / wholes[j], j < levels - 1),
            )
        value = torch.empty([len(counts), n, c], dtype=torch.float32, device=x.device)
        _launch(
            *(_kernels().mean, value.numel(), 1, sums, value),
            # Integers in a tuple are cases for the compiler, whatever a kernel asks for.
            *(tuple(map(float, counts)), tuple(wholes), n * c, 2 * most),
            LANES=TILES,
            DISTANCE=distance,
        )
    return value, of_x, of_y


def sweep(gradients: list[Tensor], scale: Tensor, images: list[Tensor]) -> None:
    """Makes the first of the levels' gradients the whole one, in place.

    Args:
        gradients: of each level's mean with respect to its images, from `means`.
        scale: ``(levels, N, C)``, of the value with respect to the means, or one more with
            respect to the mean distance of the images.
        images: between which the distance is, that of the gradient first; or none.
    """
    fine, *coarse = gradients
    n, c, height, width = fine.shape
    strips, bands = _ceil(width, COLUMNS), _ceil(height, ROWS)
    x, y = images or (fine, fine)
    with _on(fine.device):
        _launch(
            *(_kernels().sweep, n * c * strips * bands, 4, fine, tuple(coarse) or (fine,)),
            *(tuple(level.stride(2) for level in coarse) or (0,), scale, x, y),
            *(fine.stride(), scale.stride(), x.stride(), y.stride()),
            *(strips, bands, c, height, width, usual_scale(fine.shape)),
            COARSE=len(coarse),
            ROWS=ROWS,
            LANES=COLUMNS,
            DISTANCE=bool(images),
        )


def product(means: Tensor, exponents: list[float], normalize: str | None) -> tuple[Tensor, Tensor]:
    """The product over the levels of their means' powers, and its derivatives by the means."""
    kernels = _kernels()
    means = means.contiguous()
    value, derivatives = torch.empty_like(means[0]), torch.empty_like(means)
    codes = {
        "floor": kernels.FLOOR,
        "relu": kernels.RELU,
        "simple": kernels.SIMPLE,
        None: kernels.PLAIN,
    }
    with _on(means.device):
        _launch(
            *(kernels.product, _ceil(value.numel(), PLANES), 1, means, value, derivatives),
            *(tuple(exponents), FLOOR, value.numel()),
            NORMALIZE=codes[normalize].value,
            LANES=PLANES,
        )
    return value, derivatives


class Machine(NamedTuple):
    """What the launches depend on."""

    architecture: str
    multiprocessors: int


class _Cover(NamedTuple):
    """Tiles that cover some planes.

    Attributes:
        whole: whether no thread's columns lie on both sides of the image's right edge, which makes
            loads wide; the same for all coarser levels, which are then one compilation.
    """

    whole: bool
    lanes: int
    columns: int
    turn: int
    strips: int
    bands: int
    rows: int

    @property
    def tiles(self) -> int:
        return self.strips * self.bands


class _Slab(NamedTuple):
    """Rows of the image whose derivatives are in memory at once."""

    top: int
    bottom: int
    derive: _Cover
    gather: _Cover


class _Job(NamedTuple):
    """How a level is computed.

    Attributes:
        want: which gradients; `X` or the sum for both, 0 for none.
        programs: that give a sum for each plane.
        march: the tiles of the kernel that does all, or ``None``.
        slabs: what `derive` and `gather` do one after the other.
        planes: in a slab, at most.
        pitch: of the rows of derivatives.
    """

    want: int
    programs: int
    march: _Cover | None
    slabs: tuple[_Slab, ...]
    planes: int
    pitch: int

    @property
    def maps(self) -> int:
        """Maps of derivatives."""
        return 4 if self.want == X + Y else 3


@functools.lru_cache(maxsize=256)
def _job(
    shapes: tuple[tuple[int, ...], ...],
    level: int,
    taps: int,
    padding: str,
    want: int,
    distance: bool,
    machine: Machine,
) -> _Job:
    n, c, height, width = shapes[level]
    planes = n * c
    sizes = LAUNCHES.get(machine.architecture, LAUNCHES[None])
    launches = sizes[min(size for size in sizes if size >= taps)]
    reach, radius = taps - 1, taps // 2
    if not want:
        # Positions before the image have their centre in it.
        before = 0 if padding == "valid" else radius
        top, bottom = -before, height - reach + before
        # `derive` begins a whole window before the image, for columns in pairs.
        beside = -reach if padding == "valid" else radius
        if distance and padding == "valid":
            # A position for each pixel, if beside the map.
            bottom, beside = height, 0
        cover = _cover(
            *(launches.value, machine, planes, bottom - top, shapes, level, reach, beside)
        )
        return _Job(want, cover.tiles, None, (_Slab(top, bottom, cover, cover),), planes, 0)
    if launches.march is not None:
        # A turn of the rows before the first of the map takes half the time of the others.
        before = reach + reach // 2
        cover = _cover(launches.march, machine, planes, height, shapes, level, before, halo=reach)
        return _Job(want, cover.tiles, cover, (), planes, 0)

    maps = 4 if want == X + Y else 3
    # Room for what the last threads of a row read and write beyond it, with most lanes.
    derived, gathered = (
        tile.columns * max(tile.lanes) for tile in (launches.derive, launches.gather)
    )
    pitch = max(
        derived * _ceil(width + reach, derived), gathered * _ceil(width, gathered) + taps + 3
    )
    pitch = 16 * _ceil(pitch, 16)
    rows = min(max(WORKSPACE // (4 * maps * pitch) - reach, taps), height)
    at_once = min(max(WORKSPACE // (4 * maps * pitch * (rows + reach)), 1), planes)
    slabs = []
    for top in range(0, height, rows):
        bottom = min(top + rows, height)
        both = (shapes, level, reach)
        derive = _cover(launches.derive, machine, at_once, bottom - top + reach, *both, reach)
        gather = _cover(launches.gather, machine, at_once, bottom - top, *both)
        slabs.append(_Slab(top, bottom, derive, gather))
    programs = sum(slab.derive.tiles for slab in slabs)
    return _Job(want, programs, None, tuple(slabs), at_once, pitch)


def _cover(
    tile: Tile,
    machine: Machine,
    planes: int,
    height: int,
    shapes: tuple[tuple[int, ...], ...],
    level: int,
    before: int,
    beside: int = 0,
    halo: int = 0,
) -> _Cover:
    """Tiles of ``tile``'s kind that take the least time, in rows that a program does.

    Args:
        tile: what is possible.
        machine: where they run: so many programs at once, and the next when these are done.
        planes: of each image.
        height: rows of the level.
        shapes: of all levels.
        level: the number of the level.
        before: rows that a band computes beside its own.
        beside: columns more than those of the images.
        halo: columns of a tile that are its neighbour's.
    """

    def fit(lanes: int, rows: int, width: int) -> tuple[int, int, int]:
        """Time, strips and bands."""
        strips = _ceil(width, lanes * tile.columns - halo)
        at_once = machine.multiprocessors * max(1, tile.warps // _warps(lanes))
        return min(
            (_ceil(planes * strips * bands, at_once) * (_ceil(rows, bands) + before), strips, bands)
            for bands in range(1, _ceil(rows, SHORTEST) + 1)
        )

    def cost(lanes: int) -> tuple[int, int, int]:
        """Of all levels, then their threads."""
        fits = [fit(lanes, shape[2], shape[3] + beside) for shape in shapes]
        return sum(time for time, *_ in fits), lanes * sum(strips for _, strips, _ in fits), -lanes

    # The same for all levels, because for another number the kernel is compiled again.
    lanes = min((lanes for lanes in tile.lanes if lanes * tile.columns > halo), key=cost)
    _, strips, bands = fit(lanes, height, shapes[level][3] + beside)
    alike = shapes[1:] if level else shapes[:1]
    whole = all(shape[3] % tile.columns == 0 for shape in alike)
    rows = _ceil(height, bands)
    return _Cover(whole, lanes, tile.columns, tile.turn, strips, _ceil(height, rows), rows)


def _run(
    job: _Job,
    x: Tensor,
    y: Tensor,
    weight: Tensor | None,
    gradients: list[Tensor],
    sums: Tensor,
    distances: Tensor | None,
    settings: Settings,
    share: float,
    contrast: bool,
) -> None:
    """Writes a level's gradients, as many as wanted, and the programs' sums."""
    kernels = _kernels()
    window, low, c1, c2, padding = settings
    n, c, height, width = x.shape
    planes, taps = n * c, len(window)
    # Where there is nothing to pass, something that is no other case for the compiler.
    weights, weight_strides = (x, (0, 0, 0, 0)) if weight is None else (weight, weight.stride())
    gradient, other = (gradients[0], gradients[-1]) if gradients else (x, x)
    half_window = window[: taps // 2 + 1]
    codes = {"valid": kernels.VALID, "zeros": kernels.ZEROS, "symmetric": kernels.SYMMETRIC}
    constants: dict[str, Any] = {
        "TAPS": taps,
        "PADDING": codes[padding].value,
        "WANT": job.want,
        "WEIGHTED": weight is not None,
        "DISTANCE": distances is not None,
    }
    if distances is None:
        distances = sums
    if job.march is not None:
        cover = job.march
        pitch, rows = _pitch(cover, taps), 2 * (2 + job.maps)
        scratch = sums.new_empty(planes * cover.tiles * rows * pitch)
        _launch(
            *(kernels.march, planes * cover.tiles, _warps(cover.lanes)),
            *(x, y, weights, gradient, other, scratch, sums, distances, x.stride(), y.stride()),
            *(weight_strides, gradient.stride(), other.stride(), sums.stride(0)),
            *(cover.strips, cover.bands, cover.rows, c, height, width),
            *(half_window, low, c1, c2, share, int(contrast)),
            LANES=cover.lanes,
            COLUMNS=cover.columns,
            TURN=cover.turn,
            WHOLE=cover.whole,
            PITCH=pitch,
            **constants,
        )
        return

    reach = taps - 1 if job.want else 0
    depth = max(slab.bottom - slab.top for slab in job.slabs) + reach
    maps = sums.new_empty(job.planes * job.maps * depth * job.pitch) if job.want else x
    done = 0
    for slab in job.slabs:
        derive, gather = slab.derive, slab.gather
        pitch = _pitch(derive, taps)
        scratch = sums.new_empty(job.planes * derive.tiles * 4 * pitch)
        # A position that belongs to two slabs counts in the first one.
        own_top = slab.top if done else slab.top - reach
        own_sums, own_distances = sums.view(-1)[done:], distances.view(-1)[done:]
        done += 2 * derive.tiles
        for first in range(0, planes, job.planes):
            here = min(job.planes, planes - first)
            _launch(
                *(kernels.derive, here * derive.tiles, _warps(derive.lanes)),
                *(x, y, weights, maps, scratch, own_sums, own_distances),
                *(x.stride(), y.stride(), weight_strides, sums.stride(0), job.pitch),
                *(derive.strips, derive.bands, derive.rows),
                *(first, slab.top - reach, slab.bottom, own_top, c, height, width),
                *(half_window, low, c1, c2, int(contrast)),
                LANES=derive.lanes,
                COLUMNS=derive.columns,
                TURN=derive.turn,
                WHOLE=derive.whole,
                PITCH=pitch,
                **constants,
            )
            if job.want:
                _launch(
                    *(kernels.gather, here * gather.tiles, _warps(gather.lanes)),
                    *(x, y, gradient, other, maps, x.stride(), y.stride()),
                    *(gradient.stride(), other.stride(), job.pitch),
                    *(gather.strips, gather.bands, gather.rows, first, slab.top, slab.bottom),
                    *(c, height, width, half_window, low, share),
                    LANES=gather.lanes,
                    COLUMNS=gather.columns,
                    TURN=gather.turn,
                    WHOLE=gather.whole,
                    TAPS=taps,
                    WANT=job.want,
                )


def unscaled(image: Tensor) -> Tensor:
    """Memory for the gradient of an image's mean.

    A pixel's part of that is less than what float16 has, and a loss may be scaled so that it has.
    """
    dtype = torch.float32 if image.dtype == torch.float16 else image.dtype
    return torch.empty_like(image, dtype=dtype)


def in_rows(image: Tensor, shape: Sequence[int]) -> Tensor:
    """Memory for float32 images beside ``image``, in rows that begin at multiples of 16 values.

    That is known to the compiler, makes loads wide and is the same for images of any width.
    """
    *outer, width = shape
    rows = image.new_empty([*outer, 16 * _ceil(width, 16)], dtype=torch.float32)
    return rows[..., :width]


def _halves(x: Tensor, y: Tensor, levels: int) -> list[tuple[Tensor, Tensor]]:
    """Both images at half the size, at half of that and so on, as far as one launch goes."""
    n, c, height, width = x.shape
    levels = min(levels, HALVED_ROWS.bit_length() - 1)
    halves = []
    shape = x.shape
    for _ in range(levels):
        shape = torch.Size(halved(shape))
        both = in_rows(x, [2, *shape])
        halves.append((both[0], both[1]))
    strips, bands = _ceil(width, HALVED_COLUMNS), _ceil(height, HALVED_ROWS)
    of_x, of_y = zip(*halves, strict=True)
    _launch(
        *(_kernels().pyramid, n * c * strips * bands, 4, x, y, of_x, of_y),
        *(tuple(half.stride(2) for half in of_x), x.stride(), y.stride()),
        *(strips, bands, c, height, width),
        ROWS=HALVED_ROWS,
        LANES=HALVED_COLUMNS,
    )
    return halves


def _launch(kernel: Any, programs: int, warps: int, *arguments: Any, **constants: Any) -> None:
    try:
        kernel[(programs,)](*arguments, num_warps=warps, **OPTIONS, **constants)
    except (OSError, json.JSONDecodeError) as error:
        raise RuntimeError(
            f"Triton cannot use its cache ({type(error).__name__}: {error}): make room in "
            f"{_cache_folder()}, remove it if it is damaged, or set TRITON_CACHE_DIR to another "
            "folder"
        ) from error


def _cache_folder() -> str:
    from triton import knobs

    return str(knobs.cache.dir)


def _pitch(cover: _Cover, taps: int) -> int:
    """Of a row of scratch memory: the last threads' windows reach beyond the strip."""
    return cover.lanes * cover.columns + (1 << max(taps - 2, 1).bit_length())


def _warps(lanes: int) -> int:
    return max(1, lanes // 32)


def _ceil(a: int, b: int) -> int:
    return -(-a // b)


def _on(device: torch.device) -> contextlib.AbstractContextManager[Any]:
    """Makes a GPU the current one: kernels run there, on its current stream."""
    if device.type in ("cpu", "meta"):
        return contextlib.nullcontext()
    guard: contextlib.AbstractContextManager[Any] = torch.get_device_module(device).device(device)
    return guard


@functools.cache
def _machine(device: torch.device) -> Machine:
    if device.type != "cuda":
        # The interpreter does one program after the other. No other device has been measured.
        return Machine(device.type, 1 if device.type == "cpu" else 64)
    properties = torch.cuda.get_device_properties(device)
    if torch.version.hip is not None:
        architecture = str(properties.gcnArchName)
    else:
        architecture = f"sm_{properties.major}{properties.minor}"
    return Machine(architecture, properties.multi_processor_count)
