"""The losses on features: what they compute, what they leave alone, where weights come from."""

import copy
import inspect
import os
import pickle
import re
import warnings
from urllib.error import URLError

import pytest
import torch
import torchvision
from torch import nn

import perceptual_losses
from perceptual_losses import LPIPSLoss, StyleLoss, VGGLoss, vgg_features
from perceptual_losses._features import backbone as backbones
from perceptual_losses._features.lpips import layer_distance, layer_distance_formula
from perceptual_losses.features import (
    LPIPS_LAYERS,
    STYLE_PRESETS,
    VGG_PRESETS,
)

BACKBONES = list(backbones.BACKBONES)
CONFIGURATIONS = {"vgg16": "D", "vgg19": "E"}


def torchvision_features(backbone):
    """The ``features`` of torchvision's model, with random weights and statistics."""
    torch.manual_seed(len(backbone))
    if backbone == "alexnet":
        network = torchvision.models.alexnet(weights=None).features
    else:
        name, _, norm = backbone.partition("_")
        layers = torchvision.models.vgg.cfgs[CONFIGURATIONS[name]]
        network = torchvision.models.vgg.make_layers(layers, batch_norm=bool(norm))
    for module in network:
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight)
            nn.init.uniform_(module.bias, -0.1, 0.1)
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.uniform_(module.running_mean, -0.2, 0.2)
            nn.init.uniform_(module.running_var, 0.5, 2)
        if isinstance(module, nn.ReLU):
            module.inplace = False
    return network.eval().requires_grad_(False)


@pytest.fixture(scope="module")
def networks():
    return {backbone: torchvision_features(backbone) for backbone in BACKBONES}


@pytest.fixture(scope="module")
def linear():
    generator = torch.Generator().manual_seed(7)
    widths = {"vgg16": (64, 128, 256, 512, 512), "alexnet": (64, 192, 384, 256, 256)}
    return {
        backbone: {
            f"lin{i}.model.1.weight": torch.rand(1, width, 1, 1, generator=generator)
            for i, width in enumerate(sizes)
        }
        for backbone, sizes in widths.items()
    }


def pair(*shape, seed=0, dtype=torch.float32):
    generator = torch.Generator().manual_seed(seed)
    return (torch.rand(shape, generator=generator, dtype=dtype) for _ in range(2))


def normalized(x, low=0.0, high=1.0):
    mean = torch.tensor([0.485, 0.456, 0.406], dtype=x.dtype)[:, None, None]
    deviation = torch.tensor([0.229, 0.224, 0.225], dtype=x.dtype)[:, None, None]
    return ((x - low) / (high - low) - mean) / deviation


def close(got, expected, tolerance=1e-5):
    assert got.shape == expected.shape
    assert (got - expected).norm() <= tolerance * expected.norm()


def make(loss, networks, linear, **options):
    """One of the losses, on a shallow network where it has the choice."""
    if loss is LPIPSLoss:
        options = {"linear": linear["alexnet"], **options}
        return LPIPSLoss("alexnet", weights=networks["alexnet"], **options)
    return loss({"relu1_1": 0.5, "conv2_2": 2.0}, weights=networks["vgg16"], **options)


LOSSES = [VGGLoss, StyleLoss, LPIPSLoss]


# What is computed


@pytest.mark.parametrize("backbone", BACKBONES)
def test_every_layer_against_a_network_run_by_hand(networks, backbone):
    names = [layer.name for layer in backbones.BACKBONES[backbone]]
    x = next(pair(2, 3, 67, 70))
    extract = vgg_features(names, backbone=backbone, weights=networks[backbone])
    features = extract(x)
    assert list(features) == names
    # Asked for alone, with in-place activations all around.
    deepest = vgg_features(names[-1:], backbone=backbone, weights=networks[backbone])(x)
    image = x
    x = normalized(x)
    for name, module in zip(names, networks[backbone], strict=True):
        x = module(x)
        close(features[name], x)
    close(deepest[names[-1]], x)
    torch.testing.assert_close(image, next(pair(2, 3, 67, 70)), rtol=0, atol=0)


