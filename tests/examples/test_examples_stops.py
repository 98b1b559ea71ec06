"""Trainings that are interrupted, diverge or find the disk full, and those that begin anew."""

import errno
import json
import os
import re
import signal
import threading
from pathlib import Path

import pytest
import torch
from example_training import SMALL, lines, same, shapes, training
from PIL import Image

from perceptual_losses.examples import __main__, checkpoints, processes, train

resource = pytest.importorskip("resource")


def interrupted_at(run, step):
    """The training, which gets a signal while it is in a step."""
    updates = run.updates

    def updates_with_signal():
        for done, loss in updates():
            if done == step:
                os.kill(os.getpid(), signal.SIGINT)
            yield done, loss

    run.updates = updates_with_signal
    return run


def test_an_interrupted_training_saves_its_step_and_goes_on(tmp_path):
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    training(whole, save_every=100).run()
    handlers = signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)
    text = f"stopped after step 4 of 6, which is saved in {parts}: pass --resume to go on"
    with pytest.raises(train.StoppedError, match=text):
        interrupted_at(training(parts, save_every=100), 4).run()
    assert (signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)) == handlers
    assert checkpoints.load(parts / "checkpoint.pt")["step"] == 4
    training(parts, save_every=100, existing="resume").run()
    assert same(*(checkpoints.load(out / "checkpoint.pt") for out in (whole, parts)))
    assert lines(whole) == lines(parts)


def test_signals_in_other_threads_are_left_to_the_program():
    inside = []

    def work():
        with processes.stop_signals() as asked:
            inside.append((signal.getsignal(signal.SIGINT), asked))

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert inside == [(signal.getsignal(signal.SIGINT), [])]
    with processes.stop_signals() as asked:
        os.kill(os.getpid(), signal.SIGTERM)
        assert asked == [signal.SIGTERM]
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)


def test_a_diverged_training_keeps_the_last_good_checkpoint(tmp_path):
    run = training(tmp_path, steps=30)
    updates = run.updates

    def diverging():
        for step, loss in updates():
            if step == 5:
                with torch.no_grad():
                    next(run.model.parameters()).fill_(torch.nan)
            yield step, loss

    run.updates = diverging
    wrong = "total nan, mse nan, kl nan, some of the weights"
    with pytest.raises(train.DivergedError) as caught:
        run.run()
    assert str(caught.value) == (
        f"not finite at step 6: {wrong}. Nothing of it is saved, and {tmp_path}/checkpoint.pt has "
        "step 4: pass a lower --lr"
    )
    state = checkpoints.load(tmp_path / "checkpoint.pt")
    assert state["step"] == 4
    assert all(value.isfinite().all() for value in state["weights"].values())


def test_a_full_disk_is_one_line_and_leaves_no_partial_file(tmp_path, monkeypatch, capsys):
    pictures = tmp_path / "pictures"
    pictures.mkdir()
    for i in range(4):
        Image.new("L", (16, 16), 60 * i).save(pictures / f"{i}.png")
    go = ["train", "--model", "vae", "--data", pictures, "--image-size", 16, "--channels", 1]
    go += ["--batch-size", 2, "--out", tmp_path / "out", "--resume"]
    assert __main__.main([*map(str, go), "--steps", "1"]) == 0
    before = {path.name: path.stat().st_size for path in (tmp_path / "out").iterdir()}
    capsys.readouterr()
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, hard))
    try:
        for out, earlier in (
            (tmp_path / "out", f"; what was saved before is in {tmp_path / 'out'}"),
            (tmp_path / "new", ""),
        ):
            assert __main__.main([*map(str, go), "--steps", "2", "--out", str(out)]) == 2
            said = capsys.readouterr().err
            (line,) = [line for line in said.splitlines() if line.startswith("error: ")]
            path = out / "checkpoint.pt"
            assert line == f"error: {path} cannot be written (File too large){earlier}"
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert checkpoints.load(tmp_path / "out" / "checkpoint.pt")["step"] == 1
    after = {path.name for path in (tmp_path / "out").iterdir()}
    assert {name for name in after if "tfevents" not in name} == {
        name for name in before if "tfevents" not in name
    }


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="there is no /dev/full")
def test_a_checkpoint_says_that_the_disk_is_full(tmp_path):
    path = tmp_path / "checkpoint.pt"
    path.symlink_to("/dev/full")
    with pytest.raises(OSError, match=re.escape(f"{path} cannot be written (the disk is full)")):
        checkpoints.save(path, {"weights": torch.zeros(10)})
    assert path.is_symlink()


def test_only_threads_that_cannot_write_are_quiet(monkeypatch):
    shown = []
    monkeypatch.setattr(threading, "excepthook", lambda raised: shown.append(raised.exc_type))

    def fail(error):
        raise error

    def run_threads():
        for error in (OSError(), ValueError()):
            thread = threading.Thread(target=fail, args=[error])
            thread.start()
            thread.join()

    @processes.quiet_writers(Path("runs"))
    def fill_the_disk():
        run_threads()
        raise OSError(errno.ENOSPC, "No space left on device")

    with pytest.raises(OSError, match=r"^the disk of runs is full$"):
        fill_the_disk()
    assert shown == [ValueError]
    run_threads()
    assert shown == [ValueError, OSError, ValueError]


def test_a_line_that_finds_the_disk_full_is_taken_back(tmp_path, monkeypatch):
    run = training(tmp_path, steps=3)
    run.run()
    before = (tmp_path / "metrics.jsonl").read_text()
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (len(before) + 10, hard))
    try:
        with pytest.raises(OSError, match="too large"):
            run._add_line({"step": 4, "psnr": 1.0})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert (tmp_path / "metrics.jsonl").read_text() == before


def test_the_metrics_are_json(tmp_path):
    run = training(tmp_path, steps=1)
    run.run()
    run._add_line({"step": 2, "psnr": float("inf"), "training": {"kl": float("nan")}})

    def refused(name):
        raise AssertionError(name)

    rows = [
        json.loads(line, parse_constant=refused)
        for line in (tmp_path / "metrics.jsonl").read_text().splitlines()
    ]
    assert rows[-1] == {"step": 2, "psnr": None, "training": {"kl": None}}


def test_small_folders_are_not_evaluated_in_every_step(tmp_path):
    run = train.Training("vae", SMALL, shapes(), tmp_path / "a", steps=3, batch_size=20)
    assert run.evaluate_every == 100
    assert training(tmp_path / "b").evaluate_every == 3
    run.run()
    assert [row["step"] for row in lines(tmp_path / "a")] == [3]


def test_a_training_begins_with_anothers_weights(tmp_path):
    training(tmp_path / "a", steps=4).run()
    first = tmp_path / "a" / "checkpoint.pt"
    run = training(tmp_path / "b", "msssim", init=first, learning_rate=0.01)
    assert run.first == 0
    assert same(dict(run.model.state_dict()), checkpoints.load(first)["weights"])
    assert run.optimizer.param_groups[0]["lr"] == 0.01
    run.run()
    resumed = training(tmp_path / "b", "msssim", init=first, learning_rate=0.01, existing="resume")
    assert resumed.first == 6
    with pytest.raises(ValueError, match=r"has other layers than the model, such as encoder"):
        training(tmp_path / "c", "cvae", init=first)
    assert not (tmp_path / "c").exists()
