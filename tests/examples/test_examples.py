"""The example's models, losses and photos, and what its commands refuse."""

import pytest
import torch
from example_training import images
from torch.utils.data import TensorDataset
from torchvision.models import vgg

from perceptual_losses import VGGLoss, _evaluator, ms_ssim, ssim
from perceptual_losses.examples import __main__, data, demo, train, vae

SMALL = {"hidden_dims": (8, 16), "latent_dim": 8, "image_size": 32}
KINDS = {"vae": {}, "msssim": {}, "dfc": {"layers": {"relu1_1": 1.0}}, "cvae": {"num_classes": 3}}


@pytest.fixture(scope="module")
def vgg16():
    torch.manual_seed(0)
    return vgg.make_layers(vgg.cfgs["D"]).state_dict()


def made(kind, vgg16, **options):
    torch.manual_seed(0)
    options = {**SMALL, **KINDS[kind], **options}
    if kind == "dfc":
        options["weights"] = vgg16
    return vae.MODELS[kind](**options)


@pytest.mark.parametrize(
    ("kind", "size", "channels", "activation"),
    [
        (kind, *form)
        for kind in vae.MODELS
        for form in ((16, 1, "sigmoid"), (40, 3, "tanh"), (96, 4, "tanh"))
        if (kind, form[1]) != ("dfc", 4)  # VGG sees 1 or 3.
    ],
)
def test_any_size_channel_count_and_range(vgg16, kind, size, channels, activation):
    hidden_dims = [4, 8, 8]
    model = made(
        kind,
        vgg16,
        in_channels=channels,
        image_size=size,
        hidden_dims=hidden_dims,
        output_activation=activation,
    )
    assert hidden_dims == [4, 8, 8]
    low, high = model.data_range
    assert (low, high) == ((-1, 1) if activation == "tanh" else (0, 1))
    x, labels = images(2, size, channels)
    x = low + (high - low) * x
    output = model(x, labels)
    assert output.reconstruction.shape == x.shape
    assert low < output.reconstruction.min() < output.reconstruction.max() < high
    model.loss(output, x).total.backward()
    assert all(p.grad.isfinite().all() and p.grad.any() for p in model.parameters())
    new = model.sample(3, torch.tensor([0, 1, 2]))
    assert new.shape == (3, channels, size, size)
    assert low < new.min() < new.max() < high


@pytest.mark.parametrize("kind", vae.MODELS)
def test_the_terms_of_the_objective(vgg16, kind):
    model = made(kind, vgg16)
    x, labels = images()
    output = model.eval()(x, labels)
    back = output.reconstruction
    expected = {
        "vae": {"mse": (1.0, (back - x).square().mean())},
        "msssim": {"ms_ssim_loss": (1.0, 1 - ms_ssim(back, x, levels=2))},
        "dfc": {"vgg_loss": (1.0, VGGLoss({"relu1_1": 1.0}, weights=vgg16)(back, x))},
        "cvae": {
            "mse": (1.0, (back - x).square().mean()),
            "ssim_loss": (0.05, 1 - ssim(back, x)),
        },
    }[kind]
    expected["kl"] = (model.weights["kl"], vae.kl_divergence(output.mu, output.logvar))
    loss = model.loss(output, x)
    assert list(loss.terms) == list(expected)
    for name, (_, term) in expected.items():
        torch.testing.assert_close(loss.terms[name], term)
    total = sum(weight * term for weight, term in expected.values())
    torch.testing.assert_close(loss.total, total)
    assert loss.terms["kl"] > 0


def test_the_equal_weights_of_the_el_vae(vgg16):
    model = made("msssim", vgg16, level_weights=(1, 1))
    x, _ = images()
    back = model.generate(x)
    expected = 1 - ms_ssim(back, x, weights=(1, 1), levels=2)
    torch.testing.assert_close(model.losses["ms_ssim_loss"](back, x), expected)


def test_l1_takes_the_rest_of_the_weight(vgg16):
    model = made("msssim", vgg16, ms_ssim_weight=0.75, level_weights=(1, 2))
    x, _ = images()
    loss = model.loss(model.eval()(x), x)
    assert list(loss.terms) == ["l1_ms_ssim_loss", "kl"]
    back = model.generate(x)
    ms_ssim_loss = 1 - ms_ssim(back, x, weights=(1, 2), levels=2)
    expected = 0.25 * (back - x).abs().mean() + 0.75 * ms_ssim_loss
    torch.testing.assert_close(loss.terms["l1_ms_ssim_loss"], expected)
    assert (back - x).abs().mean() > 0.05


@pytest.mark.parametrize("kind", vae.MODELS)
def test_the_losses_know_the_range(vgg16, kind):
    x, y = images()[0][:2].split(1)
    unit = made(kind, vgg16)
    wide = made(kind, vgg16, output_activation="tanh")
    for name in unit.losses:
        torch.testing.assert_close(
            wide.losses[name](2 * x - 1, 2 * y - 1), unit.losses[name](x, y), rtol=1e-4, atol=1e-6
        )


