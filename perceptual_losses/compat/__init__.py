"""Other packages' interfaces and numbers, computed by this package.

Only the import changes::

    from perceptual_losses.compat.pytorch_msssim import MS_SSIM
    from perceptual_losses.compat.fused_ssim import fused_ssim
    from perceptual_losses.compat.lpips import LPIPS
"""