def test_names_follow_torchvision():
    names = {layer.position: layer.name for layer in backbones.BACKBONES["vgg19"]}
    assert [names[i] for i in (0, 1, 3, 4, 9, 11, 34, 35, 36)] == [
        *("conv1_1", "relu1_1", "relu1_2", "pool1", "pool2", "relu3_1", "conv5_4", "relu5_4"),
        "pool5",
    ]
    names = {layer.position: layer.name for layer in backbones.BACKBONES["vgg16_bn"]}
    assert [names[i] for i in (0, 1, 2, 6, 7)] == [
        "conv1_1",
        "norm1_1",
        "relu1_1",
        "pool1",
        "conv2_1",
    ]


@pytest.mark.parametrize(("low", "high"), [(0, 255), (-1, 1)])
def test_the_range_of_the_images(networks, low, high):
    x = low + (high - low) * next(pair(1, 3, 16, 16))
    data_range = high if low == 0 else (low, high)
    extract = vgg_features(["conv1_1"], weights=networks["vgg16"], data_range=data_range)
    close(extract(x)["conv1_1"], networks["vgg16"][0](normalized(x, low, high)))


def test_grey_images_are_colour_images_of_equal_channels(networks):
    extract = vgg_features(["relu2_1"], weights=networks["vgg16"], data_range=255)
    x = torch.randint(256, (2, 1, 20, 24), dtype=torch.uint8)
    close(extract(x)["relu2_1"], extract(x.float().expand(-1, 3, -1, -1))["relu2_1"])


def test_layers_of_a_loss_are_its_own(networks):
    loss = VGGLoss("johnson", weights=networks["vgg16"])
    loss.layers["relu2_2"] = 2.0
    assert VGGLoss("johnson", weights=networks["vgg16"]).layers == {"relu2_2": 1.0}


@pytest.mark.parametrize("kind", [VGGLoss, StyleLoss])
def test_weights_of_layers_change_and_layers_do_not(networks, kind):
    loss = kind({"relu1_1": 1.0, "relu1_2": 0.0}, weights=networks["vgg16"])
    x, y = pair(1, 3, 16, 16)
    before = loss(x, y)
    loss.layers["relu1_1"] = 2.0
    close(loss(x, y), 2 * before)
    for layers in ({"relu1_1": 1.0}, {**loss.layers, "relu2_1": 5.0}):
        loss.layers = layers
        with pytest.raises(ValueError, match=r"made for \['relu1_1', 'relu1_2'\]: keep"):
            loss(x, y)


@pytest.mark.parametrize("name", VGG_PRESETS)
def test_presets_of_the_content_loss(networks, name):
    preset = VGG_PRESETS[name]
    network, (x, y) = networks[preset.backbone], pair(2, 3, 32, 36)
    loss = VGGLoss(name, weights=network, reduction="none")
    expected = torch.zeros(2)
    a, b = normalized(x), normalized(y)
    for layer, module in zip(backbones.BACKBONES[preset.backbone], network, strict=True):
        a, b = module(a), module(b)
        if layer.name in preset.layers:
            distance = {"l1": (a - b).abs(), "l2": (a - b) ** 2}[preset.distance]
            expected += preset.layers[layer.name] * distance.mean((1, 2, 3))
    close(loss(x, y), expected)
    close(VGGLoss(name, weights=network)(x, y), expected.mean())


def test_presets_are_those_of_the_papers():
    assert VGG_PRESETS["dfc-345"] == (
        "vgg19",
        "l2",
        {"relu3_1": 0.5, "relu4_1": 0.5, "relu5_1": 0.5},
    )
    assert VGG_PRESETS["esrgan"] == ("vgg19", "l1", {"conv5_4": 1})
    assert VGG_PRESETS["srgan"].layers["relu5_4"] == pytest.approx(0.006, abs=2e-4)
    assert sum(STYLE_PRESETS["gatys"].layers.values()) == pytest.approx(0.25)


