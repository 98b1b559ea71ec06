"""Files that the command cannot compare: it names them, and compares the rest."""

import json
import os
import subprocess
import sys

import numpy as np
import pytest
from compared_files import definition, patch, run, tensor, write

import perceptual_losses
from perceptual_losses import ms_ssim
from perceptual_losses.compare import cli

HEADER = "file,width,height,channels,data_range,psnr,mse,ssim,ms_ssim,levels,notice,problem\n"


@pytest.fixture
def trouble(tmp_path):
    """Two folders, of whose images two can be compared."""
    x, y = patch("camera")
    a, b = tmp_path / "a", tmp_path / "b"
    for name in ("sub/good.png", "cut.png", "here.png", "size.png", "kind.png", "bits.png"):
        write(a / name, x)
    write(a / "same.png", x)
    write(b / "same.png", x)
    write(b / "sub" / "good.png", y)
    (b / "cut.png").write_bytes((a / "cut.png").read_bytes()[:5000])
    (a / "text.png").write_text("this is text")
    write(b / "text.png", x)
    write(b / "size.png", y[:-1])
    write(b / "kind.png", np.stack([y] * 3, -1))
    write(b / "bits.png", y * np.uint16(257))
    write(b / "there.png", y)
    for folder in (a, b):
        write(folder / "tiny.png", x[:10])
        (folder / "notes.txt").write_text("no image")
    return tmp_path


@pytest.fixture
def small_pair(tmp_path):
    """Two folders with one small image each."""
    for folder, values in zip("ab", patch("camera", 20), strict=True):
        write(tmp_path / folder / "x.png", values)
    return tmp_path


SCRIPT = [
    *(sys.executable, "-c"),
    "from perceptual_losses.compare.cli import run_and_exit; run_and_exit()",
]
"""The console script, as pip writes it."""

PROBLEMS = {
    "bits.png": "a/bits.png has 175x170 pixels, 1 channel, 8 bits and b/bits.png 175x170 pixels, "
    "1 channel, 16 bits",
    "cut.png": "b/cut.png cannot be read (OSError: image file is truncated)",
    "here.png": "is only in a",
    "kind.png": "a/kind.png has 175x170 pixels, 1 channel, 8 bits and b/kind.png 175x170 pixels, "
    "3 channels, 8 bits; --match-grey may help",
    "size.png": "a/size.png has 175x170 pixels, 1 channel, 8 bits and b/size.png 175x169 pixels, "
    "1 channel, 8 bits",
    "text.png": "a/text.png is not in any of BMP, GIF, JPEG, PNG, PPM, WEBP, TIFF",
    "there.png": "is only in b",
    "tiny.png": "has 175x10 pixels, 1 channel, 8 bits, less than the window of 11x11",
}


