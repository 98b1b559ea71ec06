PYTHON ?= python3

.PHONY: help test test-standins test-oldest test-newest fuzz lint format docs pages demo demo-smoke study
.PHONY: long-run bench bench-gpu bench-host release-check lock .venv

## help: list the targets
help:
	@awk -F ': ' '/^## / { sub(/^## /, ""); printf "%-14s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

# The test files are shared out to two processes, because one process uses one core most of the time.
PYTEST = -m pytest -n 2 --dist loadfile

# A second run has Triton's interpreter, which must be switched on before Triton is imported. Both get
# TESTS. One of the runs may find no test (pytest's exit code 5), but not both. Beside the second run
# there is time for a target that has one process, whose output follows.
define run-tests
@usual=0; $(1) $(PYTEST) --junit-xml=runs/tests-$@.xml $(TESTS) || usual=$$?; \
beside=0; $(if $(2),$(MAKE) $(2) > runs/$(2).log 2>&1 &) \
echo "The tests in Triton's interpreter:"; interpreted=0; TRITON_INTERPRET=1 \
$(1) $(PYTEST) --junit-xml=runs/tests-$@-interpreted.xml $(TESTS) || interpreted=$$?; \
if [ $$interpreted -eq 5 ]; then interpreted=0; echo "Skipped: none of these tests runs there."; \
elif [ $$usual -eq 5 ]; then usual=0; fi; \
$(if $(2),wait $$! || beside=$$?; cat runs/$(2).log;) \
[ $$usual -eq 0 ] && [ $$interpreted -eq 0 ] && [ $$beside -eq 0 ]
endef

# Two processes have four threads on two cores. A thread that spins while it waits takes the time of
# one that works.
test test-oldest test-newest: export OMP_WAIT_POLICY = PASSIVE

# Few files are shared out better test by test. The extra `oldest` has no tools to deploy with.
test-oldest: PYTEST = -m pytest -n 2 --dist worksteal --ignore=tests/pytorch/test_deployments.py

# TESTS="tests/pytorch/test_compile.py ..." runs only those.
TESTS ?=

## test: run the tests, or only TESTS="tests/metrics/test_masks.py -k name"
test: .venv/installed
	$(call run-tests,.venv/bin/python,$(if $(TESTS),,test-standins))

# Runs a module in a process that has loaded the stand-ins before torch.
STANDINS = -m tests.gpu.emulator.standins

## test-standins: run the tests of GPU launches, which need no GPU
test-standins: .venv/installed
	.venv/bin/python $(STANDINS) pytest tests/gpu/standins --junit-xml=runs/tests-$@.xml

# runs/fuzz.json has the counts. A failing call joins the tests.
## fuzz: draw calls and judge them for MINUTES=10
MINUTES ?= 10
fuzz: .venv/installed
	.venv/bin/python tests/fuzz/fuzz.py --minutes $(MINUTES)

## lint: check style and types with ruff and mypy
lint: .venv/installed
	.venv/bin/ruff check .
	.venv/bin/ruff format --check .
	.venv/bin/mypy

## format: format the code and fix what ruff can fix
format: .venv/installed
	.venv/bin/ruff check --fix --exit-zero .
	.venv/bin/ruff format .

## docs: build the site in build/site; a broken link fails
docs: .venv/installed
	NO_MKDOCS_2_WARNING=1 .venv/bin/mkdocs build

## pages: write the generated parts of the documentation from the committed results
pages: .venv/installed
	.venv/bin/python -m benchmarks.pages.overview
	.venv/bin/python -m benchmarks.pages.gallery
	.venv/bin/python -m benchmarks.validation.numerics --from-results
	.venv/bin/python -m benchmarks.validation.validate --from-results
	.venv/bin/python -m benchmarks.reliability.page
	.venv/bin/python -m benchmarks.speed.report benchmarks/results/*.json --out docs/benchmarks --pages
	.venv/bin/python -m benchmarks.gpu.host --pages
	.venv/bin/python -m benchmarks.study --from-results

## demo: train three small VAEs and draw what they reconstruct
demo: .venv/installed
	.venv/bin/python -m perceptual_losses.examples demo

## demo-smoke: the demo with few steps, in seconds
demo-smoke: .venv/installed
	.venv/bin/python -m perceptual_losses.examples demo --steps 100 --out runs/smoke

## study: train the models of docs/vae.md and write the page, 20 minutes
study: .venv/installed
	.venv/bin/python -m benchmarks.study

## long-run: train for 20,000 steps and watch the memory, 20 minutes
long-run: .venv/installed
	.venv/bin/python -m benchmarks.reliability.long_run

## bench-gpu: compare with other packages on a CUDA GPU
bench-gpu: .venv/installed
	.venv/bin/python -m benchmarks.speed.run --device cuda
	.venv/bin/python -m benchmarks.speed.report benchmarks/results/*.json --out docs/benchmarks --pages

## bench-host: measure the host's part of small steps on a GPU, without one, 1 minute
bench-host: .venv/installed
	.venv/bin/python $(STANDINS) benchmarks.gpu.host

## bench: compare with other packages on this CPU, an hour
bench: .venv/installed
	.venv/bin/python -m benchmarks.speed.run
	.venv/bin/python -m benchmarks.speed.report benchmarks/results/*.json --out docs/benchmarks --pages

## .venv: build the environment from the pinned lock
.venv: .venv/installed

## test-oldest: run the tests on the oldest releases that pyproject.toml declares
## test-newest: run the tests on the newest releases of requirements-newest.lock
test-oldest test-newest: test-%: .venv-%/installed
	$(call run-tests,.venv-$*/bin/python)

.venv/installed: requirements.lock pyproject.toml
.venv-oldest/installed: requirements-oldest.lock pyproject.toml
.venv-newest/installed: requirements-newest.lock pyproject.toml
.venv/installed .venv-oldest/installed .venv-newest/installed:
	$(PYTHON) -m venv $(@D)
	$(@D)/bin/python -m pip install --quiet --require-hashes -r $<
	$(@D)/bin/python -m pip install --quiet --no-deps --no-build-isolation -e .
	touch $@

# The empty environment gets the newest dependencies of the package index.
## release-check: build dist/ and try it in an empty environment
release-check: .venv/installed
	rm -rf dist
	.venv/bin/python -m tests.project.release

## lock: write the lock files, with uv
COMPILE = uv pip compile --quiet --universal --python-version 3.10 --generate-hashes \
	--no-header --no-annotate pyproject.toml - --extra
lock:
	printf 'torch==2.11.0\ntorchvision==0.26.0\n' | $(COMPILE) dev -o requirements.lock
	printf 'torch==2.7.0\ntorchvision==0.22.0\nnumba==0.61.0\nnumpy==1.26.4\n' \
		| $(COMPILE) oldest -o requirements-oldest.lock
	printf 'torch\ntorchvision\n' | $(COMPILE) dev -o requirements-newest.lock
