# make demo    train with torch.nn's norms and with these, side by side
# make test    lint, types, kernels interpreted, kernels compiled; no GPU needed
# make conformance    PyTorch's own test databases, passed/total by section; make test runs them too
# make results    measure what needs no GPU, and render the tables of README.md and docs/results.md
PYTHON ?= python3
BIN := .venv/bin
export PIP_DISABLE_PIP_VERSION_CHECK := 1
PYTEST := $(BIN)/python -m pytest -n 2 --dist worksteal

# Versions the tests run with. Naming torch's exactly keeps pip from choosing a far larger build.
TORCH := torch==2.13.0
TRITON := 3.9.0
# Interpreters before 3.9 turn one-element arrays into numbers as numpy 2.4 no longer lets them.
MATRIX := 3.6.0 3.7.1 3.8.0 3.9.0
# of the interpreted tests, those that reach every branch of the plans once; of the compiled ones, a few shapes
SMOKE := tests/test_norms.py -k branch_of_the_plan
SMOKE_COMPILED := tests/test_compile.py -k "real and sm_90 and bfloat16 and (layer or 320)"

.PHONY: demo results conformance test test-interpreted test-compiled test-matrix sweep smoke lint clean

demo: .venv/demo
	$(BIN)/python examples/demo.py

results: .venv/test
	$(BIN)/python -m normtriton.perf.results

test: lint test-interpreted test-compiled

conformance: .venv/test
	$(BIN)/python tests/conformance.py

lint: .venv/test
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

test-interpreted: .venv/test
	TRITON_INTERPRET=1 $(PYTEST)

test-compiled: .venv/test
	TRITON_INTERPRET=0 $(PYTEST) tests/test_compile.py tests/test_timed.py tests/test_baseline.py

# Shapes that no list has, a seeded sample for each target: slow.
sweep: .venv/test
	TRITON_INTERPRET=0 $(PYTEST) -m slow tests/test_compile_sweep.py

# Every Triton release that is supported, interpreted and compiled. Whole models depend on none.
test-matrix: $(MATRIX:%=matrix-%)

matrix-%: .venv-%/done
	TRITON_INTERPRET=1 .venv-$*/bin/python -m pytest -n 2 --ignore tests/test_models.py
	TRITON_INTERPRET=0 .venv-$*/bin/python -m pytest -n 2 tests/test_compile.py

# The oldest supported Triton, in brief.
smoke: .venv-3.6.0/done
	TRITON_INTERPRET=1 .venv-3.6.0/bin/python -m pytest -n 2 $(SMOKE)
	TRITON_INTERPRET=0 .venv-3.6.0/bin/python -m pytest -n 2 $(SMOKE_COMPILED)

.venv/torch:
	$(PYTHON) -m venv .venv
	$(BIN)/pip install -q $(TORCH) triton==$(TRITON)
	touch $@

.venv/test: .venv/torch pyproject.toml
	$(BIN)/pip install -q -e '.[test,demo,models,perf]'
	touch $@

.venv/demo: .venv/torch pyproject.toml
	$(BIN)/pip install -q -e '.[demo]'
	touch $@

.venv-%/done: pyproject.toml
	$(PYTHON) -m venv .venv-$*
	.venv-$*/bin/pip install -q $(TORCH) triton==$* $(if $(filter 3.9.0,$*),,'numpy<2.4')
	.venv-$*/bin/pip install -q -e '.[test,perf]'
	touch $@

clean:
	rm -rf .venv .venv-* build *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis demo.png
