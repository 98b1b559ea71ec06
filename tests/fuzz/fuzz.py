"""Drawn calls of every loss on every path, judged by the reference in float64.

``python tests/fuzz/fuzz.py --minutes 10`` draws until the time is up. What it finds it shrinks and
keeps in ``fuzz_cases.jsonl``, which the suite runs, as it runs some calls of its own drawing.
"""

import argparse
import collections
import importlib.metadata
import itertools
import json
import os
import platform
import sys
import time
from pathlib import Path

import fuzz_features
import fuzz_features_cases
import fuzz_structural
import fuzz_structural_cases
import hypothesis
from fuzz_judge import Violation

if os.environ.get("TRITON_INTERPRET") == "1":
    sys.path.append(str(Path(__file__).parents[1] / "gpu" / "emulator"))
    import interpreter  # noqa: F401

KEPT = Path(__file__).parent / "fuzz_cases.jsonl"


# The drawn calls and their judge, by backend. The losses on features choose their backend.
KINDS = {
    backend: (fuzz_structural_cases.cases(backend), fuzz_structural.check)
    for backend in ("numba", "reference", "triton")
}
KINDS["features"] = (fuzz_features_cases.cases(), fuzz_features.check)
# The number of calls in a round, some seconds for each backend.
EXAMPLES = {"numba": 100, "reference": 100, "features": 25, "triton": 10}


def failing(backend, seed, examples):
    """Draws cases and counts their outcomes.

    Returns:
        The counts, and the smallest case that fails with its message, or ``None``.
    """
    tally = collections.Counter()
    found = []
    drawn, check = KINDS[backend]

    @hypothesis.seed(seed)
    @hypothesis.settings(
        max_examples=examples,
        database=None,
        deadline=None,
        derandomize=False,
        report_multiple_bugs=False,
        suppress_health_check=list(hypothesis.HealthCheck),
    )
    @hypothesis.given(drawn)
    def run(case):
        # Calls after a failure shrink it, and are not drawn.
        drawing = not found
        went = "failed"
        try:
            went = check(case, backend)
        except Violation as violation:
            found.append((case, str(violation)))
            raise
        except Exception as error:
            found.append((case, f"{error!r}\n  check({case!r}, {backend!r})"))
            raise
        finally:
            tally[case["name"], went] += drawing

    try:
        run()
    except Exception:  # Whatever a call raises is a finding; `run` has recorded it.
        if not found:  # Hypothesis's own.
            raise
        # The last call to run is the smallest.
        return tally, found[-1]
    return tally, None


def main():
    """Draws cases until the time is up, and says what failed."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("--minutes", type=float, default=10)
    parser.add_argument("--seed", type=int, help="of the first round; the time if not given")
    # The reference is half of what the others are judged by: it gets a round in five.
    parser.add_argument(
        "--backends",
        nargs="+",
        choices=["numba", "reference", "features"],
        default=["numba", "features", "numba", "features", "reference"],
        help="a round each in turn",
    )
    parser.add_argument("--out", type=Path, default=Path("runs/fuzz.json"))
    options = parser.parse_args()
    seed = int(time.time()) if options.seed is None else options.seed
    backends = options.backends
    if os.environ.get("TRITON_INTERPRET") == "1":
        backends = ["triton"]
    begin = time.monotonic()
    tally, violations = collections.Counter(), []
    for turn in itertools.count():
        if time.monotonic() - begin > 60 * options.minutes:
            break
        backend = backends[turn % len(backends)]
        went, failed = failing(backend, seed + turn, EXAMPLES[backend])
        for (name, how), count in went.items():
            tally[backend, name, how] += count
        if failed is not None:
            case, text = failed
            print(text, flush=True)
            violations.append({"backend": backend, "case": case, "text": text})
            with KEPT.open("a") as file:
                file.write(json.dumps({"backend": backend, "case": case}) + "\n")
    report = {
        "seed": seed,
        "minutes": round((time.monotonic() - begin) / 60, 2),
        "calls": sum(tally.values()),
        "cases": [
            {"backend": backend, "loss": name, "outcome": how, "count": count}
            for (backend, name, how), count in sorted(tally.items())
        ],
        "violations": violations,
        "machine": platform.machine(),
        "python": platform.python_version(),
        "versions": {
            name: importlib.metadata.version(name)
            for name in ("torch", "numba", "numpy", "hypothesis")
        },
    }
    options.out.parent.mkdir(parents=True, exist_ok=True)
    options.out.write_text(json.dumps(report, indent=2) + "\n")
    print(f"{report['calls']} calls, {len(violations)} violations: {options.out}")
    return 1 if violations else 0


if __name__ == "__main__":
    sys.exit(main())
