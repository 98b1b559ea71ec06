"""The sources of weights of the losses on features, and weights that are refused."""

import json
import os
import pickle
import warnings
import zipfile
from pathlib import Path
from urllib.error import URLError

import pytest
import torch
from feature_losses import close, pair
from torch import nn

from perceptual_losses import LPIPSLoss, StyleLoss, VGGLoss, vgg_features
from perceptual_losses._features import lpips as lpips_layers
from perceptual_losses.features import LPIPS_LAYERS


@pytest.fixture
def offline(monkeypatch, tmp_path):
    """Torch's cache in an empty folder, and no network."""
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))

    def refuse(*args, **kwargs):
        raise URLError("no network in this test")

    monkeypatch.setattr(torch.hub, "urlopen", refuse)
    (tmp_path / "checkpoints").mkdir()
    return tmp_path / "checkpoints"


def save_safetensors(state, path):
    """Writes float32 tensors in the format of the safetensors package."""
    header, content = {"__metadata__": {"format": "pt"}}, b""
    for name, value in state.items():
        part = value.contiguous().numpy().tobytes()
        offsets = [len(content), len(content) + len(part)]
        header[name] = {"dtype": "F32", "shape": list(value.shape), "data_offsets": offsets}
        content += part
    text = json.dumps(header).encode()
    path.write_bytes(len(text).to_bytes(8, "little") + text + content)


