"""The interface of lpips, and its numbers for the same random weights."""

import copy
import inspect
import types
import warnings

import lpips as package
import pytest
import torch
from torch import nn

from benchmarks.speed import tokenizer
from perceptual_losses.compat.lpips import LPIPS

pytestmark = pytest.mark.filterwarnings(
    "ignore:.*pretrained.*:UserWarning",
    "ignore:.*weight enum.*:UserWarning",
    "ignore:the features of:UserWarning",
)
NETS = ["alex", "vgg", "squeeze"]


@pytest.fixture(scope="module", params=NETS)
def theirs(request):
    torch.manual_seed(3)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # They are torchvision's, about how lpips calls it.
        return package.LPIPS(net=request.param, pnet_rand=True, verbose=False).double()


def pair(seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.rand(2, 2, 3, 48, 53, generator=generator, dtype=torch.float64)


def ours_like(theirs, **options):
    net, state = theirs.pnet_type, theirs.state_dict()
    return LPIPS(net=net, weights=state, verbose=False, **options).double()


def test_the_signature():
    mine, others = (inspect.signature(c.__init__).parameters for c in (LPIPS, package.LPIPS))
    assert list(mine) == [*others, "weights"]
    for parameter in others.values():
        assert mine[parameter.name].default == parameter.default
    mine, others = (inspect.signature(c.forward).parameters for c in (LPIPS, package.LPIPS))
    assert list(mine) == list(others)
    assert [p.default for p in mine.values()] == [p.default for p in others.values()]


@pytest.mark.parametrize(("spatial", "normalize"), [(False, True), (True, False)])
def test_values_and_gradients(theirs, spatial, normalize):
    theirs.spatial = spatial
    ours, results = ours_like(theirs, spatial=spatial), []
    for loss in (theirs, ours):
        x, y = (image.requires_grad_() for image in pair())
        value, terms = loss(x, y, retPerLayer=True, normalize=normalize)
        torch.testing.assert_close(loss(x, y, normalize=normalize), value, rtol=1e-12, atol=0)
        (value * torch.arange(1.0, value.numel() + 1).reshape(value.shape)).sum().backward()
        results.append((value, terms, x.grad, y.grad))
    (value, terms, *gradients), (expected, others, *slopes) = results[1], results[0]
    assert value.shape == ((2, 1, 48, 53) if spatial else (2, 1, 1, 1))
    torch.testing.assert_close(value, expected, rtol=1e-6, atol=0)
    assert len(terms) == len(others)
    for term, other in zip(terms, others, strict=True):
        torch.testing.assert_close(term, other, rtol=1e-6, atol=1e-12)
    for gradient, slope in zip(gradients, slopes, strict=True):
        assert slope.abs().max() > 0
        assert (gradient - slope).norm() <= 1e-5 * slope.norm()


def test_without_linear_weights(theirs):
    baseline = copy.deepcopy(theirs)
    baseline.lpips, baseline.spatial = False, False
    x, y = pair()
    ours = ours_like(theirs, lpips=False, pretrained=False)
    torch.testing.assert_close(ours(x, y), baseline(x, y), rtol=1e-6, atol=0)


def test_linear_weights_of_a_file(tmp_path):
    linear = {
        f"lin{i}.model.1.weight": torch.rand(1, width, 1, 1)
        for i, width in enumerate((64, 192, 384, 256, 256))
    }
    torch.save(linear, tmp_path / "linear.pth")
    path = str(tmp_path / "linear.pth")
    torch.manual_seed(0)
    theirs = package.LPIPS(pnet_rand=True, model_path=path, verbose=False).double()
    trunk = {k: v for k, v in theirs.state_dict().items() if k.startswith("net.")}
    ours = LPIPS(model_path=path, weights=trunk).double()
    x, y = pair()
    torch.testing.assert_close(ours(x, y), theirs(x, y), rtol=1e-6, atol=0)
    assert (ours(x, y) - LPIPS(weights=trunk).double()(x, y)).abs().max() > 1e-3


def test_a_random_trunk():
    with pytest.warns(UserWarning, match="features of alexnet are random"):
        loss = LPIPS(pnet_rand=True, verbose=False)
    x, y = pair()
    assert loss(x, y).shape == (2, 1, 1, 1)
    assert loss(x, x).abs().max() == 0


class Trained(nn.Module):
    def __init__(self, loss):
        super().__init__()
        self.net, self.perceptual_loss = nn.Linear(2, 2), loss


def test_old_checkpoints(theirs):
    old, new = Trained(theirs), Trained(ours_like(theirs))
    assert set(new.state_dict()) == {"net.weight", "net.bias"}
    x, y = pair()
    before = new.perceptual_loss(x, y)
    with pytest.warns(UserWarning, match="entries of lpips.*dropped") as notices:
        new.load_state_dict(old.state_dict())
    assert len(notices) == 1
    assert torch.equal(new.net.weight, old.net.weight)
    assert torch.equal(new.perceptual_loss(x, y), before)
    new.load_state_dict(new.state_dict())
    with pytest.raises(RuntimeError, match="Unexpected key.*perceptual_loss.other"):
        new.load_state_dict({**new.state_dict(), "perceptual_loss.other.weight": x})


class Autoencoder(nn.Module):
    """A model with the interface of those of diffusers."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 3, 3, padding=1)

    def forward(self, x):
        return types.SimpleNamespace(sample=self.conv(x))


def test_a_training_on_both():
    """The training of benchmarks/speed/tokenizer.py, which needs diffusers for its own model."""
    torch.manual_seed(0)
    model, batches = Autoencoder(), torch.rand(3, 1, 3, 40, 40)
    found = {
        name: [value for value, *_ in tokenizer.train(copy.deepcopy(model), loss, batches)]
        for name, loss in tokenizer.losses("alex").items()
    }
    theirs, ours = found.values()
    assert len(set(theirs)) == 3
    assert ours == pytest.approx(theirs, rel=1e-4)


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"net": "resnet"}, "net='resnet' is unknown"),
        ({"version": "0.0"}, "did not normalise"),
        ({"pretrained": False}, "pretrained=False.*pass lpips=False"),
        ({"pnet_tune": True}, "pnet_tune=True: the trunk is frozen"),
        ({"eval_mode": False}, "eval_mode=False"),
        ({"pnet_rand": True, "weights": {}}, "leave it out, or weights"),
    ],
)
def test_refusals(options, text):
    with pytest.raises(ValueError, match=text):
        LPIPS(**options)


def test_a_subclass_keeps_its_own_entries():
    class Own(LPIPS):
        def __init__(self):
            super().__init__(net="alex", pnet_rand=True)
            self.linear_out = torch.nn.Linear(2, 2)

    first, second = Own(), Own()
    second.load_state_dict(first.state_dict())
    assert torch.equal(second.linear_out.weight, first.linear_out.weight)


def test_bytes_are_refused():
    x = torch.zeros(1, 3, 64, 64, dtype=torch.uint8)
    with pytest.raises(
        TypeError, match="in0 has dtype torch.uint8: pass floats in .*data_range=255"
    ):
        LPIPS(net="alex", pnet_rand=True)(x, x, normalize=True)
