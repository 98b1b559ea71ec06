"""A contender, and what it is once it has been made ready for a case."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from .cases import Case

STRUCTURAL = ("SSIM", "MS-SSIM", "L1-SSIM")


class Call(NamedTuple):
    """A contender made ready for a case.

    Attributes:
        similarity: of two images, a scalar; or the loss, where the metric is one.
        settings: the call as one would write it.
        deviation: how its definition differs from the paper's in this case, if it does.
        dtype: of the images that it is given.
        loss: 1 less the similarity, where the package has that for training.
    """

    similarity: Callable[[Tensor, Tensor], Tensor]
    settings: str
    deviation: str = ""
    dtype: torch.dtype = torch.float32
    loss: Callable[[Tensor, Tensor], Tensor] | None = None


class Contender(NamedTuple):
    """A package, or one path of it.

    Attributes:
        name: in tables.
        distribution: what pip calls it.
        build: makes it ready for a case on a device, or raises.
        devices: where it is offered.
        metrics: for which it is offered.
    """

    name: str
    distribution: str
    build: Callable[[Case, str], Call]
    devices: tuple[str, ...] = ("cpu", "cuda")
    metrics: tuple[str, ...] = STRUCTURAL


def text(target: Any, options: dict[str, Any]) -> str:
    """A call with these options, as one would write it."""
    arguments = ", ".join(f"{name}={value!r}" for name, value in options.items())
    return f"{target.__module__.partition('.')[0]}.{target.__name__}({arguments})"


def function_call(function: Callable[..., Tensor], **options: Any) -> Call:
    """A call of a similarity with options."""
    return Call(functools.partial(function, **options), text(function, options))