@pytest.mark.parametrize("name", STYLE_PRESETS)
def test_presets_of_the_style_loss(networks, name):
    preset = STYLE_PRESETS[name]
    network, (x, y) = networks[preset.backbone], pair(2, 3, 32, 36)
    expected = torch.zeros(2)
    a, b = normalized(x), normalized(y)
    for layer, module in zip(backbones.BACKBONES[preset.backbone], network, strict=True):
        a, b = module(a), module(b)
        if layer.name in preset.layers:
            for i in range(2):
                gram = [f[i].flatten(1) @ f[i].flatten(1).T / f[i].numel() for f in (a, b)]
                expected[i] += preset.layers[layer.name] * ((gram[0] - gram[1]) ** 2).sum()
    close(StyleLoss(name, weights=network, reduction="none")(x, y), expected, 1e-4)


def test_style_knows_no_places(networks):
    loss = StyleLoss({"relu1_1": 1.0}, weights=networks["vgg16"])
    x, y = pair(1, 3, 40, 40)
    assert loss(x, y[..., :24]).isfinite()
    assert loss(x, x.roll(8, 3)) < 0.01 * loss(x, y.square())


@pytest.mark.filterwarnings(
    "ignore:.*pretrained.*:UserWarning", "ignore:.*weight enum.*:UserWarning"
)
@pytest.mark.parametrize(("backbone", "theirs"), [("vgg16", "vgg"), ("alexnet", "alex")])
def test_lpips_against_the_package(backbone, theirs):
    import lpips

    torch.manual_seed(3)
    package = lpips.LPIPS(net=theirs, pnet_rand=True, verbose=False)
    network = {
        re.sub(r"net\.slice\d\.", "", key): value
        for key, value in package.state_dict().items()
        if key.startswith("net.")
    }
    ours = LPIPSLoss(backbone, weights=network, data_range=(-1, 1), reduction="none")
    x, y = (2 * image - 1 for image in pair(2, 3, 64, 70))
    torch.testing.assert_close(ours(x, y), package(x, y).flatten(), rtol=1e-6, atol=1e-6)
    # In float32 a rounding decides on which side of zero an activation lies, and its gradient.
    ours, package, x, y = ours.double(), package.double(), x.double(), y.double()
    for image in (x, y):
        image.requires_grad_()
    values = ours(x, y), package(x, y).flatten()
    torch.testing.assert_close(*values, rtol=1e-6, atol=1e-6)
    gradients = [torch.autograd.grad(value.sum(), (x, y)) for value in values]
    for mine, other in zip(*gradients, strict=True):
        close(mine, other)
    # The calibrated weights come from the package's file; nothing of them is learned.
    assert (ours.get_buffer(LPIPS_LAYERS[backbone][0]).flatten() >= 0).all()
    assert not list(ours.parameters())


# Gradients


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("wanted", [(True, False), (False, True), (True, True)])
def test_gradients_go_where_they_are_wanted(networks, linear, loss, wanted):
    x, y = pair(1, 3, 40, 40)
    both = [image.clone().requires_grad_() for image in (x, y)]
    make(loss, networks, linear)(*both).backward()
    some = [image.clone().requires_grad_(want) for image, want in zip((x, y), wanted, strict=True)]
    make(loss, networks, linear)(*some).backward()
    for image, full, want in zip(some, both, wanted, strict=True):
        assert (image.grad is not None) == want
        if want:
            assert full.grad.abs().max() > 0
            close(image.grad, full.grad)