@pytest.mark.parametrize(
    ("options", "terms", "skipped"),
    [
        ({"alpha": 0}, ["ssim_loss", "kl"], "mse_loss"),
        ({"beta": 0}, ["mse", "kl"], "ssim"),
        ({"kl_weight": 0}, ["mse", "ssim_loss"], "kl_divergence"),
    ],
)
def test_a_term_with_weight_zero_is_not_computed(monkeypatch, options, terms, skipped):
    def never(*args, **kwargs):
        raise AssertionError(f"{skipped} was computed")

    owner, name = {
        "mse_loss": (vae.functional, "mse_loss"),
        "ssim": (_evaluator, "evaluate"),
        "kl_divergence": (vae, "kl_divergence"),
    }[skipped]
    monkeypatch.setattr(owner, name, never)
    model = made("cvae", None, **options)
    x, labels = images()
    assert list(model.loss(model(x, labels), x).terms) == terms
    whole = made("cvae", None)
    output = whole(x, labels)
    with pytest.raises(AssertionError, match=skipped):
        whole.loss(output, x)


def test_a_label_changes_the_encoding_and_the_decoding():
    model = made("cvae", None)
    x, _ = images()
    zeros, ones = torch.zeros(6, dtype=int), torch.ones(6, dtype=int)
    assert not torch.equal(model.encode(x, zeros)[0], model.encode(x, ones)[0])
    z = torch.zeros(6, 8)
    assert not torch.equal(model.decode(z, zeros), model.decode(z, ones))
    with pytest.raises(ValueError, match="3 classes: pass labels, a tensor of 6 numbers from 0 to"):
        model(x)


def test_kl_divergence():
    zero = torch.zeros(3, 5)
    assert vae.kl_divergence(zero, zero) == 0
    mu, logvar = torch.randn(2, 4, 6, generator=torch.Generator().manual_seed(0))
    posterior = torch.distributions.Normal(mu, (logvar / 2).exp())
    prior = torch.distributions.Normal(0.0, 1.0)
    expected = torch.distributions.kl_divergence(posterior, prior).sum(1).mean()
    torch.testing.assert_close(vae.kl_divergence(mu, logvar), expected)
    assert expected > 0


def test_the_posterior_is_sampled_in_training_alone():
    model = made("vae", None)
    x, _ = images()
    assert not torch.equal(model(x).reconstruction, model(x).reconstruction)
    noise = torch.randn(6, 8)
    assert torch.equal(model(x, noise=noise).reconstruction, model(x, noise=noise).reconstruction)
    assert torch.equal(model.generate(x), model.decode(model.encode(x)[0]))
    assert torch.equal(model.eval()(x).reconstruction, model.generate(x))
    mu, logvar = torch.full((20000, 1), 3.0), torch.full((20000, 1), 2 * torch.tensor(0.5).log())
    samples = model.reparameterize(mu, logvar)
    assert samples.mean().item() == pytest.approx(3, abs=0.02)
    assert samples.std().item() == pytest.approx(0.5, abs=0.02)


def test_half_precision_stops_at_the_posterior_and_the_images():
    model = made("vae", None)
    x, _ = images()
    with torch.autocast("cpu", torch.bfloat16):
        output = model(x)
        loss = model.loss(output, x)
    assert {tensor.dtype for tensor in (*output, loss.total)} == {torch.float32}


@pytest.mark.parametrize(
    ("kind", "options", "text"),
    [
        ("vae", {"image_size": 50}, "image_size=50 is not a multiple of 4"),
        ("vae", {"output_activation": "relu"}, "'relu': pass one of sigmoid, tanh"),
        ("vae", {"kl_weight": -1.0}, "the weight of kl is -1.0: pass a number from 0 upwards"),
        (
            "msssim",
            {"level_weights": [0, 0, 0, 0, 1]},
            "leave no weight to the 2 levels that fit into 32x32 pixels: pass a positive one among",
        ),
        ("msssim", {"ms_ssim_weight": 1.5}, "weight=1.5: pass the share of the structural term"),
        ("cvae", {"num_classes": 0}, "num_classes=0: pass 1 or more"),
        ("cvae", {"alpha": 0, "beta": 0}, "compare nothing: pass a positive one"),
        ("cvae", {"beta": float("nan")}, "the weight of ssim_loss is nan"),
    ],
)
def test_options_of_no_use(kind, options, text):
    with pytest.raises(ValueError, match=text):
        made(kind, None, **options)


def test_dfc_needs_no_weights_before_its_loss(monkeypatch):
    def unreachable(*args, **kwargs):
        raise OSError("no network")

    monkeypatch.setattr(torch.hub, "download_url_to_file", unreachable)
    monkeypatch.setattr(torch.hub, "get_dir", lambda: "/nowhere")
    model = vae.DFCVAE(**SMALL)
    assert model(images()[0]).reconstruction.shape == (6, 3, 32, 32)
    with pytest.raises(RuntimeError, match=r"vgg19.*/nowhere/checkpoints/vgg19"):
        model.load()
    assert list(vae.DFCVAE(layers="dfc-345", **SMALL).features.layers) == [
        f"relu{block}_1" for block in (3, 4, 5)
    ]


