"""The Gaussian window."""

import math
import sys

# Here, as torch 2.7 does not trace the attributes of sys.float_info.
SMALLEST = sys.float_info.min


def gaussian(size: int, sigma: float) -> tuple[float, ...]:
    """Taps of the one-dimensional window ``exp(-i^2 / (2 sigma^2))``, divided by their sum.

    Python floats: every path hands them to its kernels as arguments, so there is no window
    tensor to copy to a device, to keep in a checkpoint or to cache.
    """
    radius = size // 2
    # Below it the centre is left alone, as it is far above.
    spread = max(2 * sigma * sigma, SMALLEST)
    taps = [math.exp(-i * i / spread) for i in range(-radius, radius + 1)]
    total = sum(taps)
    return tuple(tap / total for tap in taps)
