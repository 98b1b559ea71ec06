"""A small data set and trainings on it."""

import json

import pytest
import torch
from torch.utils.data import TensorDataset

from perceptual_losses.examples import data, train

SMALL = {"hidden_dims": (4, 8), "latent_dim": 4}
OPTIONS = {
    "vae": {},
    "msssim": {},
    "dfc": {"layers": {"relu1_1": 1.0}, "weights": None},
    "cvae": {},
}
RANDOM_FEATURES = pytest.mark.filterwarnings("ignore:the features of vgg")


def images(n=6, size=32, channels=3):
    """Smooth random images, of three classes."""
    random = torch.Generator().manual_seed(0)
    coarse = torch.rand(n, channels, 4, 4, generator=random)
    smooth = torch.nn.functional.interpolate(coarse, size, mode="bilinear").clamp(0, 1)
    return smooth, torch.arange(n) % 3


def shapes(n=10, activation="sigmoid"):
    """A bright square on a dark ground, at two heights that are the classes."""
    low = -1.0 if activation == "tanh" else 0.0
    x = torch.full((n, 1, 16, 16), low + 0.1)
    labels = torch.arange(n) % 2
    for i in range(n):
        top = 2 + 6 * int(labels[i])
        x[i, :, top : top + 6, i % 10 : i % 10 + 6] = 0.9
    images, form = TensorDataset(x, labels), data.Form(16, 1, (low, 1.0))
    return data.Data("shapes", form, ["high", "low"], data.Mirrored(images), images)


def training(out, model="vae", *, activation="sigmoid", **options):
    options = {"steps": 6, "batch_size": 4, "evaluate_every": 3, "save_every": 2, **options}
    own = {**SMALL, **OPTIONS[model], "output_activation": activation}
    return train.Training(model, own, shapes(activation=activation), out, **options)


def lines(out):
    return [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]


def same(a, b):
    """Whether two checkpoints are equal bit for bit."""
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(same(a[key], b[key]) for key in a)
    return torch.equal(a, b) if isinstance(a, torch.Tensor) else a == b
