"""Batches that are distributed over processes, and replicas of a loss."""

import concurrent.futures
import os
import time
import warnings

import pytest
import torch
from torch import distributed, multiprocessing, nn

from perceptual_losses import (
    FeatureLoss,
    L1MSSSIMLoss,
    L1SSIMLoss,
    LPIPSLoss,
    MSSSIMLoss,
    SSIMLoss,
    StyleLoss,
    VGGLoss,
    ms_ssim,
    ssim,
    ssim_map,
)

pytestmark = pytest.mark.large

WINDOW = {"window_size": 3}
LEVELS = {**WINDOW, "weights": (0.4, 0.6)}
# Each process would compile kernels of its own for the losses that have no part in the others.
REFERENCE = {**WINDOW, "backend": "reference"}
STRUCTURAL = {
    "ssim": SSIMLoss(**WINDOW),
    "ms_ssim": MSSSIMLoss(**LEVELS),
    "l1_ssim": L1SSIMLoss(**WINDOW),
    "l1_ms_ssim": L1MSSSIMLoss(**LEVELS),
    "per_image": L1MSSSIMLoss(**LEVELS, reduction="none"),
    "reference": L1SSIMLoss(**REFERENCE),
    "ssim_function": lambda x, y: ssim(x, y, **WINDOW),
    "ms_ssim_function": lambda x, y: ms_ssim(x, y, **LEVELS, reduction="none"),
    "map": lambda x, y: ssim_map(x, y, **REFERENCE),
    "terms": lambda x, y: L1SSIMLoss(**REFERENCE).terms(x, y).structural,
    "terms_per_image": lambda x, y: L1SSIMLoss(**REFERENCE, reduction="none").terms(x, y).l1,
}


def losses_on_features():
    torch.manual_seed(0)
    network = nn.Sequential(nn.Conv2d(3, 2, 3))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # They are about random weights.
        return {
            "feature": FeatureLoss(network, {"0": 1.0}),
            "feature_per_image": FeatureLoss(network, {"0": 1.0}, reduction="none"),
            "vgg": VGGLoss({"relu1_1": 1.0}, weights=None),
            "style": StyleLoss({"relu1_1": 1.0}, weights=None),
            "lpips": LPIPSLoss("alexnet", weights=None),
        }


def one_of_two(rank, folder):
    """Compares each loss of distributed batches with that of whole ones, and stores both."""
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.tensor import DTensor, Replicate, Shard, distribute_tensor

    torch.set_num_threads(1)
    distributed.init_process_group("gloo", f"file://{folder}/store", rank=rank, world_size=2)
    mesh = init_device_mesh("cpu", (2,))
    found = {}

    def shards(whole, placement):
        return distribute_tensor(whole, mesh, [placement])

    def compare(name, loss, images, placement, extras=None):
        extras = extras or {}
        x, y = (image.clone() for image in images)
        expected = loss(x.requires_grad_(), y, **extras)
        (gradient,) = torch.autograd.grad(expected.square().sum(), x)
        x, y = (shards(image, placement) for image in images)
        extras = {name: shards(extra, placement) for name, extra in extras.items()}
        value = loss(x.requires_grad_(), y, **extras)
        value.square().sum().backward()
        found[name] = [value.full_tensor().detach(), expected.detach()]
        found[f"{name}_gradient"] = [x.grad.full_tensor(), gradient]
        if value.dim() == 0:
            found[f"{name}_item"] = [torch.tensor(value.item()), expected.detach()]
        else:
            assert value.placements == (placement,)

    def images(count, side=24):
        generator = torch.Generator().manual_seed(count)
        return torch.rand(2, count, 3, side, side + 2, generator=generator).unbind()

    # The second of two processes has one image of three, and none of one.
    for count, placement in ((3, Shard(0)), (1, Shard(0)), (2, Replicate())):
        for name, loss in STRUCTURAL.items():
            compare(f"{name}_{count}", loss, images(count), placement)
        mask = torch.rand(count, 1, 24, 26, generator=torch.Generator().manual_seed(0))
        ranges = torch.arange(1.0, count + 1)
        extras = {"mask": mask, "valid": mask > 0.2, "data_range": ranges}
        compare(f"extras_{count}", L1SSIMLoss(**REFERENCE), images(count), placement, extras)
    for name, loss in losses_on_features().items():
        compare(name, loss, images(3, 40), Shard(0))
    x, y = images(3)
    loss, gradient = STRUCTURAL["l1_ms_ssim"].value_and_grad(x, y)
    value, shard = STRUCTURAL["l1_ms_ssim"].value_and_grad(*(shards(a, Shard(0)) for a in (x, y)))
    assert isinstance(shard, DTensor)
    found["value_and_grad"] = [value.full_tensor(), loss]
    found["value_and_grad_gradient"] = [shard.full_tensor(), gradient]
    with torch.inference_mode():
        value = STRUCTURAL["reference"](*(shards(a, Shard(0)) for a in (x, y)))
        # Torch refuses `item` of a DTensor here.
        found["inference"] = [torch.tensor(value.to_local().item()), STRUCTURAL["reference"](x, y)]

    refused = {}
    feature, x_shards = losses_on_features()["feature"], shards(x, Shard(0))
    for name, call in {
        "rows": lambda: ssim(shards(x, Shard(2)), shards(y, Shard(2))),
        "plain": lambda: ssim(x_shards, y),
        "plain_first": lambda: feature(x, shards(y, Shard(0))),
        "unlike": lambda: feature(x_shards, shards(y, Replicate())),
        "mask": lambda: ssim(x_shards, x_shards, mask=torch.ones(24, 26)),
        "mask_of_one": lambda: ssim(x_shards, x_shards, mask=shards(x[:1, :1], Shard(0))),
        "empty": lambda: ssim(x_shards[:0], x_shards[:0]),
        "features": lambda: feature.features(x_shards),
        "shapes": lambda: ssim(x_shards, shards(y[..., :20], Shard(0))),
    }.items():
        try:
            call()
        except (TypeError, ValueError) as error:
            refused[name] = str(error)
    torch.save((found, refused), folder / str(rank))
    distributed.destroy_process_group()
    # Gloo's threads may still let go of tensors, which aborts an interpreter that is ending.
    os._exit(0)


