"""Variational autoencoders that share an encoder and a decoder and differ in what they call close.

Kingma and Welling, "Auto-encoding variational Bayes", arXiv:1312.6114.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from perceptual_losses import MSSSIMLoss


class VAEOutput(NamedTuple):
    """What `BaseVAE` returns for a batch: the images and the posterior they were decoded from."""

    reconstruction: Tensor
    """``(N, C, H, W)``, values in [0, 1]."""
    mu: Tensor
    """``(N, latent_dim)``, the posterior's mean."""
    logvar: Tensor
    """``(N, latent_dim)``, the logarithm of the posterior's variance."""


class VAELoss(NamedTuple):
    """The objective and its terms, scalars: ``total = reconstruction + kl_weight * kl``."""

    total: Tensor
    reconstruction: Tensor
    kl: Tensor


class BaseVAE(nn.Module):
    """A convolutional VAE for square images with values in [0, 1].

    In training mode it decodes a sample of the posterior, in evaluation mode the posterior's mean,
    so that reconstructions are then deterministic.

    Args:
        reconstruction_loss: a module that takes ``(reconstruction, x)`` to a scalar.
        kl_weight: what one nat of KL divergence costs, in units of ``reconstruction_loss``.
        in_channels: channels of the images.
        image_size: their side in pixels, a multiple of ``2 ** len(hidden_dims)``.
        latent_dim: size of the code.
        hidden_dims: channels after each convolution; each halves the side of the image.
    """

    def __init__(
        self,
        reconstruction_loss: nn.Module,
        kl_weight: float,
        *,
        in_channels: int = 3,
        image_size: int = 64,
        latent_dim: int = 128,
        hidden_dims: Sequence[int] = (16, 32, 64, 128),
    ) -> None:
        super().__init__()
        side, remainder = divmod(image_size, 2 ** len(hidden_dims))
        if side < 1 or remainder:
            raise ValueError(
                f"image_size={image_size} is not a multiple of {2 ** len(hidden_dims)}: each of "
                f"the {len(hidden_dims)} hidden_dims halves the image; pass a multiple, or fewer"
            )
        stages = list(pairwise([in_channels, *hidden_dims]))
        features = (stages[-1][1], side, side)

        encoder: list[nn.Module] = []
        for shallow, deep in stages:
            encoder += [nn.Conv2d(shallow, deep, 4, stride=2, padding=1), nn.SiLU()]
        self.encoder = nn.Sequential(
            *encoder, nn.Flatten(), nn.Linear(math.prod(features), 2 * latent_dim)
        )

        decoder: list[nn.Module] = []
        for shallow, deep in reversed(stages):
            decoder += [nn.SiLU(), nn.ConvTranspose2d(deep, shallow, 4, stride=2, padding=1)]
        self.decoder = nn.Sequential(
            nn.Linear(latent_dim, math.prod(features)),
            nn.Unflatten(1, features),
            *decoder,
            nn.Sigmoid(),
        )

        self.reconstruction_loss = reconstruction_loss
        self.kl_weight = kl_weight

    def encode(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """The posterior ``q(z|x)``: its mean and the logarithm of its variance."""
        mu, logvar = self.encoder(x).chunk(2, dim=1)
        return mu, logvar

    def reparameterize(self, mu: Tensor, logvar: Tensor) -> Tensor:
        """A sample of the posterior, written so that gradients reach ``mu`` and ``logvar``."""
        return mu + torch.exp(0.5 * logvar) * torch.randn_like(mu)

    def decode(self, z: Tensor) -> Tensor:
        """The images ``(N, C, H, W)`` of the codes ``(N, latent_dim)``."""
        images: Tensor = self.decoder(z)
        return images

    def forward(self, x: Tensor) -> VAEOutput:
        mu, logvar = self.encode(x)
        z = self.reparameterize(mu, logvar) if self.training else mu
        return VAEOutput(self.decode(z), mu, logvar)

    def loss(self, output: VAEOutput, x: Tensor) -> VAELoss:
        """The objective for the ``output`` of ``x``: the negative evidence lower bound, scaled."""
        reconstruction = self.reconstruction_loss(output.reconstruction, x)
        kl = kl_divergence(output.mu, output.logvar)
        return VAELoss(reconstruction + self.kl_weight * kl, reconstruction, kl)


def kl_divergence(mu: Tensor, logvar: Tensor) -> Tensor:
    """``KL(N(mu, exp(logvar)) || N(0, 1))`` in nats: summed over the code, averaged over the batch.

    Kingma and Welling, appendix B.

    Example:
        >>> import torch
        >>> kl_divergence(torch.ones(4, 10), torch.zeros(4, 10)).item()
        5.0
    """
    return 0.5 * (mu.square() + logvar.expm1() - logvar).sum(dim=1).mean()


# Both weights belong to 64x64 RGB images, as the losses are means. With a Gaussian decoder of
# variance v the evidence lower bound is MSE + 2 v / (3 * 64 * 64) * KL; v is the MSE that training
# reaches, 0.006. MS-SSIM has no such likelihood: its weight is the one that leaves its code as
# many nats as the MSE leaves, so that neither model sees more of the image than the other.
MSE_KL_WEIGHT = 1e-6
MS_SSIM_KL_WEIGHT = 5e-5


class VanillaVAE(BaseVAE):
    """The VAE trained with the mean squared error. The options are those of `BaseVAE`.

    Example:
        >>> import torch
        >>> model = VanillaVAE()
        >>> x = torch.rand(2, 3, 64, 64)
        >>> model.loss(model(x), x).total.backward()
    """

    def __init__(self, *, kl_weight: float = MSE_KL_WEIGHT, **options: Any) -> None:
        super().__init__(nn.MSELoss(), kl_weight, **options)


class MSSSIMVAE(BaseVAE):
    """The VAE trained with ``1 - MS-SSIM``. The other options are those of `BaseVAE`.

    Snell et al., "Learning to generate images with perceptual similarity metrics",
    arXiv:1511.06409.

    Args:
        levels: scales of MS-SSIM. Its window of 11 pixels fits 3 into 64 pixels, 2 into 32.
        kl_weight: as for `BaseVAE`.
        options: as for `BaseVAE`.

    Example:
        >>> import torch
        >>> model = MSSSIMVAE(levels=2, image_size=32, in_channels=1)
        >>> x = torch.rand(2, 1, 32, 32)
        >>> model.loss(model(x), x).total.backward()
    """

    def __init__(
        self, *, levels: int = 3, kl_weight: float = MS_SSIM_KL_WEIGHT, **options: Any
    ) -> None:
        super().__init__(MSSSIMLoss(levels=levels), kl_weight, **options)