@pytest.mark.parametrize("loss", [VGGLoss, StyleLoss])
def test_gradcheck(networks, linear, loss):
    layers = {"conv1_1": 1.0, "conv1_2": 0.5}
    options = {"distance": "l2"} if loss is VGGLoss else {}
    module = loss(layers, weights=networks["vgg16"], **options).double()
    x, y = pair(1, 3, 4, 5, dtype=torch.float64)
    assert torch.autograd.gradcheck(module, (x.requires_grad_(), y.requires_grad_()))
    assert torch.autograd.gradgradcheck(module, (x, y))


def test_gradcheck_of_a_layers_distance(linear):
    loss = LPIPSLoss("alexnet", weights=torchvision_features("alexnet"), linear=linear["alexnet"])
    a, b = (f.requires_grad_() for f in pair(1, 64, 2, 3, dtype=torch.float64))
    assert torch.autograd.gradcheck(lambda a, b: loss._distance("relu1", a, b), (a, b))
    assert torch.autograd.gradgradcheck(lambda a, b: loss._distance("relu1", a, b), (a, b))


@pytest.mark.filterwarnings("ignore:Anomaly Detection has been enabled")
@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("level", [0.0, 0.5, 1.0])
def test_constant_images(networks, linear, loss, dtype, level):
    module = make(loss, networks, linear, dtype=dtype)
    x = torch.full((1, 3, 36, 36), level, dtype=dtype, requires_grad=True)
    with torch.autograd.detect_anomaly(check_nan=True):
        value = module(x, torch.zeros(1, 3, 36, 36, dtype=dtype))
        value.backward()
    assert value.dtype == torch.float32
    assert value.isfinite()
    assert x.grad.isfinite().all()
    if level == 0:
        assert value == 0
        assert not x.grad.any()


@pytest.mark.filterwarnings("ignore:Anomaly Detection has been enabled")
def test_places_without_features_have_no_direction(linear):
    """Where all features are zero the length has no derivative."""
    network = torchvision_features("alexnet")
    for module in network:
        if isinstance(module, nn.Conv2d):
            nn.init.zeros_(module.weight)
            nn.init.constant_(module.bias, -1.0)
    loss = LPIPSLoss("alexnet", weights=network, linear=linear["alexnet"])
    x, y = pair(1, 3, 36, 36)
    x.requires_grad_()
    with torch.autograd.detect_anomaly(check_nan=True):
        loss(x, y).backward()
    assert not x.grad.any()


@pytest.mark.parametrize("distance", [layer_distance_formula, layer_distance])
def test_a_layers_distance_where_features_are_zero(distance):
    """Asked directly: a network hides a NaN there behind its dead activations."""
    a, b = pair(1, 4, 2, 3)
    a[..., 0, :] = 0
    b[..., 0, 0] = 0
    weight = torch.rand(4)
    a.requires_grad_()
    b.requires_grad_()
    value = distance(a, b, weight)
    of_a, of_b = torch.autograd.grad(value.sum(), (a, b))
    expected = [
        (weight * (p / (p.norm() + 1e-10) - q / (q.norm() + 1e-10)).square()).sum()
        for p, q in zip(a.flatten(2)[0].mT, b.flatten(2)[0].mT, strict=True)
    ]
    assert value.item() == pytest.approx(torch.stack(expected).mean().item(), rel=1e-5)
    assert not of_a[..., 0, :].any()
    assert not of_b[..., 0, 0].any()
    for gradient in (of_a, of_b):
        assert gradient.isfinite().all()
        assert gradient[..., 1, :].abs().min() > 0


@pytest.mark.parametrize("distance", [layer_distance_formula, layer_distance])
def test_a_layers_distance_where_lengths_overflow(distance):
    """Neither the distance of zero that unit features of zero would have, nor in other images."""
    a, b = (feature.requires_grad_() for feature in pair(2, 4, 2, 3))
    with torch.no_grad():
        expected = distance(a, b, torch.rand(4, generator=torch.Generator().manual_seed(0)))
        for feature in (a, b):
            feature[1, :, 0, 0] *= 1e20
    value = distance(a, b, torch.rand(4, generator=torch.Generator().manual_seed(0)))
    assert value[0] == expected[0]
    assert value[1].isnan()
    for gradient in torch.autograd.grad(value.sum(), (a, b)):
        assert gradient[1, :, 0, 0].isnan().all()
        assert gradient[1, :, 1].isfinite().all()
        assert gradient[0].isfinite().all()


