"""The pyramid of MS-SSIM: how its levels lie on each other."""

from collections.abc import Sequence

import torch
from torch import Tensor


def halved(shape: Sequence[int]) -> list[int]:
    """Shape of the images of the next coarser level."""
    return [*shape[:2], *[(side + 1) // 2 for side in shape[2:]]]


def spread(coarse: Tensor, shape: Sequence[int]) -> Tensor:
    """The transpose of halving images of this shape."""
    for dim, side in enumerate(shape[2:], start=2):
        share = torch.full([coarse.shape[dim]], 0.5, dtype=coarse.dtype, device=coarse.device)
        if side % 2:
            share = torch.cat([share[1:], torch.ones_like(share[:1])])
        coarse = coarse * share.reshape([-1 if d == dim else 1 for d in range(len(shape))])
        coarse = coarse.repeat_interleave(2, dim).narrow(dim, 0, side)
    return coarse
