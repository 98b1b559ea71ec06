"""The study of the example's models: what it trains, what it writes, what it says of it."""

import copy
import json

import matplotlib.image
import pytest
import torch
from torch.utils.data import TensorDataset

from benchmarks.study import __main__, study
from perceptual_losses.examples import data

CASES = {
    study.MSE: ("vae", {}, "the first"),
    study.MS_SSIM: ("msssim", {"level_weights": [1.0]}, "the second"),
}


@pytest.fixture(scope="module")
def studied(tmp_path_factory):
    """A study of seconds, with what it printed aside."""
    folder = tmp_path_factory.mktemp("study")
    x = torch.rand(6, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    images = TensorDataset(x, torch.arange(6) % 2)
    small = data.Data("small", data.Form(16), ["a", "b"], data.Mirrored(images), images)
    flags = ["--steps", "4", "--batch-size", "2", "--seeds", "3", "4"]
    flags += ["--runs", str(folder / "runs"), "--out", str(folder / "vae")]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(study, "load", lambda *args: small)
        patch.setattr(study, "CASES", CASES)
        code = __main__.main(flags)
    return folder, code


def test_the_study_writes_a_page(studied, monkeypatch, capsys):
    monkeypatch.setattr(study, "CASES", CASES)
    folder, code = studied
    results = json.loads((folder / "vae" / "results.json").read_text())
    text = (folder / "vae.md").read_text()
    assert [(run["case"], run["seed"]) for run in results["runs"]] == [
        (case, seed) for seed in (3, 4) for case in CASES
    ]
    for run in results["runs"]:
        assert [row["step"] for row in run["history"]] == [1, 2, 3, 4]
        assert run["history"][-1]["ms_ssim"] == run["metrics"]["ms_ssim"]
    assert 0 < results["cost"]["loss_ms"] < results["cost"]["step_ms"]
    assert f"{100 * results['cost']['share']:.1f} % of the step" in text.replace("\n", " ")
    for name in ("reconstructions", "curves"):
        assert f"(vae/{name}.png)" in text
        assert matplotlib.image.imread(folder / "vae" / f"{name}.png")[..., :3].std() > 0.05
    assert study.table(results) in text
    assert code == (0 if all(study.seeds_won(results)) else 1)

    (folder / "vae.md").unlink()
    flags = ["--from-results", "--out", str(folder / "vae")]
    assert __main__.main(flags) == code
    assert (folder / "vae.md").read_text() == text
    assert study.table(results) in capsys.readouterr().out


def test_what_the_page_says(studied, monkeypatch):
    monkeypatch.setattr(study, "CASES", CASES)
    results = json.loads((studied[0] / "vae" / "results.json").read_text())
    numbers = {
        (study.MSE, 3): (25.0, 0.60, 0.70),
        (study.MSE, 4): (27.0, 0.62, 0.90),
        (study.MS_SSIM, 3): (20.0, 0.70, 0.80),
        (study.MS_SSIM, 4): (22.0, 0.72, 0.85),
    }
    results = copy.deepcopy(results)
    for run in results["runs"]:
        names = ("psnr", "ssim", "ms_ssim")
        run["metrics"] = dict(zip(names, numbers[run["case"], run["seed"]], strict=True))
    assert study.seeds_won(results) == [True, False]
    rows = study.table(results).splitlines()
    assert "| MSE | **26.00 (25.00-27.00)** | 0.6100 (0.6000-0.6200) | 0.8000 (" in rows[2]
    assert "| MS-SSIM | 21.00 (20.00-22.00) | **0.7100 (0.7000-0.7200)** | **0" in rows[3]
    said = study.verdict(results)
    assert "in 1 of 2 seeds: 0.8000 and 0.7000, 0.8500 and 0.9000." in said
    assert "By the mean of PSNR (dB), from best to worst: MSE; MS-SSIM." in said
    assert "By the mean of SSIM, from best to worst: MS-SSIM; MSE." in said


def test_results_that_are_not_there(tmp_path, capsys):
    assert __main__.main(["--from-results", "--out", str(tmp_path)]) == 2
    assert "results.json" in capsys.readouterr().err


@pytest.mark.parametrize("flag", ["--out", "--runs"])
def test_a_folder_that_cannot_be_written_is_refused_first(tmp_path, monkeypatch, capsys, flag):
    monkeypatch.setattr(study, "load", lambda *args: pytest.fail("loads data"))
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file").touch()
    assert __main__.main([flag, "file/out"]) == 2
    message = "error: file/out cannot be written to (Not a directory): pass another folder\n"
    assert capsys.readouterr().err == message


def test_every_seed_is_checked(capsys):
    with pytest.raises(SystemExit) as caught:
        __main__.main(["--seeds", "0", str(2**64)])
    assert caught.value.code == 2
    assert f"{2**64} is too large: pass at most {2**64 - 1}" in capsys.readouterr().err


def test_the_command_has_help(capsys):
    with pytest.raises(SystemExit) as caught:
        __main__.main(["--help"])
    assert caught.value.code == 0
    assert "docs/vae" in capsys.readouterr().out


def test_the_cases_are_the_models():
    from perceptual_losses.examples.vae import MODELS

    assert {model for model, _, _ in study.CASES.values()} == set(MODELS)
