"""The example: models, data, training and the demo, end to end."""

import json

import matplotlib.image
import pytest
import torch

from perceptual_losses.examples import __main__, data, demo, train, vae

SMALL = {"hidden_dims": (8, 16), "latent_dim": 8}


@pytest.fixture(scope="module")
def patches():
    return data.held_out_patches()[::16]


def made(model_class, **options):
    torch.manual_seed(0)
    return model_class(**{**SMALL, **options})


def trained(model, images, steps, batch_size=4):
    return train.train(
        model, data.Mirrored(images), images, steps=steps, batch_size=batch_size, seed=0
    )


@pytest.mark.parametrize("model_class", [vae.VanillaVAE, vae.MSSSIMVAE])
def test_a_few_steps_lower_the_loss(patches, model_class):
    model = made(model_class)
    history = trained(model, patches, 40)
    first, *_, last = history.training
    assert last["total"] < 0.95 * first["total"]
    for row in history.training:
        expected = row["reconstruction"] + model.kl_weight * row["kl"]
        assert row["total"] == pytest.approx(expected, rel=1e-6)
    assert history.held_out[-1]["step"] == 40
    assert history.held_out[-1]["psnr"] > 10


@pytest.mark.parametrize("model_class", [vae.VanillaVAE, vae.MSSSIMVAE])
def test_the_same_seed_gives_the_same_numbers(patches, model_class):
    assert trained(made(model_class), patches, 5) == trained(made(model_class), patches, 5)


def test_the_terms_of_the_objective(patches):
    for model_class, options in ((vae.VanillaVAE, {}), (vae.MSSSIMVAE, {"levels": 2})):
        model = made(model_class, **options).eval()
        output = model(patches)
        terms = model.loss(output, patches)
        if model_class is vae.VanillaVAE:
            expected = (output.reconstruction - patches).square().mean()
        else:
            from perceptual_losses import ms_ssim

            expected = 1 - ms_ssim(output.reconstruction, patches, levels=2)
        torch.testing.assert_close(terms.reconstruction, expected)
        torch.testing.assert_close(
            terms.total, terms.reconstruction + model.kl_weight * terms.kl, rtol=0, atol=0
        )


def test_kl_divergence():
    zero = torch.zeros(3, 5)
    assert vae.kl_divergence(zero, zero) == 0
    mu, logvar = torch.randn(2, 4, 6, generator=torch.Generator().manual_seed(0))
    posterior = torch.distributions.Normal(mu, (logvar / 2).exp())
    prior = torch.distributions.Normal(0.0, 1.0)
    expected = torch.distributions.kl_divergence(posterior, prior).sum(1).mean()
    torch.testing.assert_close(vae.kl_divergence(mu, logvar), expected)
    assert expected > 0


def test_the_posterior_is_sampled_in_training_alone(patches):
    model = made(vae.VanillaVAE)
    assert not torch.equal(model(patches).reconstruction, model(patches).reconstruction)
    model.eval()
    output = model(patches)
    assert torch.equal(output.reconstruction, model(patches).reconstruction)
    assert torch.equal(output.reconstruction, model.decode(output.mu))
    assert 0 <= output.reconstruction.min() < output.reconstruction.max() <= 1
    mu, logvar = torch.full((20000, 1), 3.0), torch.full((20000, 1), 2 * torch.tensor(0.5).log())
    samples = model.reparameterize(mu, logvar)
    assert samples.mean().item() == pytest.approx(3, abs=0.02)
    assert samples.std().item() == pytest.approx(0.5, abs=0.02)


@pytest.mark.parametrize(("size", "channels", "levels"), [(32, 1, 2), (96, 4, 4)])
def test_other_sizes_and_channel_counts(size, channels, levels):
    hidden_dims = [4, 8, 8]
    model = vae.MSSSIMVAE(
        levels=levels, in_channels=channels, image_size=size, latent_dim=4, hidden_dims=hidden_dims
    )
    assert hidden_dims == [4, 8, 8]
    x = torch.rand(2, channels, size, size)
    output = model(x)
    assert output.reconstruction.shape == x.shape
    model.loss(output, x).total.backward()
    assert all(p.grad.isfinite().all() and p.grad.any() for p in model.parameters())


