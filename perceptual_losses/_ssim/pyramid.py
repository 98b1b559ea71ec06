"""The pyramid of MS-SSIM: each level has the 2x2 means of the level before."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from .._runtime.tracing import exporting


def halved_shape(shape: Sequence[int]) -> list[int]:
    """The shape of the images of the next coarser level."""
    return [*shape[:2], *[(side + 1) // 2 for side in shape[2:]]]


def halve(image: Tensor) -> Tensor:
    """2x2 (2x2x2) means; an odd last row or column counts twice."""
    if exporting():
        # Pooling would fix in the graph which sides are odd. An even side does not use the pixel
        # that is appended.
        for dim in range(2, image.dim()):
            axes = (slice(None),) * dim
            last = image.narrow(dim, image.shape[dim] - 1, 1)
            second = torch.cat([image, last], dim)[(*axes, slice(1, None, 2))]
            image = (image[(*axes, slice(None, None, 2))] + second) / 2
        return image
    pool = F.avg_pool2d if image.dim() == 4 else F.avg_pool3d
    # Torch refuses windows larger than a volume.
    window = [1 if side == 1 else 2 for side in image.shape[2:]]
    # The window over an odd edge is divided by the pixels it holds: the same as repeating the edge.
    return pool(image, window, ceil_mode=True)


def halve_any(valid: Tensor) -> Tensor:
    """The coarse pixels that are valid: those with any valid pixel."""
    for dim in range(2, valid.dim()):
        first, second = (valid.movedim(dim, 0)[k::2] for k in range(2))
        if len(first) == len(second):
            valid = first | second
        else:
            valid = torch.cat([first[:-1] | second, first[-1:]])
        valid = valid.movedim(0, dim)
    return valid


def halve_valid(image: Tensor, valid: Tensor) -> Tensor:
    """2x2 (2x2x2) means over the valid pixels, zero where there is none.

    ``valid`` is boolean, ``(N, 1, H, W)``. Nothing of ``image`` is read where it is False.
    """
    present = halve(valid.to(image.dtype))
    mean = halve(torch.where(valid, image, 0.0))
    return torch.where(present > 0, mean / present, 0.0)


def halve_transpose(coarse: Tensor, shape: Sequence[int]) -> Tensor:
    """The transpose of `halve` for images of this shape: it sends a coarse gradient to pixels."""
    for dim, side in enumerate(shape[2:], start=2):
        factors = torch.full([coarse.shape[dim]], 0.5, dtype=coarse.dtype, device=coarse.device)
        if side % 2:
            factors = torch.cat([factors[1:], torch.ones_like(factors[:1])])
        coarse = coarse * factors.reshape([-1 if d == dim else 1 for d in range(len(shape))])
        coarse = coarse.repeat_interleave(2, dim).narrow(dim, 0, side)
    return coarse


def halve_valid_transpose(coarse: Tensor, valid: Tensor) -> Tensor:
    """The transpose of `halve_valid`: a coarse gradient goes to valid pixels in equal parts."""
    present = halve(valid.to(coarse.dtype))
    coarse = torch.where(present > 0, coarse / present, 0.0)
    sent = halve_transpose(coarse, [*coarse.shape[:2], *valid.shape[2:]])
    return torch.where(valid, sent, 0.0)
