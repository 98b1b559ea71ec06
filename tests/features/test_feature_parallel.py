"""The losses on features beside and inside models that are trained in parallel."""

import copy
import os
import time
import warnings

import pytest
import torch
from feature_losses import LOSSES, close, make, pair
from torch import distributed, multiprocessing, nn

from perceptual_losses import FeatureLoss, LPIPSLoss, VGGLoss


@pytest.fixture
def one_process(tmp_path):
    distributed.init_process_group(
        "gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1
    )
    yield
    distributed.destroy_process_group()


class WithLoss(nn.Module):
    def __init__(self, net, loss):
        super().__init__()
        self.net, self.loss = net, loss

    def forward(self, x):
        return self.loss(self.net(x), x)


@pytest.mark.usefixtures("one_process")
def test_beside_and_inside_a_model_in_ddp(networks):
    loss = VGGLoss({"relu1_1": 1.0}, weights=networks["vgg16"])
    model = nn.parallel.DistributedDataParallel(WithLoss(nn.Conv2d(3, 3, 1), loss))
    x = next(pair(2, 3, 16, 16))
    model(x).backward()
    inside = model.module.net.weight.grad.clone()
    beside = nn.parallel.DistributedDataParallel(model.module.net)
    beside.zero_grad()
    loss(beside(x), x).backward()
    close(model.module.net.weight.grad, inside)


@pytest.mark.usefixtures("one_process")
@pytest.mark.parametrize("loss", LOSSES)
def test_two_forwards_before_a_backward_in_ddp(networks, linear, loss):
    """DDP writes buffers before each forward, which a backward must not notice."""
    torch.manual_seed(0)
    model = WithLoss(nn.Conv2d(3, 3, 1), make(loss, networks, linear))
    x, y = pair(2, 3, 64, 64)
    (model(x) + model(y)).backward()
    expected = model.net.weight.grad.clone()
    model.zero_grad()
    model = nn.parallel.DistributedDataParallel(model)
    (model(x) + model(y)).backward()
    close(model.module.net.weight.grad, expected)


def one_of_two(rank, folder):
    """Trains a model with losses inside, and writes how many bytes DDP has sent."""
    torch.set_num_threads(1)
    distributed.init_process_group("gloo", f"file://{folder}/store", rank=rank, world_size=2)
    sent, broadcast = [], distributed._broadcast_coalesced

    def count(group, tensors, *others):
        sent.append(sum(tensor.nbytes for tensor in tensors))
        broadcast(group, tensors, *others)

    distributed._broadcast_coalesced = count
    network = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4))
    loss = FeatureLoss(network, {"1": 1.0})
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # They are about random weights.
        lpips = LPIPSLoss("alexnet", weights=None)
    found = {}
    for name, net in (("plain", nn.Conv2d(3, 3, 1)), ("norm", nn.BatchNorm2d(3))):
        inside = WithLoss(net, loss)
        inside.other = lpips
        model = nn.parallel.DistributedDataParallel(inside)
        sent.clear()
        for _ in range(2):
            model(torch.rand(2, 3, 36, 36)).backward()
        found[name] = sum(sent)
    torch.save(found, folder / str(rank))
    distributed.destroy_process_group()
    # Gloo's threads may still let go of tensors, which aborts an interpreter that is ending.
    os._exit(0)


def test_nothing_frozen_is_sent(tmp_path):
    """DDP's defaults send all buffers at each forward, such as the statistics of a norm."""
    workers = multiprocessing.spawn(one_of_two, (tmp_path,), nprocs=2, join=False)
    deadline = time.monotonic() + 120
    while not workers.join(timeout=1):
        assert time.monotonic() < deadline
    statistics = 2 * 3 * 4 + 8  # Two of three channels, and the number of batches.
    for rank in "01":
        found = torch.load(tmp_path / rank)
        assert found["plain"] == 0
        assert statistics <= found["norm"] <= 2 * statistics


@pytest.mark.usefixtures("one_process")
def test_beside_and_inside_a_model_in_fsdp(networks):
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    loss = VGGLoss({"relu2_1": 1.0}, weights=networks["vgg16"])
    torch.manual_seed(0)
    plain = nn.Conv2d(3, 3, 1)
    x = next(pair(2, 3, 16, 16))
    value = loss(plain(x), x)
    value.backward()
    mesh = init_device_mesh("cpu", (1,))
    for inside in (False, True):
        net = copy.deepcopy(plain)
        net.zero_grad()
        model = fully_shard(WithLoss(net, loss) if inside else net, mesh=mesh)
        assert len(list(model.parameters())) == 2
        again = model(x) if inside else loss(model(x), x)
        again.backward()
        assert again.item() == value.item()
        close(net.weight.grad.full_tensor(), plain.weight.grad)