def test_no_nan_is_rounded_to_a_number():
    """All ones in a NaN's lower half would carry over into its sign."""
    a, b = (feature.bfloat16().requires_grad_() for feature in pair(1, 64, 2, 2))
    nan = torch.tensor([0x7FFFFFFF], dtype=torch.int32).view(torch.float32)
    (gradient,) = torch.autograd.grad(layer_distance(a, b, torch.ones(64)), a, nan)
    assert gradient.isnan().all()


@pytest.mark.parametrize("loss", LOSSES)
def test_identical_images(networks, linear, loss):
    x = next(pair(2, 3, 40, 40)).requires_grad_()
    value = make(loss, networks, linear)(x, x.detach())
    assert value == 0
    (gradient,) = torch.autograd.grad(value, x)
    assert not gradient.any()


@pytest.mark.parametrize("loss", LOSSES)
def test_losses_fall_while_images_come_closer(networks, linear, loss):
    x = next(pair(1, 3, 48, 48))
    module = make(loss, networks, linear)
    values = [module((1 - share) * x, x).item() for share in (0.9, 0.5, 0.2, 0.05, 0)]
    assert values == sorted(values, reverse=True)
    assert values[-1] == 0


# What is left alone


@pytest.mark.parametrize("loss", LOSSES)
def test_the_network_is_not_there_for_anyone_else(networks, linear, loss):
    module = make(loss, networks, linear)
    x, y = pair(1, 3, 40, 40)
    before = module(x, y)
    model = nn.ModuleDict({"net": nn.Linear(2, 2), "loss": module})
    assert set(model.state_dict()) == {"net.weight", "net.bias"}
    assert len(list(model.parameters())) == 2
    assert not list(module.parameters())
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
    module = VGGLoss({"relu1_1": 1.0}, weights=networks["vgg16"])
    assert {buffer.device.type for buffer in module.to("meta").buffers()} == {"meta"}
    x, y = pair(1, 3, 16, 16, dtype=torch.float64)
    double = VGGLoss({"relu1_1": 1.0}, weights=networks["vgg16"]).double()(x, y)
    assert double.dtype == torch.float64
    kept = VGGLoss({"relu1_1": 1.0}, weights=networks["vgg16"], dtype=torch.bfloat16).double()
    assert {name: buffer.dtype for name, buffer in kept.extractor.named_buffers()} == {
        "scale": torch.float32,
        "shift": torch.float32,
        "conv1_1_weight": torch.bfloat16,
        "conv1_1_bias": torch.bfloat16,
    }
    assert kept(x, y).item() == pytest.approx(double.item(), rel=0.02)


def test_a_target_makes_no_graph(networks):
    """The step keeps activations of the prediction alone, and in place of what it overwrites."""
    loss = VGGLoss({"relu2_2": 1.0}, weights=networks["vgg16"])
    x, y = pair(1, 3, 32, 32)
    loss(x, y)
    weights = {buffer.data_ptr() for buffer in loss.buffers()}
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
    weights |= {buffer.data_ptr() for buffer in thrifty.buffers()}
    weights |= {matrices.data_ptr() for _, matrices, _ in thrifty.extractor._matrices.values()}
    assert kept(thrifty, y) < 0.5 * cached


# Ways to run it


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


# Where weights come from


@pytest.fixture
def offline(monkeypatch, tmp_path):
    """Torch's cache in an empty folder, and no network."""
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))

    def refuse(*args, **kwargs):
        raise URLError("no network in this test")

    monkeypatch.setattr(torch.hub, "urlopen", refuse)
    (tmp_path / "checkpoints").mkdir()
    return tmp_path / "checkpoints"


