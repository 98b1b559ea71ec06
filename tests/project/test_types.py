"""The types that users' checkers see."""

import re
import subprocess
import sys
from typing import get_args

import pytest

from perceptual_losses import _literals
from perceptual_losses._features.networks import BACKBONES
from perceptual_losses._features.presets import LPIPS_LAYERS, STYLE_PRESETS, VGG_PRESETS
from perceptual_losses._ssim import BACKENDS
from perceptual_losses.compat import fused_ssim, lpips

# Torch's own methods are not all typed. The skipped modules take mypy most of the time, and none of
# the public types comes from them.
CONFIGURATION = """
[mypy]
strict = True
follow_imports = silent
untyped_calls_exclude = torch

[mypy-numba.*,numpy.*,sympy.*,torch._dynamo.*,torch._inductor.*,torch.distributed.*,torch.fx.*]
follow_imports = skip
follow_imports_for_stubs = True
"""

RIGHT = """
import torch
from torch import Tensor

from perceptual_losses import (
    FeatureLoss, L1MSSSIMLoss, L1SSIMLoss, LPIPSLoss, MSSSIMLoss, SSIMLoss, StyleLoss, VGGLoss,
    ms_ssim, ssim, ssim_map, vgg_features,
)
from perceptual_losses.compat import fused_ssim, lpips, pytorch_msssim

x, y = torch.rand(2, 3, 32, 32), torch.rand(2, 3, 32, 32)
mask, ranges = torch.ones(32, 32), torch.ones(2)
network = torch.nn.Conv2d(3, 8, 3)

def training_step(loss: L1SSIMLoss) -> Tensor:
    total = loss(x, y, mask=mask, valid=mask > 0, data_range=ranges)
    total.backward()
    value, l1, structural = loss.terms(x, y)
    value, gradient = loss.value_and_grad(x, y)
    return total + l1 + structural + gradient.mean()

losses: list[Tensor] = [
    SSIMLoss(window="uniform", window_size=(5, 7), padding="zeros", backend="reference")(x, y),
    MSSSIMLoss(weights=[0.5, 0.5], levels="auto", normalize=None, reduction="none")(x, y),
    L1SSIMLoss(0.2, data_range=(-1, 1))(x, y),
    L1MSSSIMLoss(weight=0.5, levels=2, normalize="simple")(x, y, mask=mask),
    FeatureLoss(network, {"": 1.0}, distance="l2")(x, y),
    VGGLoss("dfc-345")(x, VGGLoss("dfc-345").features(y)),
    VGGLoss({"relu2_2": 1}, backbone="vgg16_bn", dtype=torch.bfloat16)(x, y),
    StyleLoss("gatys", weights=network.state_dict())(x, y),
    LPIPSLoss("squeezenet1_1", linear=None)(x, y),
    LPIPSLoss().map(x, y),
    lpips.LPIPS(net="alex")(x, y, normalize=True),
    lpips.LPIPS()(x, y, retPerLayer=True)[1][0],
    pytorch_msssim.SSIM(data_range=1, channel=3)(x, y),
    pytorch_msssim.MS_SSIM(data_range=1)(x, y),
    fused_ssim.fused_ssim(x, y, padding="valid"),
    ssim(x, y, data_range=ranges, sigma=(1.0, 2.0)),
    ssim_map(x, y, padding="symmetric"),
    ms_ssim(x, y, normalize="relu"),
    vgg_features(["relu1_2"], backbone="vgg19")(x)["relu1_2"],
]
loss = SSIMLoss()
loss.padding = "symmetric"
"""

WRONG = """
import torch

from perceptual_losses import L1SSIMLoss, LPIPSLoss, MSSSIMLoss, SSIMLoss, VGGLoss, ssim
from perceptual_losses.compat import fused_ssim, lpips

x, y = torch.rand(2, 3, 32, 32), torch.rand(2, 3, 32, 32)
SSIMLoss(padding="valid")(x, y)
SSIMLoss(padding="zeroes")(x, y)  # refused
SSIMLoss(reduction="avg")(x, y)  # refused
SSIMLoss(win_size=7)(x, y)  # refused
SSIMLoss()(x, y, masks=x)  # refused
SSIMLoss()(x)  # refused
SSIMLoss()(x, y).shap  # refused
L1SSIMLoss()(x, y, data_range=255)  # refused
L1SSIMLoss(0.2, window="box")(x, y)  # refused
MSSSIMLoss(normalize="relu6")(x, y)  # refused
MSSSIMLoss(levels="all")(x, y)  # refused
MSSSIMLoss().backend = "cuda"  # refused
ssim(x, y, backend="cuda")  # refused
ssim(x, y, 255)  # refused
VGGLoss("dfc")(x, y)  # refused
VGGLoss(distance="mse")(x, y)  # refused
VGGLoss(backbone="vgg11")(x, y)  # refused
LPIPSLoss("alex")(x, y)  # refused
LPIPSLoss()(x, y, normalize=True)  # refused
lpips.LPIPS(net="alexnet")(x, y)  # refused
fused_ssim.fused_ssim(x, y, padding="zeros")  # refused
"""


@pytest.mark.parametrize(
    ("words", "known"),
    [
        (_literals.Backend, BACKENDS),
        (_literals.Backbone, BACKBONES),
        (_literals.LPIPSBackbone, LPIPS_LAYERS),
        (_literals.VGGPreset, VGG_PRESETS),
        (_literals.StylePreset, STYLE_PRESETS),
        (_literals.FusedSSIMPadding, fused_ssim._PADDINGS),
        (_literals.LPIPSNet, lpips._BACKBONES),
    ],
)
def test_types_know_the_words_that_are_accepted(words, known):
    assert set(get_args(words)) == set(known)


def test_a_checker_finds_what_is_wrong_and_nothing_else(tmp_path):
    for name, text in (("mypy.ini", CONFIGURATION), ("right.py", RIGHT), ("wrong.py", WRONG)):
        (tmp_path / name).write_text(text)
    expected = [n for n, line in enumerate(WRONG.splitlines(), 1) if line.endswith("# refused")]
    options = [f"--config-file={tmp_path}/mypy.ini", f"--cache-dir={tmp_path}/cache"]
    checked = subprocess.run(
        [sys.executable, "-m", "mypy", *options, tmp_path / "right.py", tmp_path / "wrong.py"],
        capture_output=True,
        text=True,
    )
    found = re.findall(r"(right|wrong)\.py:(\d+): error: ", checked.stdout)
    assert {name for name, _ in found} == {"wrong"}, checked.stdout
    assert sorted({int(line) for _, line in found}) == expected, checked.stdout