def test_every_source_gives_the_same_numbers(networks, offline):
    network, x = networks["vgg16"], next(pair(1, 3, 32, 32))
    state = network.state_dict()
    whole = {f"features.{key}": value for key, value in state.items()}
    whole["classifier.0.weight"] = torch.zeros(2, 2)
    torch.save(whole, offline.parent / "own.pth")
    torch.save(whole, offline / "vgg16-397923af.pth")
    save_safetensors(whole, offline.parent / "own.safetensors")
    slices = [(4, 1), (9, 2), (16, 3), (23, 4), (30, 5)]
    sources = [
        *(network, state, whole, offline.parent / "own.pth", str(offline.parent / "own.pth")),
        offline.parent / "own.safetensors",
        # Of timm, and as Hugging Face has them.
        {**whole, "pre_logits.fc1.weight": torch.zeros(2), "head.fc.weight": torch.zeros(2)},
        {f"timm_model.{key}": value for key, value in whole.items()},
        # Of a training.
        {"state_dict": {f"module.{key}": value for key, value in whole.items()}, "epoch": 3},
        {f"_orig_mod.{key}": value for key, value in state.items()},
        # Up to the deepest layer.
        {key: value for key, value in state.items() if int(key.partition(".")[0]) <= 10},
        {
            "net.slice{}.{}".format(
                next(number for end, number in slices if int(key.partition(".")[0]) < end), key
            ): value
            for key, value in state.items()
        },
    ]
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
    assert loss.extractor.constant("0.weight").dtype == torch.bfloat16
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
    refused({**state, "neck.weight": torch.zeros(1)}, "'neck.weight' is not part of it; pass the")
    prefixed = {f"features.{key}": value for key, value in state.items()}
    refused({**prefixed, "neck.weight": torch.zeros(1)}, "'neck.weight' is not part of it")
    del prefixed["features.0.bias"]
    refused(prefixed, "'features.0.bias' is missing; pass the state dict of torchvision.models")
    refused({**state, "a.0.bias": state["0.bias"]}, "holds two networks: '0.bias' and 'a.0.bias'")
    refused({"lin0.model.1.weight": torch.zeros(1, 64, 1, 1)}, "which belong to linear=")
    refused({key: value.to("meta") for key, value in state.items()}, "on the meta device")
    refused(3, "weights is of type int: pass 'imagenet', a path", TypeError)
    refused(tmp_path / "none.pth", "there is no such file", FileNotFoundError)
    refused("imagnet", "weights='imagnet': there is no such file.*'imagenet'", FileNotFoundError)
    path = tmp_path / "file.pth"
    torch.save(state, path)
    complete = path.read_bytes()
    torch.save([1, 2], path)
    refused(path, "is no state dict")
    torch.save({"0.weight": Malicious()}, path)
    module = path.read_bytes()
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("file/code/__torch__.py", "")
    for content, kind in (
        (complete[: len(complete) // 2], "the beginning of an archive"),
        (module, "other objects than tensors, a whole module for one"),
        (path.read_bytes(), "a TorchScript archive"),
        (pickle.dumps(Malicious()), "a pickle of other objects"),
        (b"version https://git-lfs.github.com/spec/v1", "a pointer of Git LFS"),
        (b"<!DOCTYPE html>", "a web page"),
        (b"", "it is empty"),
        (b"vgg", "of no known kind"),
    ):
        path.write_bytes(content)
        with pytest.raises(ValueError, match=f"cannot be read as tensors only.*{kind}") as failure:
            vgg_features(["relu1_1"], weights=path)
        assert failure.value.__cause__ is None
        assert "weights_only" not in str(failure.value)
    refused(tmp_path, "it is a folder")
    (tmp_path / "file.safetensors").write_bytes(b"\x09\0\0\0\0\0\0\0{broken")
    refused(tmp_path / "file.safetensors", "a safetensors file that is not complete")


def test_random_weights_say_so():
    with pytest.warns(UserWarning, match="features of vgg16 are random.*weights='imagenet'"):
        extract = vgg_features(["relu1_1"], weights=None)
    assert extract(torch.rand(1, 3, 8, 8))["relu1_1"].std() > 0.1
    with pytest.warns(UserWarning, match="random"):
        extract = vgg_features(["relu1_1"], backbone="vgg16_bn", weights=None)
    assert extract(torch.rand(1, 3, 8, 8))["relu1_1"].std() > 0.1


def test_wrong_linear_weights(networks, linear, tmp_path):
    def refused(weights, text, error=ValueError):
        with pytest.raises(error, match=text):
            LPIPSLoss("alexnet", weights=networks["alexnet"], linear=weights)

    refused(linear["vgg16"], r"'lin1.model.1.weight' is \(1, 128, 1, 1\) and not \(1, 192, 1, 1\)")
    refused({}, "'lin0.model.1.weight' is missing")
    more = {**linear["alexnet"], "lin5.model.1.weight": torch.zeros(1)}
    refused(more, "'lin5.model.1.weight' is not part of it, which has 5 layers")
    refused(tmp_path / "none.pth", "linear='.*none.pth': there is no such file", FileNotFoundError)
    refused(3, "linear is of type int", TypeError)
    torch.save(linear["alexnet"], tmp_path / "alex.pth")
    x, y = pair(1, 3, 40, 40)
    from_file, given = (
        LPIPSLoss("alexnet", weights=networks["alexnet"], linear=source)(x, y)
        for source in (tmp_path / "alex.pth", linear["alexnet"])
    )
    assert torch.equal(from_file, given)


@pytest.mark.parametrize(
    ("backbone", "theirs"), [("vgg16", "vgg"), ("alexnet", "alex"), ("squeezenet1_1", "squeeze")]
)
def test_the_linear_weights_are_those_of_lpips(backbone, theirs):
    import lpips

    file = Path(lpips.__file__).parent / "weights" / "v0.1" / f"{theirs}.pth"
    expected = torch.load(file, weights_only=True, map_location="cpu")
    found = lpips_layers.linear_weights("lpips", "imagenet", backbone)
    assert list(found) == list(LPIPS_LAYERS[backbone])
    assert len(found) == len(expected)
    for index, weight in enumerate(found.values()):
        assert torch.equal(weight, expected[f"lin{index}.model.1.weight"].flatten())


def test_one_file_for_both(networks, linear):
    """The names of a whole state dict of lpips, in modules around it."""
    network, weights = networks["alexnet"].state_dict(), linear["alexnet"]
    both = {f"net.slice1.{key}": value for key, value in network.items()}
    both |= {**weights, "scaling_layer.shift": torch.zeros(3)}
    both |= {key.replace("lin", "lins."): value for key, value in weights.items()}
    both = {f"loss.lpips.{key}": value for key, value in both.items()}
    x, y = pair(1, 3, 40, 40)
    expected = LPIPSLoss("alexnet", weights=network, linear=weights)(x, y)
    assert torch.equal(LPIPSLoss("alexnet", weights=both)(x, y), expected)
    assert torch.equal(LPIPSLoss("alexnet", weights=network, linear=both)(x, y), expected)
    uncalibrated = LPIPSLoss("alexnet", weights=both, linear=None)(x, y)
    ones = {key: torch.ones_like(value) for key, value in weights.items()}
    assert torch.equal(LPIPSLoss("alexnet", weights=both, linear=ones)(x, y), uncalibrated)


def test_constructing_reads_and_fetches_nothing(offline):
    """The defaults work on a machine without network until they are called."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for loss in (VGGLoss(), StyleLoss(), VGGLoss("esrgan"), LPIPSLoss("alexnet")):
            assert not loss.extractor.loaded
            assert "loaded=False" in repr(loss)