def test_the_frozen_network_is_no_part_of_the_model(vgg16):
    model = made("dfc", vgg16)
    assert model.state_dict().keys() == made("vae", None).state_dict().keys()


def test_held_out_photos_are_kept_apart():
    assert not set(data.TRAINING_PHOTOS) & set(data.HELD_OUT_PHOTOS)
    photos = data.load("photos", data.Form())
    held_out = torch.stack([photos.held_out[i][0] for i in range(len(photos.held_out))])
    assert photos.training[0][0].shape == held_out.shape[1:] == (3, 64, 64)
    assert len(photos.training) > 4000
    assert 0 <= held_out.min() < 0.1 < 0.9 < held_out.max() <= 1
    (image, label), (mirrored, same) = photos.training[6], photos.training[7]
    assert torch.equal(mirrored, image.flip(-1))
    assert label == same
    # The losses differ in colours, so the demo shows patches that have them.
    shown = held_out[list(demo.SHOWN)]
    assert ((shown.amax(1) - shown.amin(1)).mean((1, 2)) > 0.2).all()
    # No held-out patch is near any training patch: the closest differs by more than a shade.
    everything, labels = photos.training.images.tensors
    assert labels.unique().tolist() == list(range(5))
    assert photos.classes == ["256 px", "224 px", "192 px", "160 px", "128 px"]
    flat, candidates = held_out[::8].flatten(1), everything.flatten(1)
    assert torch.cdist(flat, candidates).min() / flat.shape[1] ** 0.5 > 0.02


def test_metrics():
    class Shifted(vae.VanillaVAE):
        def generate(self, x, labels=None):
            return x + 0.2

    x, labels = images(5, 64)
    model = Shifted(output_activation="tanh")
    metrics = train.evaluate(model, TensorDataset(2 * x - 1, labels), batch_size=2)
    assert metrics.psnr == pytest.approx(20, abs=1e-3)
    options = {"data_range": (-1, 1)}
    shifted = 2 * x - 0.8
    assert metrics.ssim == pytest.approx(ssim(shifted, 2 * x - 1, **options).item(), abs=1e-6)
    expected = ms_ssim(shifted, 2 * x - 1, levels=3, **options)
    assert metrics.ms_ssim == pytest.approx(expected.item(), abs=1e-6)


@pytest.mark.parametrize(
    ("flags", "text"),
    [
        (["demo", "--steps", "0"], "0 is not positive: pass 1 or more"),
        (["demo", "--batch-size", "-3"], "-3 is not positive"),
        (["demo", "--steps", "many"], "invalid positive value: 'many'"),
        (["demo", "--seed", "-1"], "-1 is negative: pass 0 or more"),
        *(
            ([*flags, str(2**64)], f"{2**64} is too large: pass at most {2**64 - 1}")
            for flags in (
                ["demo", "--seed"],
                ["train", "--model", "vae", "--seed"],
                ["sample", "--checkpoint", "x", "--out", "x", "--seed"],
            )
        ),
        (["demo", "--out", __file__], "is a file: pass a folder"),
        (["train", "--out", "x"], "the following arguments are required: --model"),
        (["train", "--model", "gan", "--out", "x"], "invalid choice: 'gan'"),
        (["train", "--model", "vae", "--out", "x", "--lr", "0"], "0 is not positive"),
        (["train", "--model", "vae", "--out", "x", "--channels", "4"], "choose from 1, 3"),
    ],
)
def test_bad_flags(capsys, flags, text):
    with pytest.raises(SystemExit) as caught:
        __main__.main(flags)
    assert caught.value.code == 2
    assert text in capsys.readouterr().err


def test_a_folder_that_cannot_be_written_is_refused_first(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(demo, "load", lambda *args: pytest.fail("loads data"))
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file").touch()
    assert __main__.main(["demo", "--out", "file/out"]) == 2
    message = "error: file/out cannot be written to (Not a directory): pass another folder\n"
    assert capsys.readouterr().err == message


def test_a_missing_extra_is_named(monkeypatch, capsys):
    def missing(options):
        raise ModuleNotFoundError("No module named 'tensorboard'", name="tensorboard")

    monkeypatch.setitem(__main__.COMMANDS, "demo", missing)
    assert __main__.main(["demo"]) == 2
    message = 'tensorboard is not installed: pip install "perceptual-losses[examples]"'
    assert message in capsys.readouterr().err


def test_every_command_has_help(capsys):
    for command in __main__.COMMANDS:
        with pytest.raises(SystemExit) as caught:
            __main__.main([command, "--help"])
        assert caught.value.code == 0
        printed = " ".join(capsys.readouterr().out.split())
        assert "SUPPRESS" not in printed
        assert "None" not in printed
        assert ("folder to write to; else runs/MODEL" in printed) is (command == "train")