def test_a_size_that_the_strides_do_not_divide():
    with pytest.raises(ValueError, match="image_size=50 is not a multiple of 4"):
        made(vae.VanillaVAE, image_size=50)


def test_held_out_photos_are_kept_apart():
    assert not set(data.TRAINING_PHOTOS) & set(data.HELD_OUT_PHOTOS)
    training, held_out = data.training_patches(), data.held_out_patches()
    assert training[0].shape == held_out.shape[1:] == (3, 64, 64)
    assert len(training) > 4000
    assert 0 <= held_out.min() < 0.1 < 0.9 < held_out.max() <= 1
    assert torch.equal(training[7], training[6].flip(-1))
    # No held-out patch is near any training patch: the closest differs by more than a shade.
    flat, candidates = held_out[::8].flatten(1), training.images.flatten(1)
    assert torch.cdist(flat, candidates).min() / flat.shape[1] ** 0.5 > 0.02


def test_metrics(patches):
    class Shifted(vae.VanillaVAE):
        def forward(self, x):
            return vae.VAEOutput(x + 0.1, x, x)

    metrics = train.evaluate(Shifted(**SMALL), patches)
    assert metrics.psnr == pytest.approx(20, abs=1e-3)
    assert 0.5 < metrics.ssim < 1
    assert 0.5 < metrics.ms_ssim < 1


def test_demo(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(demo, "training_patches", lambda: data.Mirrored(data.held_out_patches()))
    out = tmp_path / "deep" / "demo"
    code = __main__.main(["demo", "--steps", "12", "--batch-size", "2", "--out", str(out)])
    record = json.loads((out / "metrics.json").read_text())
    printed = capsys.readouterr().out
    assert record["config"]["steps"] == 12
    assert record["config"]["batch_size"] == 2
    for name, values in record["metrics"].items():
        assert name in printed
        assert f"{values['psnr']:.2f}" in printed
        assert f"{values['ms_ssim']:.4f}" in printed
        assert record["history"][name]["held_out"][-1] == {"step": 12, **values}
        assert [row["step"] for row in record["history"][name]["training"]] == [10, 12]
    won = all(
        record["metrics"]["MS-SSIM-trained"][key] > record["metrics"]["MSE-trained"][key]
        for key in ("ssim", "ms_ssim")
    )
    assert code == (0 if won else 1)
    for picture in ("reconstructions.png", "curves.png"):
        pixels = matplotlib.image.imread(out / picture)[..., :3]
        assert min(pixels.shape[:2]) > 500
        assert pixels.std() > 0.05


@pytest.mark.parametrize(
    ("ssim", "ms_ssim", "lost"),
    [(0.7, 0.9, None), (0.5, 0.9, "SSIM"), (0.7, 0.8, "MS-SSIM"), (0.6, 0.8, "SSIM and MS-SSIM")],
)
def test_the_verdict(monkeypatch, capsys, tmp_path, ssim, ms_ssim, lost):
    metrics = {
        demo.MSE: train.Metrics(25.0, 0.6, 0.8),
        demo.MS_SSIM: train.Metrics(20.0, ssim, ms_ssim),
    }
    monkeypatch.setattr(demo, "demo", lambda **options: metrics)
    code = __main__.main(["demo", "--out", str(tmp_path)])
    captured = capsys.readouterr()
    assert "25.00*" in captured.out
    if lost is None:
        assert code == 0
        assert "won on SSIM and MS-SSIM" in captured.out
    else:
        assert code == 1
        assert f"did NOT win on {lost} after" in captured.err


@pytest.mark.parametrize(
    ("flags", "text"),
    [
        (["--steps", "0"], "0 is not positive: pass 1 or more"),
        (["--batch-size", "-3"], "-3 is not positive"),
        (["--steps", "many"], "invalid positive value: 'many'"),
        (["--out", __file__], "is a file: pass a folder"),
    ],
)
def test_bad_flags(capsys, flags, text):
    with pytest.raises(SystemExit) as caught:
        __main__.main(["demo", *flags])
    assert caught.value.code == 2
    assert text in capsys.readouterr().err
