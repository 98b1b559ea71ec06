"""The example's training: what it computes, in one process and in two, killed and resumed."""

import json
import os
import signal
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
import torch
from PIL import Image
from torch.utils.data import TensorDataset

from perceptual_losses.examples import __main__, checkpoints, data, train

SMALL = {"hidden_dims": (4, 8), "latent_dim": 4}
OPTIONS = {
    "vae": {},
    "msssim": {},
    "dfc": {"layers": {"relu1_1": 1.0}, "weights": None},
    "cvae": {},
}
RANDOM_FEATURES = pytest.mark.filterwarnings("ignore:the features of vgg")


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


@RANDOM_FEATURES
@pytest.mark.parametrize("activation", ["sigmoid", "tanh"])
@pytest.mark.parametrize("model", OPTIONS)
def test_a_few_steps_lower_the_loss(tmp_path, model, activation):
    run = training(tmp_path, model, activation=activation, steps=60, learning_rate=5e-3)
    totals = [loss.total.item() for _, loss in run.updates()]
    assert sum(totals[-5:]) < 0.8 * sum(totals[:5])


@RANDOM_FEATURES
@pytest.mark.parametrize("model", OPTIONS)
def test_resumed_equals_uninterrupted_bit_for_bit(tmp_path, model):
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    metrics = training(whole, model).run()
    training(parts, model, steps=4).run()
    resumed = training(parts, model, existing="resume")
    assert resumed.first == 4
    assert resumed.run() == metrics
    a, b = (checkpoints.load(out / "checkpoint.pt") for out in (whole, parts))
    assert same(a, b)
    assert a["step"] == 6
    assert lines(whole) == [row for row in lines(parts) if row["step"] != 4]
    assert [row["step"] for row in lines(whole)] == [3, 6]
    assert lines(whole)[-1] == {
        "step": 6,
        **metrics._asdict(),
        "training": lines(whole)[-1]["training"],
    }


def test_the_seed_decides(tmp_path):
    def after(name, seed):
        training(tmp_path / name, seed=seed, steps=2).run()
        return checkpoints.load(tmp_path / name / "checkpoint.pt")["weights"]

    first = after("a", 1)
    assert same(first, after("b", 1))
    other = after("c", 2)
    assert not torch.equal(first["encoder.0.weight"], other["encoder.0.weight"])


def test_each_image_comes_once_an_epoch():
    shares = list(train.Shares(10, 4, 0, range(10), slice(0, 4)))
    drawn = [i for share in shares for i in share]
    epochs = [drawn[i : i + 10] for i in range(0, 40, 10)]
    assert all(sorted(epoch) == list(range(10)) for epoch in epochs)
    assert len({tuple(epoch) for epoch in epochs}) == 4
    halves = [list(train.Shares(10, 4, 0, range(10), slice(2 * i, 2 * i + 2))) for i in range(2)]
    assert [a + b for a, b in zip(*halves, strict=True)] == shares
    assert list(train.Shares(10, 4, 0, range(7, 10), slice(0, 4))) == shares[7:]


def test_a_training_killed_while_it_saves_loses_nothing(tmp_path, monkeypatch):
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    training(whole).run()
    replace = os.replace

    class KilledError(BaseException):
        pass

    def dies(source, target):
        saved.append(target)
        if len(saved) == 2:
            # As far as the second checkpoint is written, and no further.
            Path(source).write_bytes(Path(source).read_bytes()[:1000])
            raise KilledError
        replace(source, target)

    saved = []
    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", dies)
        with pytest.raises(KilledError):
            training(killed).run()
    assert (killed / "checkpoint.partial").stat().st_size == 1000
    assert checkpoints.load(killed / "checkpoint.pt")["step"] == 2
    # The evaluation of step 3 has been written, though it comes after the checkpoint, and a line
    # of which the disk has a part.
    assert [row["step"] for row in lines(killed)] == [3]
    with (killed / "metrics.jsonl").open("a") as file:
        file.write('{"step": 4, "ps')
    training(killed, existing="resume").run()
    assert same(*(checkpoints.load(out / "checkpoint.pt") for out in (whole, killed)))
    assert lines(killed) == lines(whole)
    assert not (killed / "checkpoint.partial").exists()


PROGRAM = """
import signal
import sys
sys.path[:0] = {paths!r}
from pathlib import Path
import torch
from test_examples_training import training
from perceptual_losses.examples import train

torch.set_num_threads(1)
"""


def program(text):
    return PROGRAM.format(paths=[str(Path(__file__).parents[i]) for i in (0, 2)]) + textwrap.dedent(
        text
    )


def test_a_training_killed_at_any_moment_resumes(tmp_path):
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    text = program(
        """
        run = training(Path(sys.argv[1]), steps=100_000)
        update = run.updates
        def updates():
            for step, loss in update():
                yield step, loss
                if step == 7:
                    print("seven", flush=True)
                if step == 40:
                    signal.pause()
        run.updates = updates
        run.run()
        """
    )
    process = subprocess.Popen(
        [sys.executable, "-c", text, killed], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
    )
    assert process.stdout.readline() == b"seven\n"
    process.send_signal(signal.SIGKILL)
    process.wait()
    process.stdout.close()
    step = checkpoints.load(killed / "checkpoint.pt")["step"]
    assert step >= 6
    run = training(killed, existing="resume", steps=step + 2 - step % 2)
    assert run.first == step
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        run.run()
        training(whole, steps=run.steps).run()
    finally:
        torch.set_num_threads(threads)
    assert same(*(checkpoints.load(out / "checkpoint.pt") for out in (whole, killed)))
    every_third = [[row for row in lines(out) if row["step"] % 3 == 0] for out in (whole, killed)]
    assert every_third[0] == every_third[1]


