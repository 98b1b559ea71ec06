"""The losses on features beside and inside models that are trained in parallel."""

import copy

import pytest
import torch
from feature_losses import LOSSES, close, make, pair
from torch import nn

from perceptual_losses import VGGLoss


@pytest.fixture
def one_process(tmp_path):
    from torch import distributed

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
    """DDP writes the buffers before each forward."""
    torch.manual_seed(0)
    model = WithLoss(nn.Conv2d(3, 3, 1), make(loss, networks, linear))
    x, y = pair(2, 3, 64, 64)
    (model(x) + model(y)).backward()
    expected = model.net.weight.grad.clone()
    model.zero_grad()
    model = nn.parallel.DistributedDataParallel(model)
    (model(x) + model(y)).backward()
    close(model.module.net.weight.grad, expected)


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
