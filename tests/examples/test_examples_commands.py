"""The example's commands: what they train, write and refuse."""

import inspect
import re

import pytest
import torch
from example_training import RANDOM_FEATURES, lines, shapes
from PIL import Image

from perceptual_losses.examples import __main__, checkpoints, train, vae


@pytest.fixture
def pictures(tmp_path):
    """A folder of images in two classes."""
    x, labels = shapes().held_out.tensors
    for i, (image, label) in enumerate(zip(x, labels, strict=True)):
        folder = tmp_path / "pictures" / ["high", "low"][label]
        folder.mkdir(parents=True, exist_ok=True)
        grey = (255 * image[0]).round().to(torch.uint8).numpy()
        Image.fromarray(grey).save(folder / f"{i}.png")
    return tmp_path / "pictures"


def command(*flags):
    return __main__.main([str(flag) for flag in flags])


def test_the_commands(tmp_path, pictures, capsys):
    out, checkpoint = tmp_path / "out", tmp_path / "out" / "checkpoint.pt"
    flags = ["--data", pictures, "--image-size", 16, "--batch-size", 4, "--channels", 1]
    flags += ["--output-activation", "tanh", "--alpha", 2, "--beta", 0.5, "--kl-weight", 0.001]
    go = ["train", "--model", "cvae", *flags, "--eval-every", 2, "--out", out]
    assert command(*go, "--steps", 3) == 0
    assert f"pictures are in {out}" in capsys.readouterr().out
    assert [row["step"] for row in lines(out)] == [2, 3]
    assert set(lines(out)[0]["training"]) == {"total", "mse", "ssim_loss", "kl"}
    terms = lines(out)[0]["training"]
    expected = 2 * terms["mse"] + 0.5 * terms["ssim_loss"] + 0.001 * terms["kl"]
    assert terms["total"] == pytest.approx(expected, rel=1e-5)
    assert command(*go, "--steps", 5) == 2
    assert "pass --resume to go on" in capsys.readouterr().err
    assert command(*go, "--steps", 5, "--resume") == 0
    assert checkpoints.load(checkpoint)["step"] == 5
    capsys.readouterr()
    assert command(*go, "--steps", 4, "--resume") == 0
    said = f"The training in {out} has had 5 steps, and --steps is 4: pass more to go on.\n"
    assert capsys.readouterr().out.startswith(said)
    assert checkpoints.load(checkpoint)["step"] == 5
    assert len(list(out.glob("events.out.tfevents.*"))) == 2

    def size(path):
        with Image.open(path) as image:
            return image.size

    for name, cells in (
        ("reconstructions", (8, 2)),
        ("samples", (8, 2)),
        ("interpolations", (8, 4)),
    ):
        assert size(out / f"{name}.png") == tuple(18 * count + 2 for count in cells)
    made, again = tmp_path / "new" / "made.png", tmp_path / "again.png"
    for path in (made, again):
        assert command("sample", "--checkpoint", checkpoint, "--columns", 3, "--out", path) == 0
    assert capsys.readouterr().out == "".join(
        f"6 new images are in {path}.\n" for path in (made, again)
    )
    assert size(made) == (3 * 18 + 2, 2 * 18 + 2)
    assert made.read_bytes() == again.read_bytes()
    back = tmp_path / "back.png"
    reconstruct = ["reconstruct", "--checkpoint", checkpoint, "--columns", 2, "--out", back]
    assert command(*reconstruct) == 0
    assert size(back) == (18 + 2, 2 * 18 + 2)  # One image is held out.
    assert capsys.readouterr().out == (
        f"Images of {pictures} and reconstructions, 1 of each, are in {back}.\n"
    )
    assert command(*reconstruct, "--data", pictures / "low") == 2
    assert "the model knows the classes ['high', 'low']" in capsys.readouterr().err


def test_what_a_model_makes_of_one_picture(tmp_path, pictures, capsys):
    out, checkpoint = tmp_path / "out", tmp_path / "out" / "checkpoint.pt"
    flags = ["--data", pictures, "--image-size", 16, "--batch-size", 4, "--out", out]
    assert command("train", "--model", "vae", *flags, "--steps", 1, "--background", "black") == 0
    assert checkpoints.load(checkpoint)["reading"] == {"background": "black", "data_range": None}
    one, back = tmp_path / "one.png", tmp_path / "new" / "back.png"
    Image.new("RGBA", (20, 16)).save(one)
    go = ["reconstruct", "--checkpoint", checkpoint, "--data", one, "--out", back]
    for more, shade in (([], 0), (["--background", "white"], 255)):
        assert command(*go, *more) == 0
        with Image.open(back) as image:
            assert image.size == (18 + 2, 2 * 18 + 2)
            assert image.getpixel((9, 9)) == (shade,) * 3
    one.write_bytes(b"")
    assert command(*go) == 2
    assert f"error: {one} cannot be used: pass another image, or a" in capsys.readouterr().err
    assert command("train", "--model", "vae", *flags, "--resume", "--steps", 2) == 2
    said = "reading was {'data_range': None, 'background': 'black'}, not {'data_range': None,"
    assert said in capsys.readouterr().err


