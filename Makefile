PYTHON ?= python3

.PHONY: test test-oldest test-newest lint docs pages demo demo-smoke study fuzz long-run bench bench-gpu
.PHONY: release-check lock .venv

# Files are shared out to two processes: one alone leaves a core idle most of the time.
PYTEST = -m pytest -n 2 --dist loadfile --junit-xml=runs/tests-$@.xml

# Four threads on two cores: one that spins while it waits takes the time of one that works.
test test-oldest test-newest: export OMP_WAIT_POLICY = PASSIVE

# TESTS="tests/api tests/pytorch/test_compile.py ..." runs those alone.
TESTS ?=

test: .venv/installed
	.venv/bin/python $(PYTEST) $(TESTS)

# Draws calls until the time is up; runs/fuzz.json has the counts, a failing call joins the tests.
MINUTES ?= 10
fuzz: .venv/installed
	.venv/bin/python tests/fuzz/fuzz.py --minutes $(MINUTES)

lint: .venv/installed
	.venv/bin/ruff check .
	.venv/bin/ruff format --check .
	.venv/bin/mypy

# The site in build/site. A broken link fails.
docs: .venv/installed
	NO_MKDOCS_2_WARNING=1 .venv/bin/mkdocs build

# Every generated part of the documentation anew, from the committed results.
pages: .venv/installed
	.venv/bin/python -m benchmarks.pages.overview
	.venv/bin/python -m benchmarks.validation.numerics --from-results
	.venv/bin/python -m benchmarks.validation.validate --from-results
	.venv/bin/python -m benchmarks.reliability.page
	.venv/bin/python -m benchmarks.speed.report benchmarks/results/*.json --out docs/benchmarks --pages
	.venv/bin/python -m benchmarks.study --from-results

demo: .venv/installed
	.venv/bin/python -m perceptual_losses.examples demo

# Enough steps for the verdict, in seconds.
demo-smoke: .venv/installed
	.venv/bin/python -m perceptual_losses.examples demo --steps 100 --out runs/smoke

# About 20 minutes on two cores.
study: .venv/installed
	.venv/bin/python -m benchmarks.study

# 20 minutes.
long-run: .venv/installed
	.venv/bin/python -m benchmarks.reliability.long_run

bench-gpu: .venv/installed
	.venv/bin/python -m benchmarks.speed.run --device cuda
	.venv/bin/python -m benchmarks.speed.report benchmarks/results/*.json --out docs/benchmarks --pages

bench: .venv/installed
	.venv/bin/python -m benchmarks.speed.run
	.venv/bin/python -m benchmarks.speed.report benchmarks/results/*.json --out docs/benchmarks --pages

# The environment alone, from the pinned lock.
.venv: .venv/installed

# The oldest releases that pyproject.toml declares, and the newest that there were.
test-oldest test-newest: test-%: .venv-%/installed
	.venv-$*/bin/python $(PYTEST) $(TESTS)

.venv/installed: requirements.lock pyproject.toml
.venv-oldest/installed: requirements-oldest.lock pyproject.toml
.venv-newest/installed: requirements-newest.lock pyproject.toml
.venv/installed .venv-oldest/installed .venv-newest/installed:
	$(PYTHON) -m venv $(@D)
	$(@D)/bin/python -m pip install --quiet --require-hashes -r $<
	$(@D)/bin/python -m pip install --quiet --no-deps --no-build-isolation -e .
	touch $@

# Builds dist/ and tries it in an empty environment, with the newest dependencies there are.
release-check: .venv/installed
	rm -rf dist
	.venv/bin/python -m tests.project.release

# Writes the locks anew; needs uv.
COMPILE = uv pip compile --quiet --universal --python-version 3.10 --generate-hashes \
	--no-header --no-annotate --extra dev pyproject.toml -
lock:
	printf 'torch==2.11.0\ntorchvision==0.26.0\n' | $(COMPILE) -o requirements.lock
	printf 'torch==2.7.0\ntorchvision==0.22.0\nnumba==0.61.0\nnumpy==1.26.4\n' \
		| $(COMPILE) -o requirements-oldest.lock
	printf 'torch\ntorchvision\n' | $(COMPILE) -o requirements-newest.lock
