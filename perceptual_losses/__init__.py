"""Differentiable perceptual losses for PyTorch."""

from .compilation import precompile
from .features import FeatureLoss, LPIPSLoss, StyleLoss, VGGLoss, vgg_features
from .similarity import MS_SSIM_WEIGHTS, ms_ssim, ssim, ssim_map
from .structural import L1MSSSIMLoss, L1SSIMLoss, MSSSIMLoss, SSIMLoss

__version__ = "0.1.0"

__all__ = [
    "MS_SSIM_WEIGHTS",
    "FeatureLoss",
    "L1MSSSIMLoss",
    "L1SSIMLoss",
    "LPIPSLoss",
    "MSSSIMLoss",
    "SSIMLoss",
    "StyleLoss",
    "VGGLoss",
    "ms_ssim",
    "precompile",
    "ssim",
    "ssim_map",
    "vgg_features",
]
