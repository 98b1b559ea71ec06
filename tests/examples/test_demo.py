"""The demo: its files, its pictures and its verdict."""

import json

import matplotlib.image
import pytest
from example_training import images
from torch.utils.data import TensorDataset

from perceptual_losses import ssim
from perceptual_losses.examples import __main__, data, demo, vae
from perceptual_losses.examples.evaluation import Metrics


def test_demo(tmp_path, monkeypatch, capsys):
    held_out = TensorDataset(*images(6, 64))
    photos = data.Data("photos", data.Form(), ["a", "b", "c"], data.Mirrored(held_out), held_out)
    monkeypatch.setattr(demo, "load", lambda *args: photos)
    monkeypatch.setattr(demo, "SHOWN", (5, 2))
    out = tmp_path / "deep" / "demo"
    (out / "MSE").mkdir(parents=True)
    for name in ("checkpoint.pt", "metrics.jsonl"):
        (out / "MSE" / name).write_text("of another demo")
    code = __main__.main(["demo", "--steps", "21", "--batch-size", "2", "--out", str(out)])
    record = json.loads((out / "metrics.json").read_text())
    captured = capsys.readouterr()
    printed = captured.out
    assert list(record["metrics"]) == ["MSE", "MS-SSIM", "L1 + MS-SSIM"]
    assert record["config"]["steps"] == 21
    assert record["config"]["batch_size"] == 2
    for name, values in record["metrics"].items():
        assert name in printed
        assert f"{values['psnr']:.2f}" in printed
        assert f"{values['ms_ssim']:.4f}" in printed
        rows = record["history"][name]
        assert rows[-1] == {"step": 21, **values, "training": rows[-1]["training"]}
        assert [row["step"] for row in rows] == [20, 21]
    assert code == (1 if "NOT as expected after 21 steps" in captured.err else 0)
    for picture in ("reconstructions.png", "curves.png"):
        pixels = matplotlib.image.imread(out / picture)[..., :3]
        assert min(pixels.shape[:2]) > 400
        assert pixels.std() > 0.05


class Shifted(vae.VanillaVAE):
    """A model of which the reconstructions are too bright."""

    def generate(self, x, labels=None):
        return x + 0.2


class Exact(vae.VanillaVAE):
    """A model of which the reconstructions are the images."""

    def generate(self, x, labels=None):
        return x


def test_each_picture_has_its_ssim():
    targets, labels = images(3, 64)
    held_out = TensorDataset(0.8 * targets, labels)
    photos = data.Data("photos", data.Form(), ["a", "b", "c"], held_out, held_out)
    models = {"shifted": Shifted(), "exact": Exact()}
    panels = demo.plot_reconstructions(models, photos, rows=2).axes
    titles = [panel.get_title() for panel in panels]
    assert titles == ["held out", "shifted", "exact", "", "", ""]
    shown = 0.8 * targets[[0, 2]]  # The first and the last.
    first, last = ssim(shown + 0.2, shown, reduction="none").tolist()
    assert abs(first - last) > 0.001
    captions = [panel.get_xlabel() for panel in panels]
    assert captions == [
        *("", f"SSIM {first:.3f}", "SSIM 1.000"),
        *("", f"SSIM {last:.3f}", "SSIM 1.000"),
    ]
    target, shifted, exact = (panel.images[0].get_array() for panel in panels[3:])
    assert (target == shown[1].permute(1, 2, 0).numpy()).all()
    assert (exact == target).all()
    assert (shifted - target).mean() == pytest.approx(0.2, abs=0.001)


@pytest.mark.parametrize(
    ("ssim", "ms_ssim", "of_mix", "sentences"),
    [
        (0.7, 0.9, 0.85, []),
        (0.6, 0.9, 0.85, ["SSIM of MS-SSIM is not above that of MSE"]),
        (0.7, 0.8, 0.85, ["MS-SSIM of MS-SSIM is not above that of MSE"]),
        (0.7, 0.9, 0.8, ["MS-SSIM of L1 + MS-SSIM is not above that of MSE"]),
    ],
)
def test_the_verdict(monkeypatch, capsys, tmp_path, ssim, ms_ssim, of_mix, sentences):
    metrics = {
        demo.MSE: Metrics(26.0, 0.6, 0.8),
        demo.MS_SSIM: Metrics(20.0, ssim, ms_ssim),
        demo.MIX: Metrics(25.5, 0.55, of_mix),
    }
    monkeypatch.setattr(demo, "demo", lambda **options: metrics)
    code = __main__.main(["demo", "--steps", "7", "--out", str(tmp_path)])
    captured = capsys.readouterr()
    assert code == (1 if sentences else 0)
    assert captured.err.splitlines() == [
        f"NOT as expected after 7 steps: {sentence}." for sentence in sentences
    ]
    assert "MSE                 26.00*" in captured.out
    assert "L1 + MS-SSIM        25.50      0.5500 " in captured.out
    behind = f"loses 0.50 of PSNR (dB), {max(ssim, 0.6) - 0.55:.4f} of SSIM"
    assert f"L1 + MS-SSIM  {behind}" in captured.out
