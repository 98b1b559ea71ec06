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
    """Compiles the kernels that a loss runs on two images of this shape.

    A first call compiles kernels, which takes seconds on a CPU. Numba and Triton keep the kernels
    on disk. This function compiles them beforehand: when a container is built, or in one process
    before the others start. It calls the loss on images of zeros, once with a gradient of the first
    image and once without any.

    The kernels depend on the options and the dtypes. They also depend on whether there is a mask,
    ``valid``, a range for each image or a gradient of the target. For such calls, call the loss
    once yourself. On a CPU the size of the images matters only because it decides the number of
    levels. On a GPU the shape and the strides matter.

    ``NUMBA_CACHE_DIR`` and ``TRITON_CACHE_DIR`` name the folders, which have to be in the
    container. Each model of CPU or GPU needs kernels of its own.

    Args:
        loss: a loss, or a function of two images such as `ssim`, with the options that it will
            have.
        shape: the shape of the images.
        dtype: their dtype. The kernels for a gradient are compiled only if it is floating.
        device: their device.

    Raises:
        TypeError: as for the loss.
        ValueError: as for the loss.

    Examples:
        >>> from perceptual_losses import SSIMLoss
        >>> precompile(SSIMLoss(window_size=3), (8, 3, 32, 32))
    """
    with torch.inference_mode(False):
        # Each image has its own memory: kernels for a GPU depend on its alignment.
        x, y = (torch.zeros(*shape, dtype=dtype, device=device) for _ in range(2))
        with torch.no_grad():
            loss(x, y)
        if dtype.is_floating_point:
            with torch.enable_grad():
                loss(x.requires_grad_(), y).sum().backward()
