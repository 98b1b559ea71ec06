"""What every path is told, the precision it computes in, and how levels lie on each other."""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

# What a fast path is asked for: the gradient with respect to either image, or their sum for both.
X, Y = 1, 2


# Where normalize="floor" leaves Wang's definition. Smaller floors start training from
# anti-correlated images with gradients so small that they drown in Adam's epsilon.
FLOOR = 0.01


class Settings(NamedTuple):
    """What is computed, in the paper's terms.

    Attributes:
        window: taps of the separable window; odd in number.
        low: the pixel value that counts as zero.
        c1: ``(k1 L)^2``.
        c2: ``(k2 L)^2``.
        padding: ``"valid"``, ``"zeros"`` or ``"symmetric"``.
    """

    window: tuple[float, ...]
    low: float
    c1: float
    c2: float
    padding: str


class Result(NamedTuple):
    """What becomes of the means of all planes.

    Attributes:
        reduction: ``"none"``, ``"mean"`` over them, or ``"loss"``, which is 1 less that.
        exponents: of the levels' means, which are multiplied before; or none, of one level.
        normalize: what becomes of a mean before the power.
        mix: what a loss and the mean of ``|x - y|`` are multiplied with before they are added; or
            none.
    """

    reduction: str = "none"
    exponents: tuple[float, ...] = ()
    normalize: str | None = None
    mix: tuple[float, ...] = ()

    def of(self, values: Tensor, distances: Tensor | None) -> Tensor:
        """From the planes' similarities, and their distances in a mix."""
        if self.reduction != "none":
            values = values.mean()
        if distances is None:
            return 1 - values if self.reduction == "loss" else values
        structural, l1 = self.mix
        distances = distances if self.reduction == "none" else distances.mean()
        return structural * (1 - values) + l1 * distances

    def usual_scale(self, shape: Sequence[int]) -> float:
        """Of the result, if the gradients of the means have `usual_scale`."""
        if self.reduction == "none":
            return -usual_scale(shape) if self.mix else usual_scale(shape)
        return 1.0 if self.reduction == "loss" else -1.0


def compute_dtype(*tensors: Tensor) -> torch.dtype:
    """float64 if any tensor is; else float32, for half precision and integers too."""
    dtypes = [tensor.dtype for tensor in tensors]
    return torch.float64 if torch.float64 in dtypes else torch.float32


def exporting() -> bool:
    """Whether a graph is made to be kept, without the autograd that kernels have around them."""
    if torch.compiler.is_compiling():
        # Not is_exporting(), which torch.compile takes to be true of itself.
        return torch.compiler._is_exporting_flag
    return torch._C._get_tracing_state() is not None


def transform() -> str | None:
    """What is active that differentiates or batches in a way that kernels do not know, if any."""
    if exporting():
        return "an export"
    if torch._C._are_functorch_transforms_active():
        return "a torch.func transform"
    # Where dual tensors are made, whose tangents a kernel would drop.
    forward = torch.autograd.forward_ad._current_level >= 0
    return "forward-mode differentiation" if forward else None


def batched(tensor: Tensor) -> bool:
    """Whether it stands for a batch of gradients, as ``is_grads_batched=True`` makes them."""
    return not torch.compiler.is_compiling() and torch._C._functorch.is_legacy_batchedtensor(tensor)


def usual_scale(shape: Sequence[int]) -> float:
    """What a loss that falls with the mean of all planes' means scales each one's gradient with.

    The fast paths write gradients with this scale, which spares most backward passes the
    multiplication.
    """
    return -1 / (shape[0] * shape[1])


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