def test_every_source_gives_the_same_numbers(networks, offline):
    network, x = networks["vgg16"], next(pair(1, 3, 32, 32))
    state = network.state_dict()
    whole = {f"features.{key}": value for key, value in state.items()}
    whole["classifier.0.weight"] = torch.zeros(2, 2)
    torch.save(whole, offline.parent / "own.pth")
    torch.save(whole, offline / "vgg16-397923af.pth")
    sources = [network, state, whole, offline.parent / "own.pth", str(offline.parent / "own.pth")]
    holder = nn.Module()
    holder.features = network
    for source in [*sources, holder, "imagenet"]:
        extract = vgg_features(["relu3_1"], weights=source)
        assert extract.loaded == (source != "imagenet")
        close(extract(x)["relu3_1"], vgg_features(["relu3_1"], weights=network)(x)["relu3_1"], 0)
        assert extract.loaded


def test_weights_fetched_in_inference_mode_serve_training(networks, offline):
    torch.save(networks["vgg16"].state_dict(), offline / "vgg16-397923af.pth")
    loss = VGGLoss("johnson")
    x, y = pair(1, 3, 32, 32)
    with torch.inference_mode():
        expected = loss(x, y)
    value = loss(x.requires_grad_(), y)
    value.backward()
    assert value.item() == expected.item()
    assert x.grad.any()


def test_imagenet_is_fetched_when_it_is_needed(networks, offline):
    loss = VGGLoss("johnson").to(torch.bfloat16)
    x, y = pair(1, 3, 16, 16)
    with pytest.raises(RuntimeError) as failure:
        loss.load()
    file = str(offline / "vgg16-397923af.pth")
    for part in ("could not be downloaded", "https://", f"put it at {file}", "no network"):
        assert part in str(failure.value)
    torch.save(
        {f"features.{key}": value for key, value in networks["vgg16"].state_dict().items()}, file
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch.compiler, "is_compiling", lambda: True)
        with pytest.raises(RuntimeError, match=r"call .load\(\) before compiling"):
            loss(x, y)
    loss.load()
    assert loss.extractor.get_buffer("conv1_1_weight").dtype == torch.bfloat16
    assert loss(x, y) > 0
    (offline / "vgg16-397923af.pth").write_bytes(b"half a file")
    with pytest.raises(RuntimeError, match="cannot be read.*Delete the file"):
        VGGLoss("johnson")(x, y)


class Malicious:
    def __reduce__(self):
        return os.system, ("echo code ran",)