def test_what_is_not_compared_is_named_and_the_rest_is_done(trouble, root):
    command = [*SCRIPT, "compare", "a", "b"]
    command += ["--csv", "out/out.csv", "--json", "out/out.json"]
    environment = {**os.environ, "PYTHONPATH": str(root), "PYTHONIOENCODING": "utf-8"}
    done = subprocess.run(
        command, cwd=trouble, env=environment, capture_output=True, text=True, timeout=300
    )
    lines = done.stderr.splitlines()
    # The first process on a machine compiles, and says so.
    assert [line for line in lines if not line.startswith("perceptual_losses is compiling")] == [
        *(f"{name}: {text}" for name, text in PROBLEMS.items()),
        "left out 2 files without an image's suffix",
        "compared 2 of 10",
    ]
    assert done.returncode == 1
    x, y = patch("camera")
    good, good_ms = definition(x, y), ms_ssim(tensor(x), tensor(y), data_range=255).item()
    assert done.stdout == (
        "file             size  range    PSNR      MSE      SSIM   MS-SSIM  levels\n"
        f"sub/good.png  175x170    255  30.115  63.3228  {good:.6f}  {good_ms:.6f}       5\n"
        "same.png      175x170    255     inf        0  1.000000  1.000000       5\n"
        f"min of 2                      30.115        0  {good:.6f}  {good_ms:.6f}\n"
        f"median of 2                      inf  31.6614  {(1 + good) / 2:.6f}  "
        f"{(1 + good_ms) / 2:.6f}\n"
        f"mean of 2                        inf  31.6614  {(1 + good) / 2:.6f}  "
        f"{(1 + good_ms) / 2:.6f}\n"
        f"worst of 2                    30.115  63.3228  {good:.6f}  {good_ms:.6f}\n"
    )
    record = json.loads((trouble / "out" / "out.json").read_text())
    shared = {"width": 175, "height": 170, "channels": 1, "data_range": 255}
    ssim, similarity = record["mean"]["ssim"] * 2 - 1, record["mean"]["ms_ssim"] * 2 - 1
    assert ssim == pytest.approx(good, abs=1e-12)
    rest = {"levels": 5, "notice": ""}
    identical = {"psnr": None, "mse": 0.0, "ssim": 1.0, "ms_ssim": 1.0}
    assert record == {
        "version": perceptual_losses.__version__,
        "a": "a",
        "b": "b",
        "dtype": "float64",
        "device": "cpu",
        "data_range": None,
        "background": None,
        "crop": 0,
        "luma": None,
        "complete": True,
        "vgg_layers": None,
        "lpips_backbone": None,
        "files": sorted(
            [
                {"file": "same.png", **shared, **identical, **rest},
                {
                    "file": "sub/good.png",
                    **shared,
                    "psnr": pytest.approx(30.115, abs=1e-3),
                    "mse": pytest.approx(63.3228, abs=1e-4),
                    "ssim": pytest.approx(ssim, abs=1e-15),
                    "ms_ssim": pytest.approx(similarity, abs=1e-15),
                    **rest,
                },
                *({"file": name, "problem": text} for name, text in PROBLEMS.items()),
            ],
            key=lambda row: row["file"],
        ),
        **{name: record[name] for name in ("min", "median", "mean", "worst")},
    }
    # JSON has no infinity.
    assert record["mean"]["psnr"] is None
    numbers = {row["file"]: row for row in record["files"]}["sub/good.png"]
    lines = {name: f'{name},,,,,,,,,,,"{text}"' for name, text in PROBLEMS.items()}
    lines |= {
        name: f"{name},,,,,,,,,,,{text}" for name, text in PROBLEMS.items() if "," not in text
    }
    lines["same.png"] = "same.png,175,170,1,255,inf,0.0,1.0,1.0,5,,"
    lines["sub/good.png"] = (
        f"sub/good.png,175,170,1,255,{numbers['psnr']!r},{numbers['mse']!r},{numbers['ssim']!r},{numbers['ms_ssim']!r},5,,"
    )
    written = (trouble / "out" / "out.csv").read_text()
    assert written == HEADER + "".join(f"{lines[name]}\n" for name in sorted(lines))


def test_nothing_to_compare(tmp_path, capsys):
    write(tmp_path / "a" / "x.png", patch("camera")[0])
    (tmp_path / "b").mkdir()
    assert run(tmp_path / "a", tmp_path / "b", "--json", tmp_path / "out.json") == 1
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err == f"x.png: is only in {tmp_path / 'a'}\ncompared 0 of 1\n"
    assert json.loads((tmp_path / "out.json").read_text())["mean"] is None


