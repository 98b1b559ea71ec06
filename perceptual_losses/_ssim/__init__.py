"""SSIM and MS-SSIM of two images, by one of several backends.

`reference` is the specification, `backend` the interface of the fast ones, `plans` chooses among
them and remembers, `autograd` gives them their gradient. Backends never import each other.
"""

from .backend import Auxiliary
from .definition import (
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
from .plans import BACKENDS, Plans, call_key, choose_backend, evaluate, inverse_coverage
from .pyramid import halve, halve_any, halve_valid
from .reference import combine

__all__ = [
    "BACKENDS",
    "Auxiliary",
    "Definition",
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
    "replaced",
    "uniform",
]