@pytest.mark.parametrize(
    ("error", "code", "text"),
    [
        (train.StoppedError("stopped after step 1"), 130, "stopped after step 1"),
        (train.DivergedError("not finite at step 1"), 1, "error: not finite at step 1"),
    ],
)
def test_trainings_that_end_early(tmp_path, pictures, monkeypatch, capsys, error, code, text):
    def ends(self):
        raise error

    monkeypatch.setattr(train.Training, "run", ends)
    flags = ["--data", pictures, "--image-size", 16, "--batch-size", 2, "--out", tmp_path / "out"]
    assert command("train", "--model", "vae", *flags) == code
    captured = capsys.readouterr()
    assert captured.err == f"{text}\n"
    assert captured.out == ""


def test_what_is_trained_by_default_and_with_the_largest_seed(
    tmp_path, pictures, monkeypatch, capsys
):
    monkeypatch.chdir(tmp_path)
    go = ["train", "--model", "msssim", "--data", pictures, "--image-size", 16, "--batch-size", 2]
    go += ["--seed", 2**64 - 1]
    assert command(*go, "--steps", 1) == 0
    assert capsys.readouterr().out.endswith("and pictures are in runs/msssim.\n")
    assert command(*go, "--steps", 2, "--resume") == 0
    checkpoint = checkpoints.load(tmp_path / "runs" / "msssim" / "checkpoint.pt")
    assert checkpoint.keys() == checkpoints.KEYS
    assert (checkpoint["step"], checkpoint["seed"]) == (2, 2**64 - 1)


@RANDOM_FEATURES
def test_dfc_needs_to_be_told_of_random_weights(tmp_path, pictures, monkeypatch, capsys):
    def unreachable(*args, **kwargs):
        raise OSError("no network")

    monkeypatch.setattr(torch.hub, "download_url_to_file", unreachable)
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path / "hub"))
    flags = ["--data", pictures, "--image-size", 16, "--batch-size", 2, "--steps", 1]
    go = ["train", "--model", "dfc", *flags, "--out", tmp_path / "out"]
    assert command(*go) == 2
    said = capsys.readouterr().err
    assert "the ImageNet weights of vgg19" in said
    assert str(tmp_path / "hub" / "checkpoints") in said
    assert command(*go, "--weights", tmp_path / "absent.pth") == 2
    assert "absent.pth': there is no such file" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
    assert command(*go, "--weights", "random") == 0
    checkpoint = tmp_path / "out" / "checkpoint.pt"
    assert not any("features" in name for name in checkpoints.load(checkpoint)["weights"])
    assert command("sample", "--checkpoint", checkpoint, "--out", tmp_path / "made.png") == 0


@pytest.mark.parametrize(
    ("flags", "text"),
    [
        (["--model", "vae", "--alpha", "1"], "--alpha is for --model cvae, not vae"),
        (["--model", "cvae", "--level-weights", "1"], "--level-weights is for --model msssim"),
        (["--model", "vae", "--image-size", "12"], "image_size=12 is not a multiple of 16"),
        (["--model", "cvae", "--alpha", "-1"], "the weight of mse is -1.0"),
        (["--model", "msssim", "--level-weights", "0", "1"], "leave no weight to the 1 levels"),
    ],
)
def test_flags_that_do_not_go_together(tmp_path, pictures, capsys, flags, text):
    out = tmp_path / "out"
    assert command("train", "--data", pictures, "--image-size", 16, *flags, "--out", out) == 2
    assert text in capsys.readouterr().err
    assert not out.exists()


def test_checkpoints_of_no_use(tmp_path, capsys):
    broken = tmp_path / "broken.pt"
    broken.write_bytes(b"not a checkpoint")
    weights, tensor = tmp_path / "weights.pt", tmp_path / "tensor.pt"
    torch.save(torch.nn.Linear(2, 2).state_dict(), weights)
    torch.save(torch.zeros(2), tensor)
    for path, text in (
        (tmp_path / "absent.pt", "is no file"),
        (
            broken,
            "cannot be read as tensors and plain values only, because it is of another kind or not "
            "complete: pass a checkpoint.pt that `train` has written\n",
        ),
        (weights, "is no checkpoint of a training: pass a checkpoint.pt that"),
        (tensor, "is no checkpoint of a training: pass a checkpoint.pt that"),
    ):
        for name in ("sample", "reconstruct"):
            assert command(name, "--checkpoint", path, "--out", tmp_path / "x.png") == 2
            said = capsys.readouterr().err
            assert said.startswith(f"error: {path} {text}")
            assert said.count("\n") == 1
    assert not (tmp_path / "x.png").exists()


def test_the_page_has_every_option_with_its_default(root, capsys):
    page = (root / "docs" / "training.md").read_text()
    shown = dict(re.findall(r"^\| `(--[\w-]+)` \| ?(.*?) ?\| ", page, re.MULTILINE))
    with pytest.raises(SystemExit):
        command("train", "--help")
    listed = re.findall(r"^  (--[\w-]+)", capsys.readouterr().out, re.MULTILINE)
    assert list(shown) == listed
    defaults = vars(__main__.parse_arguments(["train", "--model", "vae"]))
    for name, value in defaults.items():
        if name not in ("command", "model", "resume"):
            assert shown["--" + name.replace("_", "-")] == f"`{value}`"
    assert (shown["--alpha"], shown["--beta"]) == ("`1`", "`0.05`")
    signature = inspect.signature(vae.ConditionalVAE).parameters
    assert [signature[name].default for name in ("alpha", "beta")] == [1, 0.05]
    assert f"an epoch, {train.EVALUATE_EVERY} or more" == shown["--eval-every"]
