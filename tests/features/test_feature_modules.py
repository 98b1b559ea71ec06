"""The losses on features as modules: what they leave alone, and ways to run them."""

import copy
import pickle

import pytest
import torch
from feature_losses import LOSSES, close, make, pair
from torch import nn

from perceptual_losses import FeatureLoss, VGGLoss, vgg_features


@pytest.mark.parametrize("loss", LOSSES)
def test_the_network_is_not_there_for_anyone_else(networks, linear, loss):
    module = make(loss, networks, linear)
    x, y = pair(1, 3, 40, 40)
    before = module(x, y)
    model = nn.ModuleDict({"net": nn.Linear(2, 2), "loss": module})
    assert set(model.state_dict()) == {"net.weight", "net.bias"}
    assert len(list(model.parameters())) == 2
    assert not list(module.parameters())
    assert not list(module.buffers())
    model.train()
    model.requires_grad_(True)
    assert torch.equal(module(x, y), before)
    model.load_state_dict(model.state_dict())
    for copied in (copy.deepcopy(module), pickle.loads(pickle.dumps(module))):
        assert torch.equal(copied(x, y), before)


def test_batch_statistics_stay_those_of_the_training(networks):
    extract = vgg_features(["norm1_2"], backbone="vgg16_bn", weights=networks["vgg16_bn"]).train()
    x, other = pair(1, 3, 16, 16)
    alone = extract(x)["norm1_2"]
    close(extract(torch.cat([x, 9 * other]))["norm1_2"][:1], alone)
    assert torch.equal(extract(x)["norm1_2"], alone)


def test_a_module_that_gave_its_weights_can_train_on(networks):
    network = copy.deepcopy(networks["vgg16"])
    extract = vgg_features(["conv1_1"], weights=network)
    x = next(pair(1, 3, 16, 16))
    before = extract(x)["conv1_1"]
    network[0].weight.zero_()
    assert torch.equal(extract(x)["conv1_1"], before)


def test_where_it_moves_to(networks):
    x, y = pair(1, 3, 16, 16, dtype=torch.float64)
    double = VGGLoss({"relu1_1": 1.0}, weights=networks["vgg16"]).double()(x, y)
    assert double.dtype == torch.float64
    kept = VGGLoss({"relu1_1": 1.0}, weights=networks["vgg16"], dtype=torch.bfloat16).double()
    assert {name: value.dtype for name, value in kept.extractor._constants.items()} == {
        "scale": torch.float32,
        "shift": torch.float32,
        "0.weight": torch.bfloat16,
        "0.bias": torch.bfloat16,
    }
    assert kept(x, y).item() == pytest.approx(double.item(), rel=0.02)


@pytest.mark.parametrize("loss", LOSSES)
def test_built_on_meta(networks, linear, loss, tmp_path):
    """The model gets its weights afterwards, and the loss has kept its own."""
    x, y = pair(1, 3, 40, 40)
    expected = make(loss, networks, linear)(x, y)
    with torch.device("meta"):
        model = nn.ModuleDict({"net": nn.Linear(2, 2), "loss": make(loss, networks, linear)})
    value = model["loss"](x.to("meta"), y.to("meta"))
    assert (value.device.type, value.shape) == ("meta", ())
    with pytest.raises(ValueError, match=r"x is on cpu and the network on meta: .*loss.to\(x"):
        model["loss"](x, y)
    model.to_empty(device="cpu").load_state_dict(
        nn.ModuleDict({"net": nn.Linear(2, 2)}).state_dict()
    )
    assert torch.equal(model["loss"](x, y), expected)
    moved = make(loss, networks, linear).to("meta").to_empty(device="cpu")
    assert torch.equal(moved(x, y), expected)


def test_a_network_built_on_meta():
    network = nn.Conv2d(3, 4, 3)
    x, y = pair(1, 3, 8, 8)
    with torch.device("meta"):
        loss = FeatureLoss(nn.Sequential(network), {"0": 1.0})
    expected = loss.to_empty(device="cpu")(x, y)
    assert torch.equal(FeatureLoss(nn.Sequential(network), {"0": 1.0})(x, y), expected)
    assert loss.to("meta")(x.to("meta"), y.to("meta")).device.type == "meta"
    assert torch.equal(loss.to_empty(device="cpu")(x, y), expected)


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_the_default_dtype_changes_nothing(networks, linear, loss, dtype):
    x, y = pair(1, 3, 40, 40)
    expected = make(loss, networks, linear)(x, y)
    torch.set_default_dtype(dtype)
    try:
        value = make(loss, networks, linear)(x, y)
    finally:
        torch.set_default_dtype(torch.float32)
    assert value.dtype == torch.float32
    assert torch.equal(value, expected)


