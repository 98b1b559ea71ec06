"""Variational autoencoders with the same encoder and decoder and different losses.

Kingma and Welling, "Auto-encoding variational Bayes", arXiv:1312.6114.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from itertools import pairwise
from os import PathLike
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional

from perceptual_losses import MS_SSIM_WEIGHTS, L1MSSSIMLoss, MSSSIMLoss, SSIMLoss, VGGLoss
from perceptual_losses._literals import VGGPreset

OUTPUTS: dict[str, tuple[type[nn.Module], tuple[float, float]]] = {
    "sigmoid": (nn.Sigmoid, (0.0, 1.0)),
    "tanh": (nn.Tanh, (-1.0, 1.0)),
}
"""The activations that a decoder can end with, and the range of its images."""


class VAEOutput(NamedTuple):
    """The result of `BaseVAE` for a batch: images, and the posterior that they come from."""

    reconstruction: Tensor
    """``(N, C, H, W)``, values in the model's ``data_range``."""
    mu: Tensor
    """``(N, latent_dim)``, the posterior's mean."""
    logvar: Tensor
    """``(N, latent_dim)``, the logarithm of the posterior's variance."""


class VAELoss(NamedTuple):
    """The objective and the terms that it is the sum of; all are scalars."""

    total: Tensor
    """Each term times its weight, added up."""
    terms: dict[str, Tensor]
    """The terms by name, before the weights."""


