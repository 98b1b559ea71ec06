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
from example_training import OPTIONS, RANDOM_FEATURES, SMALL, lines, same, shapes, training

from perceptual_losses.examples import checkpoints, train


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
        saved.append(target.name)
        if saved.count("checkpoint.pt") == 2:
            # As far as the second checkpoint is written, and no further.
            Path(source).write_bytes(Path(source).read_bytes()[:1000])
            raise KilledError
        replace(source, target)

    saved = []
    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", dies)
        with pytest.raises(KilledError):
            training(killed).run()
    assert (killed / "checkpoint.partial.pt").stat().st_size == 1000
    assert checkpoints.load(killed / "checkpoint.pt")["step"] == 2
    # The evaluation of step 3 has been written, though it comes after the checkpoint, and a line
    # of which the disk has a part.
    assert [row["step"] for row in lines(killed)] == [3]
    with (killed / "metrics.jsonl").open("a") as file:
        file.write('{"step": 4, "ps')
    training(killed, existing="resume").run()
    assert same(*(checkpoints.load(out / "checkpoint.pt") for out in (whole, killed)))
    assert lines(killed) == lines(whole)
    assert not (killed / "checkpoint.partial.pt").exists()


PROGRAM = """
import signal
import sys
sys.path[:0] = {paths!r}
from pathlib import Path
import torch
from example_training import training
from perceptual_losses.examples import processes

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
            with processes.processes():
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
            with pytest.raises(ValueError, match="has lines that no training has written: pass"):
                training(tmp_path, existing=existing)
    assert (tmp_path / "metrics.jsonl").read_text() == "no JSON\n"
    with pytest.raises(ValueError, match=r"metrics.jsonl/out cannot be written to \(Not a direct"):
        training(tmp_path / "metrics.jsonl" / "out")
    (tmp_path / "metrics.jsonl").write_bytes(b"\xff\n")
    training(tmp_path, existing="replace", steps=1).run()
    assert [row["step"] for row in lines(tmp_path)] == [1]


@pytest.mark.skipif(sys.platform != "linux", reason="only there is /proc")
def test_a_folder_that_takes_no_files():
    with pytest.raises(ValueError, match="/proc cannot be written to "):
        training(Path("/proc"))
