"""Trains a VAE of diffusers on LPIPS for some steps: by lpips, and by this package.

Both have the same random trunk, start from the same weights and see the same images, so that their
values agree as long as roundings don't drive the weights apart.

    python -m benchmarks.speed.tokenizer --steps 5

It needs diffusers, which is not among the locked packages.
"""

from __future__ import annotations

import argparse
import copy
import time
import warnings
from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional

from perceptual_losses.compat.lpips import LPIPS


def vae() -> nn.Module:
    """A small autoencoder of latent diffusion with random weights: 8 pixels become a latent one."""
    from diffusers import AutoencoderKL

    torch.manual_seed(0)
    blocks = 4
    return AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * blocks,
        up_block_types=("UpDecoderBlock2D",) * blocks,
        block_out_channels=(32, 32, 64, 64),
        norm_num_groups=8,
        layers_per_block=1,
    )


def losses(net: str) -> dict[str, nn.Module]:
    """The packages' losses on one random trunk."""
    import lpips

    torch.manual_seed(1)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # They are torchvision's, about how lpips calls it.
        theirs = lpips.LPIPS(net=net, pnet_rand=True, verbose=False)
    return {"lpips": theirs, "perceptual-losses": LPIPS(net=net, weights=theirs.state_dict())}


def train(
    model: nn.Module, loss: Callable[[Tensor, Tensor], Tensor], batches: Tensor
) -> list[tuple[float, float, float]]:
    """The value of LPIPS, its seconds with the gradient, and the seconds of each whole step."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4)
    found = []
    for images in batches:
        start = time.perf_counter()
        reconstruction = model(images).sample
        begin = time.perf_counter()
        leaf = reconstruction.detach().requires_grad_()
        value = loss(leaf, images).mean()
        (gradient,) = torch.autograd.grad(value, leaf)
        end = time.perf_counter()
        optimizer.zero_grad()
        l1 = functional.l1_loss(reconstruction, images)
        torch.autograd.backward([l1, reconstruction], [None, gradient])
        optimizer.step()
        found.append((value.item(), end - begin, time.perf_counter() - start))
    return found


def main() -> None:
    """Prints a line for each step, with both packages side by side."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--net", default="vgg", choices=("alex", "vgg", "squeeze"))
    parser.add_argument("--steps", type=int, default=5)
    parser.add_argument("--size", type=int, default=128, help="side of the images")
    parser.add_argument("--batch", type=int, default=2)
    options = parser.parse_args()
    model = vae()
    shape = (options.steps, options.batch, 3, options.size // 8, options.size // 8)
    coarse = torch.rand(shape, generator=torch.Generator().manual_seed(2))
    batches = 2 * coarse.repeat_interleave(8, 3).repeat_interleave(8, 4) - 1
    found = {}
    for name, loss in losses(options.net).items():
        loss(*batches[:1].expand(2, -1, -1, -1, -1))  # Compiles and fills what is kept.
        found[name] = train(copy.deepcopy(model), loss, batches)
    print("step" + "".join(f"{name:>24}: value, loss ms, step ms" for name in found))
    for index, rows in enumerate(zip(*found.values(), strict=True)):
        cells = (f"{value:>31.7f} {1e3 * own:8.0f} {1e3 * step:8.0f}" for value, own, step in rows)
        print(f"{index:4}" + "".join(cells))


if __name__ == "__main__":
    main()
