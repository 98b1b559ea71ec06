"""Other packages' names, defaults and numbers over this package's paths.

Change the import and nothing else::

    from perceptual_losses.compat.pytorch_msssim import MS_SSIM
    from perceptual_losses.compat.fused_ssim import fused_ssim
"""
