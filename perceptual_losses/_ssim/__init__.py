"""SSIM and MS-SSIM of two images, by one of several backends.

`reference` is the specification, `backend` the interface of the fast ones, `plans` chooses among
them and remembers, `autograd` gives them their gradient. Backends never import each other.
"""

from torch import Tensor

from . import reference
from .definition import Definition, Request, compute_dtype, gaussian, replaced
from .plans import BACKENDS, Plans, call_key, choose_backend, evaluate
from .pyramid import halve

__all__ = [
    "BACKENDS",
    "Definition",
    "Plans",
    "Request",
    "call_key",
    "choose_backend",
    "compute_dtype",
    "evaluate",
    "gaussian",
    "halve",
    "replaced",
    "similarity_map",
]


def similarity_map(x: Tensor, y: Tensor, definition: Definition, backend: str) -> Tensor:
    """The SSIM of each window, ``(N, C, H', W')``, in `compute_dtype`.

    It is the reference's on every backend: a fused one saves time by not writing the map.
    """
    choose_backend(x, y, definition, backend)
    return reference.similarity_map(x, y, definition)
