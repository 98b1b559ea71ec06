"""Compilation of the kernels before they are needed."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor


def precompile(
    loss: Callable[[Tensor, Tensor], Tensor],
    shape: Sequence[int],
    *,
    dtype: torch.dtype = torch.float32,
    device: torch.device | str = "cpu",
) -> None:
    """Compiles the kernels that a loss runs on two images of this shape, identical ones here.

    A first call compiles kernels, on a CPU for seconds. Numba and Triton keep them on disk. This
    does it beforehand, when a container is built or on one process before the others start: it
    calls the loss on images of zeros, with a gradient of the first image and without any.

    On a CPU the size of the images does not matter, except that it decides the number of levels.
    Everything else does: options, the dtypes, and whether there is a mask, ``valid``, a range for
    each image or a gradient of the target. For calls with those, call the loss once yourself. On a
    GPU the shape and the strides matter too.

    ``NUMBA_CACHE_DIR`` and ``TRITON_CACHE_DIR`` name the folders, which have to be in the
    container. Another model of CPU or GPU compiles for itself.

    Args:
        loss: a loss, or a function of two images such as `ssim`, with the options that it will
            have.
        shape: the shape of the images.
        dtype: their dtype. One that is not floating has no gradient.
        device: their device.

    Raises:
        TypeError: as for the loss.
        ValueError: as for the loss.

    Examples:
        >>> from perceptual_losses import SSIMLoss
        >>> precompile(SSIMLoss(window_size=3), (8, 3, 32, 32))
    """
    with torch.inference_mode(False):
        # Two allocations: kernels for a GPU depend on the alignment too.
        x, y = (torch.zeros(*shape, dtype=dtype, device=device) for _ in range(2))
        with torch.no_grad():
            loss(x, y)
        if dtype.is_floating_point:
            with torch.enable_grad():
                loss(x.requires_grad_(), y).sum().backward()