class BaseVAE(nn.Module):
    """A convolutional VAE for square images, with any number of channels.

    In training mode it decodes a sample of the posterior, in evaluation mode the posterior's mean,
    so that reconstructions are then deterministic. A model is this class with a call of
    `minimise` for each distance between images that it trains on.

    Args:
        kl_weight: the cost of one nat of KL divergence, in units of the other terms.
        in_channels: channels of the images.
        image_size: the images' side in pixels, a multiple of ``2 ** len(hidden_dims)``.
        latent_dim: size of the code.
        hidden_dims: channels after each convolution; each halves the side of the image.
        output_activation: ``"sigmoid"`` for images with values in [0, 1], ``"tanh"`` for [-1, 1].
        num_classes: the number of classes, if the encoder and the decoder take each image's label;
            0 for a model that ignores labels.
    """

    def __init__(
        self,
        *,
        kl_weight: float,
        in_channels: int = 3,
        image_size: int = 64,
        latent_dim: int = 128,
        hidden_dims: Sequence[int] = (32, 64, 128, 256),
        output_activation: str = "sigmoid",
        num_classes: int = 0,
    ) -> None:
        super().__init__()
        side, remainder = divmod(image_size, 2 ** len(hidden_dims))
        if side < 1 or remainder:
            raise ValueError(
                f"image_size={image_size} is not a multiple of {2 ** len(hidden_dims)}: each of "
                f"the {len(hidden_dims)} hidden_dims halves the image; pass a multiple, or fewer"
            )
        if output_activation not in OUTPUTS:
            raise ValueError(
                f"output_activation={output_activation!r}: pass one of {', '.join(OUTPUTS)}"
            )
        activation, self.data_range = OUTPUTS[output_activation]
        stages = list(pairwise([in_channels, *hidden_dims]))
        features = (stages[-1][1], side, side)

        encoder: list[nn.Module] = []
        for number, (shallow, deep) in enumerate(stages):
            labelled = shallow if number else shallow + num_classes
            encoder += [nn.Conv2d(labelled, deep, 4, stride=2, padding=1), nn.SiLU()]
        self.encoder = nn.Sequential(
            *encoder, nn.Flatten(), nn.Linear(math.prod(features), 2 * latent_dim)
        )

        decoder: list[nn.Module] = []
        for shallow, deep in reversed(stages):
            decoder += [nn.SiLU(), nn.ConvTranspose2d(deep, shallow, 4, stride=2, padding=1)]
        self.decoder = nn.Sequential(
            nn.Linear(latent_dim + num_classes, math.prod(features)),
            nn.Unflatten(1, features),
            *decoder,
            activation(),
        )

        self.image_size, self.in_channels = image_size, in_channels
        self.latent_dim, self.num_classes = latent_dim, num_classes
        self.losses = nn.ModuleDict()
        self.weights: dict[str, float] = {}
        self.weigh("kl", kl_weight)

    def minimise(self, name: str, weight: float, loss: nn.Module) -> None:
        """Adds ``weight * loss(reconstruction, x)`` to the objective, or nothing for weight 0."""
        self.weigh(name, weight)
        if weight:
            self.losses[name] = loss

    def weigh(self, name: str, weight: float) -> None:
        """Sets the weight of a term of the objective."""
        if not 0 <= weight < math.inf:
            raise ValueError(f"the weight of {name} is {weight}: pass a number from 0 upwards")
        self.weights[name] = weight

    def encode(self, x: Tensor, labels: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """The posterior ``q(z|x)``: its mean and the logarithm of its variance."""
        # In the images' precision: autocast would take the variance's exponential in its own.
        mu, logvar = self.encoder(self._with_labels(x, labels)).to(x.dtype).chunk(2, dim=1)
        return mu, logvar

    def reparameterize(self, mu: Tensor, logvar: Tensor, noise: Tensor | None = None) -> Tensor:
        """A sample of the posterior, computed so that gradients reach ``mu`` and ``logvar``.

        Args:
            mu: the posterior's mean.
            logvar: the logarithm of its variance.
            noise: standard normal numbers of the same shape, drawn here by default.
        """
        if noise is None:
            noise = torch.randn_like(mu)
        return mu + torch.exp(0.5 * logvar) * noise

    def decode(self, z: Tensor, labels: Tensor | None = None) -> Tensor:
        """The images ``(N, C, H, W)`` of the codes ``(N, latent_dim)``."""
        images: Tensor = self.decoder(self._with_labels(z, labels)).to(z.dtype)
        return images

    def forward(
        self, x: Tensor, labels: Tensor | None = None, noise: Tensor | None = None
    ) -> VAEOutput:
        mu, logvar = self.encode(x, labels)
        z = self.reparameterize(mu, logvar, noise) if self.training else mu
        return VAEOutput(self.decode(z, labels), mu, logvar)

    def loss(self, output: VAEOutput, x: Tensor) -> VAELoss:
        """The objective for the ``output`` of ``x``: the negative evidence lower bound, scaled."""
        terms = {name: loss(output.reconstruction, x) for name, loss in self.losses.items()}
        if self.weights["kl"]:
            terms["kl"] = kl_divergence(output.mu, output.logvar)
        total = torch.stack([self.weights[name] * term for name, term in terms.items()]).sum()
        return VAELoss(total, terms)

    @torch.no_grad()
    def sample(
        self, n: int, labels: Tensor | None = None, *, generator: torch.Generator | None = None
    ) -> Tensor:
        """``n`` new images: codes drawn from the prior, decoded.

        Args:
            n: number of images.
            labels: ``(n,)``, for a model with classes.
            generator: a generator on the CPU that draws the codes; torch's own by default.
        """
        z = torch.randn(n, self.latent_dim, generator=generator)
        return self.decode(z.to(next(self.parameters())), labels)

    @torch.no_grad()
    def generate(self, x: Tensor, labels: Tensor | None = None) -> Tensor:
        """The reconstructions of ``x``, decoded from the posterior's mean in any mode."""
        return self.decode(self.encode(x, labels)[0], labels)

    def _with_labels(self, tensor: Tensor, labels: Tensor | None) -> Tensor:
        """Images or codes with a further channel or element for each class, 1 for the label."""
        if not self.num_classes:
            return tensor
        if labels is None:
            raise ValueError(
                f"the model has {self.num_classes} classes: pass labels, a tensor of {len(tensor)} "
                f"numbers from 0 to {self.num_classes - 1}"
            )
        hot = functional.one_hot(labels, self.num_classes).to(tensor)
        hot = hot.reshape(*hot.shape, *[1] * (tensor.dim() - 2))
        return torch.cat([tensor, hot.expand(-1, -1, *tensor.shape[2:])], dim=1)


def kl_divergence(mu: Tensor, logvar: Tensor) -> Tensor:
    """``KL(N(mu, exp(logvar)) || N(0, 1))`` in nats: summed over the code, averaged over the batch.

    Kingma and Welling, appendix B.

    Examples:
        >>> import torch
        >>> kl_divergence(torch.ones(4, 10), torch.zeros(4, 10)).item()
        5.0
    """
    return 0.5 * (mu.square() + logvar.expm1() - logvar).sum(dim=1).mean()


class RelativeMSE(nn.Module):
    """The mean squared error of images in units of their range.

    So a weight means the same for sigmoid and for tanh decoders, as a weight of SSIM does.
    """

    def __init__(self, data_range: tuple[float, float]) -> None:
        super().__init__()
        low, high = data_range
        self.length = high - low

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        return functional.mse_loss(x, y) / self.length**2


def levels_that_fit(image_size: int) -> int:
    """The number of MS-SSIM's levels, at most five: the last has room for a window of 11 pixels.

    Examples:
        >>> [levels_that_fit(size) for size in (32, 64, 128, 256)]
        [2, 3, 4, 5]
    """
    return min(5, max(1, ((image_size - 1) // 10).bit_length()))


# The weights of the KL divergence belong to 64x64 RGB images, as the losses are means. With a
# Gaussian decoder of variance v the evidence lower bound is MSE + 2 v / (3 * 64 * 64) * KL; v is
# the MSE that training reaches, 0.006. The other losses have no such likelihood. Their weights
# leave the code about as many nats, so that no model's code holds more of the image. That of VGG
# was found with random features; ImageNet's are larger, and leave the code more nats.
MSE_KL_WEIGHT = 1e-6
MS_SSIM_KL_WEIGHT = 5e-5
SSIM_KL_WEIGHT = 2e-6
VGG_KL_WEIGHT = 2e-6


class VanillaVAE(BaseVAE):
    """The VAE trained with the mean squared error. The options are those of `BaseVAE`.

    Examples:
        >>> import torch
        >>> model = VanillaVAE()
        >>> x = torch.rand(2, 3, 64, 64)
        >>> model.loss(model(x), x).total.backward()
    """

    def __init__(self, *, kl_weight: float = MSE_KL_WEIGHT, **options: Any) -> None:
        super().__init__(kl_weight=kl_weight, **options)
        self.minimise("mse", 1.0, RelativeMSE(self.data_range))


class MSSSIMVAE(BaseVAE):
    """The VAE trained with ``1 - MS-SSIM``, or with a mix of that and L1, which keeps more colour.

    Snell et al., "Learning to generate images with perceptual similarity metrics",
    arXiv:1511.06409.

    Args:
        level_weights: the weights of MS-SSIM's levels, finest first; by default those of Wang et
            al. If fewer levels fit into the images, their weights are scaled to the sum of all.
            Weights of 1 make the EL-VAE of that paper, which is slow to leave its start: a product
            of small means has a small gradient.
        ms_ssim_weight: the share of ``1 - MS-SSIM``, from 0 to 1; L1 has the rest. The share of
            `perceptual_losses.L1MSSSIMLoss` is 0.84.
        kl_weight: as for `BaseVAE`.
        options: as for `BaseVAE`.

    Examples:
        >>> import torch
        >>> model = MSSSIMVAE(image_size=32, in_channels=1)
        >>> x = torch.rand(2, 1, 32, 32)
        >>> model.loss(model(x), x).total.backward()
    """

    def __init__(
        self,
        *,
        level_weights: Sequence[float] = MS_SSIM_WEIGHTS,
        ms_ssim_weight: float = 1.0,
        kl_weight: float = MS_SSIM_KL_WEIGHT,
        **options: Any,
    ) -> None:
        super().__init__(kl_weight=kl_weight, **options)
        levels = min(levels_that_fit(self.image_size), len(level_weights))
        shared: dict[str, Any] = {
            "weights": level_weights,
            "levels": levels,
            "data_range": self.data_range,
        }
        name = "ms_ssim_loss" if ms_ssim_weight == 1 else "l1_ms_ssim_loss"
        loss = (
            MSSSIMLoss(**shared) if ms_ssim_weight == 1 else L1MSSSIMLoss(ms_ssim_weight, **shared)
        )
        if not sum(loss.weights[:levels]):
            side = f"{self.image_size}x{self.image_size}"
            raise ValueError(
                f"level_weights={loss.weights} leave no weight to the {levels} levels that fit "
                f"into {side} pixels: pass a positive one among the first {levels}"
            )
        self.minimise(name, 1.0, loss)


class DFCVAE(BaseVAE):
    """The VAE trained on features of VGG-19. The other options are those of `BaseVAE`.

    Hou, Shen, Sun and Qiu, "Deep feature consistent variational autoencoder", arXiv:1610.00291.

    Args:
        layers: ``"dfc-123"`` or ``"dfc-345"``, the paper's two models, or any other layers that
            `perceptual_losses.VGGLoss` takes.
        weights: the network's weights, as for `perceptual_losses.VGGLoss`. `load` fetches
            ``"imagenet"``, or else the first loss does; constructing the model fetches nothing.
        kl_weight: as for `BaseVAE`. The features have no unit, so it has to suit layers and
            weights.
        options: as for `BaseVAE`; 1 or 3 ``in_channels``.
    """

    def __init__(
        self,
        *,
        layers: VGGPreset | Mapping[str, float] = "dfc-123",
        weights: str | PathLike[str] | Mapping[str, Tensor] | nn.Module | None = "imagenet",
        kl_weight: float = VGG_KL_WEIGHT,
        **options: Any,
    ) -> None:
        super().__init__(kl_weight=kl_weight, **options)
        self.features = VGGLoss(layers, weights=weights, data_range=self.data_range)
        self.minimise("vgg_loss", 1.0, self.features)

    def load(self) -> None:
        """Fetches the network's weights now, so that a failure comes before training."""
        self.features.load()


class ConditionalVAE(BaseVAE):
    """The VAE that takes each image's class, trained with ``alpha * MSE + beta * (1 - SSIM)``.

    Sohn, Lee and Yan, "Learning structured output representation using deep conditional generative
    models", NIPS 2015. The other options are those of `BaseVAE`.

    Args:
        num_classes: the number of classes, at least 1.
        alpha: the weight of the mean squared error; a term with weight 0 is not computed.
        beta: the weight of ``1 - SSIM``.
        kl_weight: as for `BaseVAE`.
        options: as for `BaseVAE`.

    Examples:
        >>> import torch
        >>> model = ConditionalVAE(num_classes=10)
        >>> x, labels = torch.rand(2, 3, 64, 64), torch.tensor([3, 7])
        >>> loss = model.loss(model(x, labels), x)
        >>> list(loss.terms)
        ['mse', 'ssim_loss', 'kl']
    """

    def __init__(
        self,
        *,
        num_classes: int,
        alpha: float = 1.0,
        beta: float = 0.05,
        kl_weight: float = SSIM_KL_WEIGHT,
        **options: Any,
    ) -> None:
        super().__init__(num_classes=num_classes, kl_weight=kl_weight, **options)
        if num_classes < 1:
            raise ValueError(f"num_classes={num_classes}: pass 1 or more")
        self.minimise("mse", alpha, RelativeMSE(self.data_range))
        self.minimise("ssim_loss", beta, SSIMLoss(data_range=self.data_range))
        if not self.losses:
            raise ValueError("alpha=0 and beta=0 compare nothing: pass a positive one")


MODELS: dict[str, type[BaseVAE]] = {
    "vae": VanillaVAE,
    "msssim": MSSSIMVAE,
    "dfc": DFCVAE,
    "cvae": ConditionalVAE,
}
"""The models by their names in commands."""