@pytest.mark.parametrize(
    ("flags", "text"),
    [
        (["a/x.png", "absent.png"], "absent.png does not exist: pass two images or two folders"),
        (["a/x.png", "b"], "b is a folder and a/x.png a file: pass two files"),
        (["empty", "empty"], "empty and empty have no images: pass folders with files .bmp .gif"),
        (["a", "b", "--csv", "a"], "--csv a: pass a file, which this is not"),
        (["a", "b", "--picture", "a/x.png"], "--picture a/x.png: pass a folder, which this is not"),
        (["a", "b", "--picture", "a/new"], "--picture a/new would be among the compared"),
        (["a", "b", "--csv", "a/x.png"], "--csv a/x.png would be among the compared"),
        (["a", "b", "--csv", "c", "--json", "./c"], "--json c is where --csv goes: pass another"),
        (["a/x.png", "b/x.png", "--json", "b/x.png"], "--json b/x.png would be among the compared"),
        (["a/x.png", "b/x.png", "--picture", "b"], "--picture b: pass a file, which this is not"),
        (["a/x.png", "b/x.png", "--picture", "c.txt"], "--picture c.txt: pass a name that ends in"),
        (["a", "b", "--device", "no"], "--device no: Expected one of cpu"),
        (["a", "b", "--vgg-weights", "no.pth"], "weights='no.pth': there is no such file"),
        (["a", "b", "--vgg-weights", "a/x.png"], "weights='a/x.png' cannot be read as tensors"),
        (
            ["a", "b", "--lpips-weights", "no.pth", "--lpips-linear", "lin.pth"],
            "weights='no.pth': there is no such file",
        ),
    ],
)
def test_wrong_usage(tmp_path, monkeypatch, capsys, flags, text):
    monkeypatch.chdir(tmp_path)
    for folder in "ab":
        write(tmp_path / folder / "x.png", patch("camera")[0])
    (tmp_path / "empty").mkdir()
    before = sorted(tmp_path.rglob("*"))
    assert run(*flags) == 2
    captured = capsys.readouterr()
    assert captured.err.startswith(f"error: {text}")
    assert captured.out == ""
    assert sorted(tmp_path.rglob("*")) == before


@pytest.mark.parametrize(
    ("flags", "text"),
    [
        (["a"], "the following arguments are required: B"),
        (["a", "b", "--max-megapixels", "0"], "0 is not positive: pass a number above 0"),
        (["a", "b", "--min-ssim", "nan"], "nan bounds nothing: pass a number"),
        (["a", "b", "--max-lpips", "NaN"], "NaN bounds nothing: pass a number"),
        (["a", "b", "--vgg-layers", "no"], "invalid choice: 'no'"),
        (["a", "b", "--lpips-backbone", "no"], "invalid choice: 'no'"),
    ],
)
def test_bad_flags(capsys, flags, text):
    with pytest.raises(SystemExit) as caught:
        run(*flags)
    assert caught.value.code == 2
    assert text in capsys.readouterr().err


def test_results_that_cannot_be_written(folders, monkeypatch, capsys):
    place, _ = folders

    def full(*args, **options):
        raise OSError("No space left on device")

    monkeypatch.setattr(cli, "write_json", full)
    assert run(place / "a", place / "b", "--json", place / "out.json") == 2
    captured = capsys.readouterr()
    assert captured.err == "error: No space left on device\n"
    assert "mean of 4" in captured.out


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="there is no /dev/full")
@pytest.mark.parametrize("flag", ["--csv", "--html", "--json", "--picture"])
def test_a_full_disk_is_named_with_the_file(small_pair, capsys, flag):
    full = small_pair / "full.png"
    full.symlink_to("/dev/full")
    results = small_pair / "out.csv"
    rest = [] if flag == "--csv" else ["--csv", results]
    assert run(small_pair / "a" / "x.png", small_pair / "b" / "x.png", flag, full, *rest) == 2
    captured = capsys.readouterr()
    assert captured.err == f"error: {full} cannot be written (the disk is full)\n"
    if rest:
        assert "x.png  25x20" in captured.out
        assert "x.png,25,20,1,255," in results.read_text()


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="there is no /dev/full")
def test_a_full_disk_behind_standard_output(small_pair, root):
    environment = {**os.environ, "PYTHONPATH": str(root)}
    with open("/dev/full", "w") as full:
        done = subprocess.run(
            [*SCRIPT, "compare", "a", "b"],
            **{"cwd": small_pair, "env": environment, "text": True, "timeout": 300},
            stdout=full,
            stderr=subprocess.PIPE,
        )
    assert done.returncode == 2
    assert done.stderr.splitlines()[-1] == "error: [Errno 28] No space left on device"


def test_functions_at_the_end_run_and_their_output_is_kept(small_pair, root):
    # Unbuffered, nothing could be lost.
    environment = {**os.environ, "PYTHONPATH": str(root), "PYTHONUNBUFFERED": ""}
    *python, code = SCRIPT
    done = subprocess.run(
        [*python, f"import atexit; atexit.register(print, 'end'); {code}", "compare", "a", "b"],
        **{"cwd": small_pair, "env": environment, "text": True, "timeout": 300},
        capture_output=True,
    )
    assert done.returncode == 0
    assert "x.png  25x20" in done.stdout
    assert done.stdout.endswith("\nend\n")