def test_wrong_weights(networks, tmp_path):
    state = networks["vgg16"].state_dict()

    def refused(weights, text, error=ValueError):
        with pytest.raises(error, match=text):
            vgg_features(["relu1_1"], weights=weights)

    refused(networks["vgg19"], "does not fit vgg16: '[0-9]+.(weight|bias)' is")
    refused(networks["vgg16_bn"].state_dict(), "does not fit vgg16")
    refused(
        {**state, "0.weight": torch.zeros(64, 1, 3, 3)}, r"'0.weight' is \(64, 1, 3, 3\) and not"
    )
    refused({**state, "0.weight": 3}, "'0.weight' is int and not")
    refused({"state_dict": state}, "'0.bias' is missing; pass the state dict of torchvision.models")
    refused({**state, "head.weight": torch.zeros(1)}, "'head.weight' is not part of it")
    refused(3, "weights is of type int: pass 'imagenet', a path", TypeError)
    refused(tmp_path / "none.pth", "there is no such file", FileNotFoundError)
    refused("imagnet", "weights='imagnet': there is no such file.*'imagenet'", FileNotFoundError)
    path = tmp_path / "file.pth"
    torch.save(state, path)
    complete = path.read_bytes()
    path.write_bytes(complete[: len(complete) // 2])
    refused(path, "cannot be read as tensors alone")
    torch.save({"0.weight": Malicious()}, path)
    refused(path, "cannot be read as tensors alone")
    torch.save([1, 2], path)
    refused(path, "is no state dict")


def test_random_weights_say_so():
    with pytest.warns(UserWarning, match="features of vgg16 are random.*weights='imagenet'"):
        extract = vgg_features(["relu1_1"], weights=None)
    assert extract(torch.rand(1, 3, 8, 8))["relu1_1"].std() > 0.1
    with pytest.warns(UserWarning, match="random"):
        extract = vgg_features(["relu1_1"], backbone="vgg16_bn", weights=None)
    assert extract(torch.rand(1, 3, 8, 8))["relu1_1"].std() > 0.1


def test_wrong_linear_weights(networks, linear, tmp_path, monkeypatch):
    def refused(weights, text, error=ValueError):
        with pytest.raises(error, match=text):
            LPIPSLoss("alexnet", weights=networks["alexnet"], linear=weights)

    refused(linear["vgg16"], r"'lin1.model.1.weight' is \(1, 128, 1, 1\) and not \(1, 192, 1, 1\)")
    refused({}, "'lin0.model.1.weight' is missing")
    refused({**linear["alexnet"], "more": torch.zeros(1)}, "6 entries, not 5")
    refused(tmp_path / "none.pth", "linear='.*none.pth': there is no such file", FileNotFoundError)
    refused(3, "linear is of type int", TypeError)
    torch.save(linear["alexnet"], tmp_path / "alex.pth")
    x, y = pair(1, 3, 40, 40)
    from_file, given = (
        LPIPSLoss("alexnet", weights=networks["alexnet"], linear=source)(x, y)
        for source in (tmp_path / "alex.pth", linear["alexnet"])
    )
    assert torch.equal(from_file, given)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    refused("lpips", "pip install lpips, or pass the path of its weights/v0.1/alex.pth")


# Bad input


@pytest.mark.parametrize("loss", LOSSES)
def test_bad_images(networks, linear, loss):
    module = make(loss, networks, linear)
    good = next(pair(1, 3, 40, 40))
    for bad, error, text in (
        (good[0], ValueError, r"x has shape \(3, 40, 40\).*unsqueeze\(0\)"),
        (good[:, :2], ValueError, "with 2 channels.*3 channels, and 1"),
        (good[:0], ValueError, "holds no image"),
        (good.tolist(), TypeError, "x is of type list: pass a torch.Tensor"),
        (good + 1j, TypeError, "x is torch.complex64"),
        ((255 * good).byte(), ValueError, "x is torch.uint8.*data_range=255"),
    ):
        with pytest.raises(error, match=text):
            module(bad, good)
        with pytest.raises(error, match=text.replace("x ", "y ", 1)):
            module(good, bad)
        with pytest.raises(error, match=text.replace("x ", "y ", 1)):
            module.features(bad)
    with pytest.raises(ValueError, match="pass equal shapes on one device"):
        module(good, good.expand(2, 3, 40, 40))
    with pytest.raises(ValueError, match=r"y has features of \['other'\] and the loss compares"):
        module(good, {"other": good})


@pytest.mark.parametrize("loss", LOSSES)
def test_features_of_other_images(networks, linear, monkeypatch, loss):
    module = make(loss, networks, linear)
    x, y = pair(2, 3, 40, 48)
    target = module.features(y)
    name, fitting = next(iter(target.items()))
    assert module._shapes(x) == {name: tuple(kept.shape) for name, kept in target.items()}
    fewer = module.features(y[:1])

    def run(*arguments):
        raise AssertionError("the network has run")

    monkeypatch.setattr(type(module.extractor), "forward", run)
    text = rf"{name} of x have shape \({str(tuple(fitting.shape))[1:-1]}\) and those of y \(1,"
    with pytest.raises(ValueError, match=text):
        module(x, fewer)
    with pytest.raises(TypeError, match=rf"y\['{name}'\] is None .*: pass a torch.Tensor"):
        module(x, {**target, name: None})
    for name, value in (("distance", "l3"), ("reduction", "sum")):
        if hasattr(module, name):
            with monkeypatch.context() as patch:
                patch.setattr(module, name, value)
                with pytest.raises(ValueError, match=f"{name}='{value}' is unknown"):
                    module(x, target)


@pytest.mark.parametrize(
    ("backbone", "layer", "smallest"),
    [
        ("vgg16", "relu1_1", 1),
        ("vgg16", "relu5_3", 16),
        ("vgg19", "pool5", 32),
        ("alexnet", "relu5", 31),
    ],
)
def test_the_smallest_image(networks, backbone, layer, smallest):
    extract = vgg_features([layer], backbone=backbone, weights=networks[backbone])
    assert extract(torch.rand(1, 3, smallest, smallest + 3))[layer].shape[2] == 1
    if smallest > 1:
        text = f"too small for {layer} of {backbone}: pass images of at least {smallest}x{smallest}"
        with pytest.raises(ValueError, match=text):
            extract(torch.rand(1, 3, smallest + 9, smallest - 1))


def test_bad_options(networks):
    network = networks["vgg16"]
    for build, error, text in (
        (
            lambda: vgg_features(["relu9_1"], weights=network),
            ValueError,
            "vgg16 has no layer 'relu9_1'",
        ),
        (lambda: vgg_features([], weights=network), ValueError, "at least one name"),
        (lambda: vgg_features("relu1_1", weights=network), ValueError, "pass a list"),
        (lambda: vgg_features(iter(["relu1_1"]), weights=network), ValueError, "pass a list"),
        (
            lambda: vgg_features(["relu1_1"], backbone="vgg11"),
            ValueError,
            "backbone='vgg11' is unknown",
        ),
        (lambda: vgg_features(["relu1_1"], dtype=torch.int8), TypeError, "pass a floating dtype"),
        (
            lambda: vgg_features(["relu1_1"], data_range=0),
            ValueError,
            "data_range=0.0 is not positive",
        ),
        (lambda: VGGLoss("gatys"), ValueError, "layers='gatys' is unknown: pass one of"),
        (lambda: VGGLoss("srgan", backbone="vgg16"), ValueError, "backbone='vgg19', not 'vgg16'"),
        (lambda: VGGLoss("srgan", distance="l1"), ValueError, "distance='l2', not 'l1'"),
        (lambda: VGGLoss(["relu1_1"]), TypeError, "pass weights by names of layers"),
        (lambda: VGGLoss({"relu1_1": -1}), ValueError, "not negative"),
        (lambda: VGGLoss({"relu1_1": "1"}), TypeError, r"layers\['relu1_1'\] is '1'"),
        (lambda: VGGLoss({"relu1_1": 1}, distance="l3"), ValueError, "distance='l3' is unknown"),
        (lambda: VGGLoss(reduction="sum"), ValueError, "reduction='sum' is unknown"),
        (lambda: LPIPSLoss("vgg19"), ValueError, "backbone='vgg19' is unknown"),
    ):
        with pytest.raises(error, match=text):
            build()


def test_constructing_reads_and_fetches_nothing(offline):
    """The defaults work on a machine without network until they are called."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for loss in (VGGLoss(), StyleLoss(), VGGLoss("esrgan"), LPIPSLoss("alexnet")):
            assert not loss.extractor.loaded
            assert "loaded=False" in repr(loss)


def test_the_options_have_one_order():
    options = [list(inspect.signature(loss).parameters) for loss in LOSSES]
    shared = ["weights", "data_range", "dtype", "checkpointing", "reduction"]
    for names in options:
        assert [name for name in names if name in shared] == shared
    assert {loss.__name__ for loss in LOSSES} <= set(perceptual_losses.__all__)
