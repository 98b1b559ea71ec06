"""The sources of weights of the losses on features, and weights that are refused."""

import os
import warnings
from urllib.error import URLError

import pytest
import torch
from feature_losses import close, pair
from torch import nn

from perceptual_losses import LPIPSLoss, StyleLoss, VGGLoss, vgg_features


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


def test_constructing_reads_and_fetches_nothing(offline):
    """The defaults work on a machine without network until they are called."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for loss in (VGGLoss(), StyleLoss(), VGGLoss("esrgan"), LPIPSLoss("alexnet")):
            assert not loss.extractor.loaded
            assert "loaded=False" in repr(loss)