@pytest.mark.parametrize(("flags", "code"), [([], 141), (["--csv", "-"], 141), (["--check"], 2)])
def test_standard_output_that_is_closed(small_pair, monkeypatch, capsys, flags, code):
    if code == 2:
        monkeypatch.setitem(sys.modules, "skimage", None)
    monkeypatch.setattr(sys, "stdout", None)
    results = small_pair / "out.json"
    assert run(small_pair / "a", small_pair / "b", "--json", results, *flags) == code
    assert sys.stdout is None
    assert ("skimage is not installed" in capsys.readouterr().err) == (code == 2)
    assert results.exists() == (code == 141)


@pytest.mark.parametrize("jobs", [1, 2])
def test_messages_that_cannot_be_printed_lose_no_results(folders, monkeypatch, capsys, jobs):
    root, _ = folders
    monkeypatch.setattr(sys, "stderr", None)
    flags = ["--min-ssim", "1", "--json", "-", "-j", jobs]
    assert run(root / "a", root / "b", *flags) == 3
    monkeypatch.undo()
    assert json.loads(capsys.readouterr().out)["complete"]


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="there is no /dev/full")
def test_a_full_disk_behind_standard_error(small_pair, root):
    environment = {**os.environ, "PYTHONPATH": str(root)}
    with open("/dev/full", "w") as full:
        done = subprocess.run(
            [*SCRIPT, "compare", "a", "b", "--min-ssim", "1", "--json", "out.json"],
            **{"cwd": small_pair, "env": environment, "text": True, "timeout": 300},
            stdout=subprocess.PIPE,
            stderr=full,
        )
    assert done.returncode == 3
    assert "x.png  25x20" in done.stdout
    assert json.loads((small_pair / "out.json").read_text())["files"][0]["fails"]


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="the system has no named pipes")
def test_pipes_are_not_read(small_pair, capsys):
    for folder in "ab":
        os.mkfifo(small_pair / folder / "pipe.png")
    assert run(small_pair / "a", small_pair / "b") == 1
    said = f"pipe.png: {small_pair / 'a' / 'pipe.png'} is no regular file: pass one\n"
    assert capsys.readouterr().err == said + "compared 1 of 2\n"


def test_names_do_not_control_the_terminal(small_pair, capsys):
    name = "y\n\x1b[31mé.png"
    for folder in "ab":
        (small_pair / folder / "x.png").rename(small_pair / folder / name)
    write(small_pair / "a" / "z\n.png", patch("camera", 20)[0])
    results = small_pair / "out.json"
    flags = ["--min-ssim", "1", "--json", results]
    assert run(small_pair / "a", small_pair / "b", *flags) == 3
    captured = capsys.readouterr()
    assert captured.out.splitlines()[1].startswith(r"y\n\x1b[31mé.png  25x20")
    problem, fails, count = captured.err.splitlines()
    assert problem.startswith(r"z\n.png: is only in ")
    assert fails.startswith(r"y\n\x1b[31mé.png fails: SSIM is ")
    assert count == "compared 1 of 2"
    assert [row["file"] for row in json.loads(results.read_text())["files"]] == [name, "z\n.png"]


@pytest.mark.parametrize(
    ("module", "flag"),
    [
        ("PIL", None),
        ("tqdm", None),
        ("tifffile", None),
        ("matplotlib", "p"),
        ("skimage", "check"),
    ],
)
def test_a_package_that_is_missing(tmp_path, monkeypatch, capsys, module, flag):
    flags = {None: [], "p": ["--picture", tmp_path / "x.png"], "check": ["--check"]}[flag]
    monkeypatch.setitem(sys.modules, module, None)
    assert run(tmp_path, tmp_path, *flags) == 2
    said = f'{module} is not installed: pip install "perceptual-losses[compare]"\n'
    assert capsys.readouterr().err == said