@pytest.mark.parametrize("loss", LOSSES)
def test_images_elsewhere(networks, linear, loss):
    module, (x, y) = make(loss, networks, linear), pair(1, 3, 40, 40)
    with pytest.raises(ValueError, match=r"x is on meta and the network on cpu: .*loss.to\(x.dev"):
        module(x.to("meta"), y.to("meta"))
    with pytest.raises(ValueError, match="x is on cpu and y on meta"):
        module(x, y.to("meta"))
    features = {name: value.to("meta") for name, value in module.features(y).items()}
    with pytest.raises(ValueError, match=r"x is on cpu and y\[.*\] on meta: pass both on one"):
        module(x, features)


def test_a_target_makes_no_graph(networks):
    """The step keeps only the prediction's activations, each in place of the one it overwrites."""
    loss = VGGLoss({"relu2_2": 1.0}, weights=networks["vgg16"])
    x, y = pair(1, 3, 32, 32)
    loss(x, y)
    weights = {value.data_ptr() for value in loss.extractor._constants.values()}
    weights |= {matrices.data_ptr() for _, matrices, _ in loss.extractor._matrices.values()}

    def kept(loss, target):
        storages = {}

        def pack(tensor):
            if tensor.data_ptr() not in weights:
                storages[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            loss(x.detach().requires_grad_(), target)
        return sum(storages.values())

    fresh, cached = kept(loss, y), kept(loss, loss.features(y))
    assert fresh == cached
    plane = 4 * 32 * 32
    # The image, the two activations of block 1, the pooled one, those of block 2, places of the
    # maxima, and the difference.
    assert cached <= plane * (3 + 64 + 64 + 16 + 32 + 32 + 2 * 16 + 32 + 1)
    thrifty = VGGLoss({"relu2_2": 1.0}, weights=networks["vgg16"], checkpointing=True)
    thrifty(x, y)
    weights |= {value.data_ptr() for value in thrifty.extractor._constants.values()}
    weights |= {matrices.data_ptr() for _, matrices, _ in thrifty.extractor._matrices.values()}
    assert kept(thrifty, y) < 0.5 * cached


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("dtype", [None, torch.bfloat16])
def test_features_of_a_target_are_computed_once(networks, linear, loss, dtype):
    module = make(loss, networks, linear, dtype=dtype)
    x, y = pair(2, 3, 40, 40)
    x.requires_grad_()
    target = module.features(y)
    assert not any(feature.requires_grad for feature in target.values())
    fresh, cached = module(x, y), module(x, target)
    assert torch.equal(fresh, cached)
    gradients = [torch.autograd.grad(value, x)[0] for value in (fresh, cached)]
    assert torch.equal(*gradients)


@pytest.mark.parametrize("loss", LOSSES)
def test_checkpointing_changes_no_number(networks, linear, loss):
    x, y = pair(1, 3, 40, 40)
    results = []
    for checkpointing in (False, True):
        image = x.clone().requires_grad_()
        value = make(loss, networks, linear, checkpointing=checkpointing)(image, y)
        value.backward()
        results.append((value.detach(), image.grad))
    for plain, saved in zip(*results, strict=True):
        close(saved, plain, 1e-6)


@pytest.mark.parametrize("loss", LOSSES)
def test_half_precision(networks, linear, loss):
    x, y = pair(2, 3, 48, 48)
    exact = make(loss, networks, linear)(x, y)
    half = make(loss, networks, linear, dtype=torch.bfloat16)
    assert half(x, y).dtype == torch.float32
    assert half(x, y).item() == pytest.approx(exact.item(), rel=0.03)
    assert torch.equal(half(x.bfloat16(), y.bfloat16()), half(x.bfloat16().float(), y.bfloat16()))
    with torch.autocast("cpu", torch.bfloat16):
        # A dtype that was asked for is kept; without one autocast has its way with the network.
        assert torch.equal(make(loss, networks, linear, dtype=torch.float32)(x, y), exact)
        cast = make(loss, networks, linear)(x, y)
    assert cast.dtype == torch.float32
    assert cast.item() == pytest.approx(exact.item(), rel=0.03)
    assert cast != exact


@pytest.mark.parametrize("loss", LOSSES)
def test_in_a_compiled_step(networks, linear, loss):
    module = make(loss, networks, linear).double()
    x, y = pair(1, 3, 40, 40, dtype=torch.float64)
    x.requires_grad_()
    torch.compiler.reset()
    compiled = torch.compile(module, fullgraph=True, backend="aot_eager")
    values = module(x, y), compiled(x, y)
    close(values[1], values[0], 1e-9)
    gradients = [torch.autograd.grad(value, x)[0] for value in values]
    close(gradients[1], gradients[0], 1e-9)


@pytest.mark.parametrize("loss", LOSSES)
def test_under_torch_func(networks, linear, loss):
    module = make(loss, networks, linear).double()
    x, y = pair(2, 3, 40, 40, dtype=torch.float64)
    expected = torch.autograd.grad(module(x.requires_grad_(), y), x)[0]
    close(torch.func.grad(module)(x.detach(), y), expected, 1e-9)
