"""The backends that properties are asserted on, for tests of every folder.

This is a module and not a part of conftest.py, because several folders have one of that name.
"""

import os

import pytest
import torch

from perceptual_losses._ssim.gpu import backend as gpu

# Triton's interpreter has to be switched on before Triton is imported. So its tests run in a
# process of their own, which `make test` starts.
INTERPRETER = os.environ.get("TRITON_INTERPRET") == "1"
INTERPRETED = INTERPRETER and gpu.unavailable(torch.device("cpu")) is None

# The fast paths after the reference.
BACKENDS = ["reference", "numba"]
if INTERPRETED:
    BACKENDS.append(pytest.param("triton", marks=pytest.mark.interpreted))
