"""The interface of lpips 0.1.4.

Values equal those of lpips for the same weights, up to rounding. The differences:

* The network and the linear weights are frozen and hidden: they are no parameters, no buffers and
  not in the state dict, and there are no submodules ``net`` and ``lins``. A checkpoint that has
  lpips's entries loads: they are dropped, with a warning.
* Where all features of a pixel are zero, the gradient is zero, not NaN.
* The trunk's weights are fetched by the first call. ``weights`` takes them from elsewhere.
* Images must have equal shapes, and the sides that the network needs; nothing is broadcast.
* Half precision is compared in float32, and the result is float32.
* ``verbose`` prints nothing.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any, Literal, overload

import torch
from torch import Tensor, nn

from .._features.weights import Weights
from .._literals import LPIPSBackbone, LPIPSNet
from .._runtime.warnings import warn
from ..features import LPIPSLoss

__all__ = ["LPIPS"]

_BACKBONES: dict[LPIPSNet, LPIPSBackbone] = {
    "alex": "alexnet",
    "vgg": "vgg16",
    "vgg16": "vgg16",
    "squeeze": "squeezenet1_1",
}
_ENTRIES = re.compile(r"net\.|scaling_layer\.|lins?\.?\d+\.model\.")


class LPIPS(nn.Module):
    """LPIPS as the ``lpips`` package computes it: 0 for identical images; lower is more similar.

    Args:
        pretrained: must be true, unless ``lpips`` is false: random linear weights have to be
            trained, and this module is frozen.
        net: ``"alex"``, ``"vgg"`` or ``"squeeze"``.
        version: must be ``"0.1"``: the release 0.0 did not normalise the images.
        lpips: whether the features are weighted by the linear weights, or all by 1.
        spatial: whether the result is a map of distances.
        pnet_rand: whether the trunk has random weights.
        pnet_tune: must be false: the trunk is frozen.
        use_dropout: is ignored: dropout acts only where the linear weights are trained.
        model_path: a file of linear weights in place of those that come with the package.
        eval_mode: must be true: a training mode is for training LPIPS itself.
        verbose: is ignored.
        weights: the trunk's weights, as for `LPIPSLoss`: ``"imagenet"``, a path, a state dict or a
            module. Linear weights in the same place are taken too.

    Shapes:
        images: ``(N, 3, H, W)`` in [-1, 1], or in [0, 1] with ``normalize=True``; result:
        ``(N, 1, 1, 1)``, or ``(N, 1, H, W)`` with ``spatial=True``; with ``retPerLayer=True`` a
        pair of it and the list of its terms for the layers.

    Raises:
        TypeError: an image holds integers.
        ValueError: an option is not supported; the message says why. Errors of images and weights
            are those of `LPIPSLoss`.

    Examples:
        >>> import torch, warnings
        >>> warnings.simplefilter("ignore")
        >>> loss = LPIPS(net="alex", pnet_rand=True)
        >>> x = torch.rand(2, 3, 64, 64)
        >>> loss(x, x, normalize=True).flatten().tolist()
        [0.0, 0.0]
    """

    def __init__(
        self,
        pretrained: bool = True,
        net: LPIPSNet = "alex",
        version: Literal["0.1"] = "0.1",
        lpips: bool = True,
        spatial: bool = False,
        pnet_rand: bool = False,
        pnet_tune: bool = False,
        use_dropout: bool = True,
        model_path: str | None = None,
        eval_mode: bool = True,
        verbose: bool = True,
        *,
        weights: Weights = "imagenet",
    ) -> None:
        super().__init__()
        if net not in _BACKBONES:
            raise ValueError(f"net={net!r} is unknown: pass one of {tuple(_BACKBONES)}")
        for refused, reason in (
            (
                version != "0.1",
                f"version={version!r}: the release 0.0 did not normalise the images, and there is "
                "no other but '0.1'; leave version out",
            ),
            (
                lpips and not pretrained,
                "pretrained=False: random linear weights have to be trained, and the loss is "
                "frozen; leave it out, or pass lpips=False for no linear weights",
            ),
            (pnet_tune, "pnet_tune=True: the trunk is frozen; train LPIPS itself with lpips"),
            (
                not eval_mode,
                "eval_mode=False: the loss has no training mode; train LPIPS itself with lpips",
            ),
            (
                pnet_rand and weights != "imagenet",
                "pnet_rand=True asks for random weights of the trunk: leave it out, or weights",
            ),
        ):
            if refused:
                raise ValueError(reason)
        self.spatial = spatial
        linear = model_path or "lpips" if lpips else None
        self.loss = LPIPSLoss(
            _BACKBONES[net],
            weights=None if pnet_rand else weights,
            linear=linear,
            data_range=(-1.0, 1.0),
            reduction="none",
        )

    if TYPE_CHECKING:
        # nn.Module types its own `__call__` as taking and returning anything.
        @overload
        def __call__(
            self,
            in0: Tensor,
            in1: Tensor,
            retPerLayer: Literal[False] = False,
            normalize: bool = False,
        ) -> Tensor: ...
        @overload
        def __call__(
            self, in0: Tensor, in1: Tensor, retPerLayer: Literal[True], normalize: bool = False
        ) -> tuple[Tensor, list[Tensor]]: ...
        def __call__(self, *images: Any, **options: Any) -> Any: ...

    def forward(
        self, in0: Tensor, in1: Tensor, retPerLayer: bool = False, normalize: bool = False
    ) -> Tensor | tuple[Tensor, list[Tensor]]:
        for name, image in (("in0", in0), ("in1", in1)):
            if isinstance(image, Tensor) and not image.is_floating_point():
                raise TypeError(
                    f"{name} has dtype {image.dtype}: pass floats in [-1, 1], or in [0, 1] with "
                    "normalize=True; LPIPSLoss(data_range=255) takes bytes"
                )
        if normalize:
            in0, in1 = (2 * image - 1 for image in (in0, in1))
        if self.spatial:
            terms = list(self.loss._layer_maps(in0, in1).values())
        else:
            distances = self.loss.layer_distances(in0, in1).values()
            terms = [distance.reshape(-1, 1, 1, 1) for distance in distances]
        value = torch.stack(terms).sum(0)
        return (value, terms) if retPerLayer else value

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *others: Any) -> None:
        own = [key for key in state_dict if key.startswith(prefix)]
        old = [key for key in own if _ENTRIES.match(key, len(prefix))]
        for key in old:
            del state_dict[key]
        if old:
            warn(
                f"the checkpoint holds {len(old)} entries of lpips, such as {old[0]!r}: they are "
                "dropped, for the loss has its weights already"
            )
        super()._load_from_state_dict(state_dict, prefix, *others)
