"""Frames of videos, slices of volumes, chunks of images and one style for all."""

import pytest
import torch
from feature_losses import LOSSES, close, make, pair

from perceptual_losses import LPIPSLoss, StyleLoss, VGGLoss


def frames(count=3, **options):
    return pair(2, 3, count, 32, 36, **options)


def flat(x):
    return torch.stack([image[:, t] for image in x for t in range(image.shape[1])])


@pytest.mark.parametrize("loss", LOSSES)
def test_frames_are_images(networks, linear, loss):
    x, y = frames()
    per_image = make(loss, networks, linear, reduction="none")
    values = per_image(x, y)
    assert values.shape == (2, 3)
    assert torch.equal(values.flatten(), per_image(flat(x), flat(y)))
    assert torch.equal(make(loss, networks, linear)(x, y), values.mean())
    target = per_image.features(y)
    assert torch.equal(per_image(x, target), values)
    for name, feature in per_image.features(flat(y)).items():
        assert torch.equal(target[name], feature)
    extract = per_image.extractor
    for name, feature in extract(x).items():
        assert torch.equal(feature, extract(flat(x))[name])
        assert extract.shapes(x)[name] == feature.shape


@pytest.mark.parametrize("loss", LOSSES)
def test_chunks_change_no_number(networks, linear, loss):
    """Two frames of two videos in chunks of three, which end in the middle of a video."""
    x, y = frames(2)
    results = []
    for chunk_size in (None, 3):
        module = make(loss, networks, linear, chunk_size=chunk_size, reduction="none")
        both = [image.clone().requires_grad_() for image in (x, y)]
        values = module(*both)
        (values * torch.arange(4.0).reshape(2, 2)).sum().backward()
        kept = module(x, module.features(y))
        results.append([values, kept, *(image.grad for image in both)])
    for whole, parts in zip(*results, strict=True):
        close(parts, whole)
    assert results[0][0].shape == (2, 2)


def test_memory_does_not_grow_with_the_frames(networks):
    def kept(count, loss):
        sizes = {}

        def pack(tensor):
            storage = tensor.untyped_storage()
            sizes[storage.data_ptr()] = storage.nbytes()
            return tensor

        x, y = pair(1, 3, count, 16, 16)
        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            loss(x.requires_grad_(), y)
        return sum(sizes.values())

    chunks = VGGLoss({"relu1_2": 1.0}, weights=networks["vgg16"], chunk_size=2)
    whole = VGGLoss({"relu1_2": 1.0}, weights=networks["vgg16"])
    assert kept(8, chunks) < 0.1 * kept(8, whole)


@pytest.mark.parametrize("chunk_size", [None, 2])
def test_one_style_for_all(networks, chunk_size):
    loss = StyleLoss(
        {"relu1_2": 1.0}, weights=networks["vgg16"], reduction="none", chunk_size=chunk_size
    )
    x, y = next(pair(3, 3, 24, 24)), next(pair(1, 3, 20, 30, seed=1))
    expected = loss(x, y.expand(3, -1, -1, -1))
    torch.testing.assert_close(loss(x, y), expected)
    torch.testing.assert_close(loss(x, loss.features(y)), expected)
    video = x.movedim(0, 1)[None]
    torch.testing.assert_close(loss(video, y), expected[None])
    with pytest.raises(ValueError, match="as many images as x has, or one for all"):
        loss(x, y.expand(2, -1, -1, -1))


def test_maps_of_frames(networks, linear):
    loss = LPIPSLoss("alexnet", weights=networks["alexnet"], linear=linear["alexnet"])
    x, y = frames()
    maps = loss.map(x, y)
    assert maps.shape == (2, 1, 3, 32, 36)
    images = loss.map(flat(x), flat(y))
    loss.chunk_size = 4
    close(loss.map(x, y), maps)
    loss.chunk_size = None
    assert images.shape == (6, 1, 32, 36)
    assert torch.equal(flat(maps), images)
    assert torch.equal(loss.map(x, loss.features(y)), maps)
    # The resizing of AlexNet's few places weighs those at the border more.
    torch.testing.assert_close(maps.mean(), loss(x, y), rtol=0.1, atol=0)
    layers = loss.layer_distances(x, y)
    assert list(layers) == list(loss.extractor.layers)
    torch.testing.assert_close(sum(layers.values()).mean(), loss(x, y))


def test_wrong_frames(networks):
    loss = VGGLoss({"relu1_1": 1.0}, weights=networks["vgg16"])
    x, _ = frames()
    with pytest.raises(ValueError, match="which holds no image"):
        loss(x[:, :, :0], x[:, :, :0])
    with pytest.raises(ValueError, match=r"\(2, 3, 3, 32, 36\) and y \(2, 3, 2, 32, 36\)"):
        loss(x, x[:, :, :2])
    for size in (0, 1.5, True):
        with pytest.raises(ValueError, match=f"chunk_size={size}: pass the number"):
            VGGLoss({"relu1_1": 1.0}, weights=networks["vgg16"], chunk_size=size)