def test_two_processes_compute_what_one_does(tmp_path):
    script = tmp_path / "script.py"
    script.write_text(
        program(
            """
            with train.processes():
                for model in ("msssim", "cvae"):
                    training(Path(sys.argv[1]) / model, model).run()
            """
        )
    )
    torchrun = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    done = subprocess.run(
        [sys.executable, *torchrun, script, tmp_path / "two"],
        capture_output=True,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    assert done.returncode == 0, done.stderr
    for model in ("msssim", "cvae"):
        training(tmp_path / "one" / model, model).run()
        one, two = (
            checkpoints.load(tmp_path / n / model / "checkpoint.pt") for n in ("one", "two")
        )
        assert one["step"] == two["step"]
        torch.testing.assert_close(one["weights"], two["weights"], rtol=1e-4, atol=1e-5)
        rows = zip(lines(tmp_path / "one" / model), lines(tmp_path / "two" / model), strict=True)
        for row, other in rows:
            assert row["training"] == pytest.approx(other["training"], rel=1e-4)
            assert row["psnr"] == pytest.approx(other["psnr"], rel=1e-4)


def test_a_batch_that_the_processes_cannot_share(tmp_path, monkeypatch):
    monkeypatch.setattr(train.distributed, "is_initialized", lambda: True)
    monkeypatch.setattr(train.distributed, "get_rank", lambda: 0)
    monkeypatch.setattr(train.distributed, "get_world_size", lambda: 3)
    with pytest.raises(ValueError, match="batch_size=4 is not a multiple of the 3 processes"):
        training(tmp_path)


def test_trainings_that_cannot_go_on(tmp_path):
    training(tmp_path, steps=2).run()
    with pytest.raises(ValueError, match="has a training of 2 steps: pass --resume to go on"):
        training(tmp_path)
    with pytest.raises(
        ValueError, match=r"batch_size was 4, not 2, learning_rate was 0.001, not 0.1; pass the"
    ):
        training(tmp_path, batch_size=2, learning_rate=0.1, existing="resume")
    assert training(tmp_path, existing="replace").first == 0
    with pytest.raises(ValueError, match=r"values in \(-1.0, 1.0\) and the data's in \(0.0, 1.0\)"):
        train.Training(
            "vae", {**SMALL, "output_activation": "tanh"}, shapes(), tmp_path / "b", steps=1
        )


def test_folders_that_cannot_be_trained_in(tmp_path):
    other = {"step": 3, "loss": 0.5}
    torch.save(other, tmp_path / "checkpoint.pt")
    for existing in ("refuse", "resume"):
        with pytest.raises(ValueError, match="no checkpoint of a training: pass another --out"):
            training(tmp_path, existing=existing)
    (tmp_path / "checkpoint.pt").unlink()
    for text in (json.dumps(other), "[]", "no JSON"):
        (tmp_path / "metrics.jsonl").write_text(f"{text}\n")
        for existing in ("refuse", "resume"):
            with pytest.raises(
                ValueError, match="metrics.jsonl has lines that are of no training: pass another"
            ):
                training(tmp_path, existing=existing)
    assert (tmp_path / "metrics.jsonl").read_text() == "no JSON\n"
    with pytest.raises(ValueError, match=r"metrics.jsonl/out cannot be written to \(Not a direct"):
        training(tmp_path / "metrics.jsonl" / "out")
    (tmp_path / "metrics.jsonl").write_bytes(b"\xff\n")
    training(tmp_path, existing="replace", steps=1).run()
    assert [row["step"] for row in lines(tmp_path)] == [1]


@pytest.mark.skipif(sys.platform != "linux", reason="/proc is there alone")
def test_a_folder_that_takes_no_files():
    with pytest.raises(ValueError, match="/proc cannot be written to "):
        training(Path("/proc"))


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
    made, again = tmp_path / "made.png", tmp_path / "again.png"
    for path in (made, again):
        assert command("sample", "--checkpoint", checkpoint, "--columns", 3, "--out", path) == 0
    assert size(made) == (3 * 18 + 2, 2 * 18 + 2)
    assert made.read_bytes() == again.read_bytes()
    back = tmp_path / "back.png"
    reconstruct = ["reconstruct", "--checkpoint", checkpoint, "--columns", 2, "--out", back]
    assert command(*reconstruct) == 0
    assert size(back) == (2 * 18 + 2, 2 * 18 + 2)
    assert command(*reconstruct, "--data", pictures / "low") == 2
    assert "the model knows the classes ['high', 'low']" in capsys.readouterr().err


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
        (broken, "cannot be read ("),
        (weights, "is no checkpoint of a training: pass a checkpoint.pt that"),
        (tensor, "is no checkpoint of a training: pass a checkpoint.pt that"),
    ):
        for name in ("sample", "reconstruct"):
            assert command(name, "--checkpoint", path, "--out", tmp_path / "x.png") == 2
            said = capsys.readouterr().err
            assert said.startswith(f"error: {path} {text}")
            assert said.count("\n") == 1
    assert not (tmp_path / "x.png").exists()
