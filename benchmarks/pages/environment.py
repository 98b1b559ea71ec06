"""Where numbers come from: machine, versions and commit."""

from __future__ import annotations

import datetime
import importlib.metadata
import os
import platform
import re
import subprocess
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch

from .fill import ROOT

OTHER_DISTRIBUTIONS = ("torch", "numpy", "numba", "triton")

VARIABLES = ("MALLOC_", "GLIBC_TUNABLES", "LD_PRELOAD", "OMP_", "GOMP_", "NUMBA_", "TORCH")
"""Beginnings of the names of what in the environment changes the numbers."""

HARMLESS = ("_CACHE_DIR", "_ARCH_LIST", "_COMPILE_THREADS")
"""Ends of those that change none: where a cache lies, and how others are compiled."""


def environment(device: str, distributions: Iterable[str] = ()) -> dict[str, Any]:
    """What the numbers depend on besides the code.

    Args:
        device: ``"cpu"`` or ``"cuda"``.
        distributions: packages whose versions count, besides `OTHER_DISTRIBUTIONS`.
    """
    names = [*OTHER_DISTRIBUTIONS, *distributions]
    return {
        "device": device_name(device),
        "processor": processor_name(),
        "threads": torch.get_num_threads(),
        "variables": {
            name: value
            for name, value in sorted(os.environ.items())
            if name.startswith(VARIABLES) and not name.endswith(HARMLESS)
        },
        "python": platform.python_version(),
        "system": platform.platform(),
        "cuda": torch.version.cuda if device == "cuda" else None,
        "versions": {name: _version(name) for name in dict.fromkeys(names)},
        "commit": commit(),
        "date": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
    }


def device_name(device: str) -> str:
    """The name of the device, which results have as theirs."""
    if device == "cuda":
        return torch.cuda.get_device_name()
    return f"{processor_name()}, {torch.get_num_threads()} threads"


def file_name(device: str) -> str:
    """The name of the device's result file."""
    return f"{slug(device_name(device))}.json"


def slug(name: str) -> str:
    """A name as a file has it."""
    return re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")


def processor_name() -> str:
    """The name of the processor, where Linux tells it."""
    cpuinfo = Path("/proc/cpuinfo")
    text = cpuinfo.read_text() if cpuinfo.exists() else ""
    match = re.search(r"model name\s*: (.+)", text)
    return match[1] if match else platform.processor() or platform.machine()


def _version(distribution: str) -> str | None:
    try:
        return importlib.metadata.version(distribution)
    except importlib.metadata.PackageNotFoundError:
        return None


def commit() -> str | None:
    """The commit of the checkout, as git describes it."""
    command = ["git", "describe", "--always", "--dirty"]
    try:
        output = subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True)
    except (OSError, subprocess.CalledProcessError):
        return None
    return output.stdout.strip()


def provenance(environment: dict[str, Any]) -> str:
    """One sentence on where numbers come from."""
    versions = ", ".join(f"{name} {v}" for name, v in environment["versions"].items() if v)
    return (
        f"{environment['device']}, {environment['system'].split('-')[0]}, Python "
        f"{environment['python']}, {versions}; commit {environment['commit']}, "
        f"{environment['date'][:10]}."
    )
