"""Builds the distributions, and tries them as a user gets them.

``python -m tests.project.release`` checks what they contain, installs the wheel with its
dependencies in an empty environment without a compiler, and runs `SMOKE` there. It needs a package
index.
"""

from __future__ import annotations

import argparse
import email
import os
import re
import subprocess
import sys
import tarfile
import tempfile
import venv
import zipfile
from collections.abc import Sequence
from pathlib import Path

ROOT = Path(__file__).parents[2]

SOURCES = ("CHANGELOG.md", "LICENSE", "PKG-INFO", "README.md", "pyproject.toml")
"""What a source distribution has besides the folders."""

FOLDERS = ("benchmarks/", "docs/", "perceptual_losses/", "tests/")

DANGEROUS = re.compile(
    r"(import|from) pickle\b|\bpickle\.\w|weights_only=False|(?<!\.)\b(eval|exec)\(|os\.system"
)
"""What has no place in the package, but for `CACHE`."""

CACHE = "perceptual_losses/_runtime/numba_kernels.py"
"""Numba keeps compiled kernels as pickles, in a folder of the user's own."""

SMOKE = """
import sys
import warnings

warnings.simplefilter("error")

import torch

import perceptual_losses
from perceptual_losses import MSSSIMLoss, VGGLoss, ssim

assert perceptual_losses.__file__.startswith(sys.prefix), perceptual_losses.__file__
assert not {"numba", "triton", "torchvision"} & set(sys.modules)

torch.manual_seed(0)
p, t = torch.rand(2, 3, 176, 176, requires_grad=True), torch.rand(2, 3, 176, 176)
exact = ssim(p.double(), t.double(), backend="reference").item()
assert abs(ssim(p, t, backend="numba").item() - exact) < 1e-6
assert ssim(t, t).item() == 1
MSSSIMLoss()(p, t).backward()
assert p.grad.isfinite().all() and p.grad.abs().max() > 0

from torchvision.models import vgg

torch.save(vgg.make_layers(vgg.cfgs["D"]).state_dict(), "vgg16.pth")
features = VGGLoss({"relu2_2": 1.0}, backbone="vgg16", weights="vgg16.pth")
assert features(t, t).item() == 0 and features(p, t).item() > 0
print("torch", torch.__version__, "on Python", sys.version.split()[0])
"""


def tracked(folder: str) -> set[str]:
    """Paths that git knows under the folder."""
    output = subprocess.check_output(["git", "ls-files", folder], cwd=ROOT, text=True)
    return set(output.splitlines())


def check_wheel(wheel: Path) -> None:
    """The package's tracked files and the metadata, nothing else; no code that runs data."""
    with zipfile.ZipFile(wheel) as archive:
        names = {name for name in archive.namelist() if ".dist-info/" not in name}
        assert names == tracked("perceptual_losses"), names ^ tracked("perceptual_losses")
        for name in {name for name in names if name.endswith(".py")} - {CACHE}:
            found = DANGEROUS.search(archive.read(name).decode())
            assert not found, f"{name} has {found}"
        (metadata,) = (name for name in archive.namelist() if name.endswith("/METADATA"))
        fields = email.message_from_bytes(archive.read(metadata))
        licences = [name for name in archive.namelist() if name.endswith("/licenses/LICENSE")]
    assert licences
    needed = {re.match(r"[\w-]+", line)[0] for line in fields.get_all("Requires-Dist")}
    assert {"numba", "numpy", "torch", "torchvision"} <= needed
    assert fields["Description-Content-Type"] == "text/markdown"
    assert wheel.name.endswith("-py3-none-any.whl"), "it has compiled code"


def check_source(source: Path) -> None:
    """All that is needed to build and test it."""
    with tarfile.open(source) as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}
    expected = set(SOURCES).union(*map(tracked, FOLDERS))
    assert expected <= names, expected - names
    unknown = {name for name in names - expected if "." in name.rpartition("/")[2]}
    assert unknown <= tracked("."), unknown - tracked(".")


def build(out: Path) -> None:
    """Both distributions of the checkout."""
    subprocess.check_call([sys.executable, "-m", "hatchling", "build", "-d", out], cwd=ROOT)


def install_and_try(wheel: Path, folder: Path) -> None:
    """The smoke test in an environment that has the wheel and its dependencies alone."""
    environment = folder / "environment"
    venv.create(environment, with_pip=True)
    python = environment / "bin" / "python"
    subprocess.check_call([python, "-m", "pip", "install", "--quiet", "--only-binary=:all:", wheel])
    subprocess.check_call([python, "-m", "pip", "check"])
    nothing = folder / "nothing"
    nothing.mkdir()
    # No compiler and no headers to be found: nothing may need them.
    variables = {k: v for k, v in os.environ.items() if k not in ("CC", "CXX", "PYTHONPATH")}
    variables["PATH"] = str(nothing)
    subprocess.check_call([python, "-c", SMOKE], cwd=folder, env=variables)


def main(arguments: Sequence[str] | None = None) -> None:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m tests.project.release", description=__doc__)
    parser.add_argument("--out", type=Path, default=ROOT / "dist")
    out = parser.parse_args(arguments).out
    with tempfile.TemporaryDirectory() as temporary:
        again = Path(temporary)
        build(out)
        build(again)
        (wheel,), (source,) = out.glob("*.whl"), out.glob("*.tar.gz")
        for built in (wheel, source):
            assert built.read_bytes() == (again / built.name).read_bytes(), (
                "differs when built anew"
            )
        check_wheel(wheel)
        check_source(source)
        install_and_try(wheel, again)
    print(f"{wheel.name} and {source.name} are fine")


if __name__ == "__main__":
    main()
