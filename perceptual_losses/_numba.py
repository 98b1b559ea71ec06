"""How the Numba kernels are compiled."""

from numba import njit

# Fused multiply-adds, and sums in any order; NaN and infinity keep their meaning.
OPTIONS = {
    "nogil": True,
    "fastmath": {"contract", "reassoc", "nsz"},
    "error_model": "numpy",
    # Nothing is allocated inside, and counting references to every slice costs as much as a few
    # hundred pixels of a row.
    "_nrt": False,
}


def entry(function):
    """A kernel that Python calls, kept on disk."""
    compiled = njit(**OPTIONS)(function)
    try:
        compiled.enable_caching()
    except (OSError, RuntimeError):
        # No folder can be written to: each process compiles for itself.
        return njit(**OPTIONS)(function)
    return compiled
