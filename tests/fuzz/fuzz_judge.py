"""The contents and layouts of drawn images, and how far results may be apart."""

import math

import torch

DTYPES = ["float32", "float64", "float16", "bfloat16", "uint8"]


def bright(image, value):
    image = image.clone()
    image.flatten(2)[..., image[0, 0].numel() // 2] = value
    return image


# Two images in units of the range, from noise `a` and `b`.
CONTENTS = {
    "related": lambda a, b: (a, 0.7 * a + 0.3 * b),
    "unrelated": lambda a, b: (a, b),
    "same": lambda a, b: (a, a),
    "near": lambda a, b: (a, a + 1e-4 * (b - 0.5)),
    "nearest": lambda a, b: (a, a + 1e-7 * (b - 0.5)),
    "negative": lambda a, b: (a, 1 - a),
    "flat": lambda a, b: (0 * a + 0.6, 0 * a + 0.6 + 1e-7),
    "flats": lambda a, b: (0 * a + 0.2, 0 * a + 0.9),
    "black": lambda a, b: (0 * a, 0 * a),
    "black_white": lambda a, b: (0 * a, 0 * a + 1),
    "black_noise": lambda a, b: (0 * a, b),
    "steps": lambda a, b: ((a > 0.5).double(), (b > 0.5).double()),
    "ramp": lambda a, b: ((ramp := a.flatten(2).sort().values.view_as(a)), ramp.flip(-1)),
    "faint": lambda a, b: (0.8 + 4e-4 * (a - 0.5), 0.8 + 4e-4 * (b - 0.5)),
    "bright": lambda a, b: (bright(0 * a, 1), bright(0 * b, 0.5)),
    "firefly": lambda a, b: (bright(a, 50), 0.7 * a + 0.3 * b),
    "flare": lambda a, b: (bright(a, 1e4), 0.7 * a + 0.3 * b),
    "overshoot": lambda a, b: (10 * a - 5, b),
    "far": lambda a, b: (1e3 * (a - 0.5), b),
    "denormal": lambda a, b: (1e-40 * a, 1e-40 * b),
    "huge": lambda a, b: (1e30 * a, 1e30 * b),
    "one_huge": lambda a, b: (torch.cat([1e30 * a[:1], a[1:]]), b),
}

LAYOUTS = {
    "contiguous": lambda t: t,
    "channels_last": lambda t: t.movedim(1, -1).contiguous().movedim(-1, 1),
    "transposed": lambda t: t.transpose(-1, -2).contiguous().transpose(-1, -2),
    "batch_inside": lambda t: t.transpose(0, 1).contiguous().transpose(0, 1),
    "sliced": lambda t: torch.stack([t, torch.full_like(t, 77)], -1).flatten(-2)[..., ::2],
    "offset": lambda t: torch.nn.functional.pad(t, (3, 2, 1, 4), value=77)[..., 1:-4, 3:-2],
    "expanded": lambda t: t[:1, :1].expand(t.shape),
}


def spoil(pair, places):
    """Two images with infinities or NaN at some places, where their dtypes have them."""
    pair = list(pair)
    for which, place, value in places:
        index = "xy".index(which)
        if pair[index].is_floating_point():
            pair[index] = pair[index].clone(memory_format=torch.contiguous_format)
            pair[index].view(-1)[int(place * pair[index].numel())] = float(value)
    return pair


# The budget is so many times the definition's own error.
TIMES = 8
# A result is not judged if the error is a larger share of it: float32 keeps less than a digit.
LOST = 0.1


def as_given(options):
    """Options as a call takes them: JSON keeps tuples as lists."""
    by_axis = ("data_range", "window_size", "sigma")
    return {
        name: tuple(option) if name in by_axis and isinstance(option, list) else option
        for name, option in options.items()
    }


class Violation(Exception):  # noqa: N818
    """A case that a path does not pass."""


def require(condition, case, backend, text):
    if not condition:
        raise Violation(f"{text}\n  check({case!r}, {backend!r})")


def sizes(values):
    """Root mean square and largest of each image, or of the batch: two rows."""
    if values.dim() > 1:
        planes = values.flatten(1)
        most = planes.amax(1)
        scale = torch.where((most > 0) & most.isfinite(), most, 1.0)
        return torch.stack([(planes / scale[:, None]).square().mean(1).sqrt() * scale, most])
    return torch.stack([values, values])


def shaped(values, like):
    return values.reshape(-1, *[1] * (like.dim() - 1)) if like.dim() else values


def apart(got, exact):
    """How far a rough result is from the exact one; infinite where only it is not finite."""
    error = (got.double() - exact).abs()
    return torch.where(exact.isfinite(), error.nan_to_num(math.inf, math.inf), 0.0)