REFUSED = {
    "rows": "x has the placements (Shard(dim=2),), and only a batch can be distributed: pass "
    "x.redistribute(placements=[Shard(0)])",
    "plain": "x is a DTensor and y is not: pass distribute_tensor(y, x.device_mesh, x.placements)",
    "plain_first": "y is a DTensor and x is not: pass distribute_tensor(x, y.device_mesh",
    "unlike": "and y (Replicate(),): pass y.redistribute(x.device_mesh, x.placements)",
    "mask": "x is a DTensor and mask is not: pass distribute_tensor(mask, x.device_mesh",
    "mask_of_one": "and mask (1, 1, 24, 26), and both are distributed: pass an entry for each",
    "empty": "(0, 3, 24, 26), which holds no image",
    "features": "y is a DTensor, which only the call of a loss takes: pass y.to_local()",
    "shapes": "pass equal shapes; nothing is broadcast",
}


def test_shards_of_a_batch_are_compared_as_the_whole(tmp_path):
    workers = multiprocessing.spawn(one_of_two, (tmp_path,), nprocs=2, join=False)
    deadline = time.monotonic() + 120
    while not workers.join(timeout=1):
        assert time.monotonic() < deadline
    for rank in "01":
        found, refused = torch.load(tmp_path / rank)
        assert len(found) > 80
        for name, (value, expected) in found.items():
            assert value.shape == expected.shape, name
            assert (value - expected).abs().max() <= 1e-5 * expected.abs().max(), name
        assert refused.keys() == REFUSED.keys()
        for name, text in REFUSED.items():
            assert text in refused[name]


@pytest.mark.parametrize("name", ["ssim", "ms_ssim", "l1_ssim", "l1_ms_ssim"])
def test_replicas_of_a_loss_compare_their_parts(name):
    """DataParallel copies a module so, and calls each copy on a thread of its own."""
    loss = STRUCTURAL[name]
    x, y = torch.rand(2, 4, 3, 24, 26)
    replicas = [loss._replicate_for_data_parallel() for _ in range(2)]
    x.requires_grad_()
    with concurrent.futures.ThreadPoolExecutor(2) as threads:
        parts = replicas, x.split(2), y.split(2)
        values = list(threads.map(lambda replica, a, b: replica(a, b), *parts))
    (gradient,) = torch.autograd.grad(torch.stack(values).mean(), x)
    expected = loss(x, y)
    torch.testing.assert_close(torch.stack(values).mean(), expected, rtol=1e-5, atol=1e-7)
    torch.testing.assert_close(gradient, *torch.autograd.grad(expected, x), rtol=1e-4, atol=1e-9)
