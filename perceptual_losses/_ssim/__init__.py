"""SSIM and MS-SSIM of two images, by one of several backends.

`reference` is the specification, `backend` the interface of the fast ones. `dispatch` chooses among
them, `plans` keeps the calls that are planned, and `autograd` gives the fast ones their gradient.
Backends never import each other.
"""

from .backend import NO_AUXILIARY, Auxiliary
from .dispatch import BACKENDS, choose_backend, evaluate
from .plans import Key, Plans, call_key, readable_images
from .pyramid import halve, halve_any, halve_valid
from .reference import combine, inverse_coverage
from .request import (
    Definition,
    Request,
    centres,
    compute_dtype,
    for_axes,
    gaussian,
    num_levels,
    replaced,
    uniform,
)

__all__ = [
    "BACKENDS",
    "NO_AUXILIARY",
    "Auxiliary",
    "Definition",
    "Key",
    "Plans",
    "Request",
    "call_key",
    "centres",
    "choose_backend",
    "combine",
    "compute_dtype",
    "evaluate",
    "for_axes",
    "gaussian",
    "halve",
    "halve_any",
    "halve_valid",
    "inverse_coverage",
    "num_levels",
    "readable_images",
    "replaced",
    "uniform",
]
