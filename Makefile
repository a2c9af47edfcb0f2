# make demo    train with torch.nn's norms and with these, side by side
# make test    lint, types, kernels interpreted, compiled, and executed as compiled code; no GPU needed
# make emulated    every kernel that can be executed as compiled code, on each target; slow
# make conformance    PyTorch's own test databases, passed/total by section: most of an hour; make test runs a part
# make results    measure what needs no GPU, and render the tables of README.md and docs/results.md
# make docs    build the site of these pages into site/; warnings are errors
PYTHON ?= python3
BIN := .venv/bin
export PIP_DISABLE_PIP_VERSION_CHECK := 1
# Modules are compiled where they are first imported, and kept: `import torch` takes half the time in all later processes.
export PYTHONDONTWRITEBYTECODE :=
# A thread for each of two workers: on two cores, a second one of each spins while it waits for the other's.
PYTEST := OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist worksteal

# Versions the tests run with. Naming torch's exactly keeps pip from choosing a far larger build.
TORCH := torch==2.13.0
TRITON := 3.9.0
# Interpreters before 3.9 turn one-element arrays into numbers as numpy 2.4 no longer lets them.
MATRIX := 3.6.0 3.7.1 3.8.0 3.9.0
# of the interpreted tests, those that reach every branch of the plans once; of the compiled ones, a few shapes
SMOKE := tests/test_norms.py -k branch_of_the_plan
SMOKE_COMPILED := tests/test_compile.py -k "(real or surrounds) and sm_90 and bfloat16 and (layer or 320)"

.PHONY: demo docs results conformance test test-interpreted test-compiled test-emulated emulated test-matrix sweep smoke lint clean

demo: .venv/demo
	$(BIN)/python examples/demo.py

docs: .venv/docs
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --strict --quiet

results: .venv/test
	$(BIN)/python -m normtriton.perf results

test: lint test-interpreted test-compiled test-emulated

conformance: .venv/test
	$(BIN)/python tests/conformance.py

lint: .venv/test
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/clang-format --dry-run --Werror $$(git ls-files 'perf/emulator/cpp/*')
	$(BIN)/mypy
	.ci/layers

test-interpreted: .venv/test
	TRITON_INTERPRET=1 $(PYTEST)

test-compiled: .venv/test
	TRITON_INTERPRET=0 $(PYTEST) tests/test_compile.py tests/test_ptx.py tests/test_baseline.py tests/test_model.py tests/test_timed.py

# Compiled kernels, executed on the CPU: the emulator's own tests, and a sample of each target.
test-emulated: .venv/test
	$(PYTEST) --compiled sm_90 tests/test_emulator.py tests/test_emulator_async.py tests/test_emulated.py
	$(PYTEST) --compiled sm_80 tests/test_emulated.py

# All of it: every branch, layout, dtype and target, running statistics, real shapes, and the project's own tests.
EMULATED_TESTS := tests/test_norms.py tests/test_exactness.py tests/test_running.py tests/test_clusters.py
emulated: .venv/test $(addprefix emulated-,sm_80 sm_90 sm_100)
	$(PYTEST) --compiled sm_90 --chaos $(EMULATED_TESTS)
	$(PYTEST) --compiled sm_80 --chaos --seed 2 $(EMULATED_TESTS)

emulated-%: .venv/test
	$(BIN)/python -m normtriton.perf emulate --target $* --kinds branches,layouts,running,stages,real

# What else is compiled: shapes that no list has, a seeded sample for each target, and the rest of the real shapes.
sweep: .venv/test
	TRITON_INTERPRET=0 $(PYTEST) -m slow tests/test_compile_sweep.py tests/test_compile.py tests/test_ptx.py

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
	$(BIN)/python -m pip install -q --no-compile $(TORCH) triton==$(TRITON)
	touch $@

.venv/test: .venv/torch pyproject.toml
	$(BIN)/python -m pip install -q --no-compile -e '.[test,demo,models,perf]'
	touch $@

.venv/demo: .venv/torch pyproject.toml
	$(BIN)/python -m pip install -q --no-compile -e '.[demo]'
	touch $@

.venv/docs: .venv/torch pyproject.toml
	$(BIN)/python -m pip install -q --no-compile -e '.[docs]'
	touch $@

.venv-%/done: pyproject.toml
	$(PYTHON) -m venv .venv-$*
	.venv-$*/bin/python -m pip install -q --no-compile $(TORCH) triton==$* $(if $(filter 3.9.0,$*),,'numpy<2.4')
	.venv-$*/bin/python -m pip install -q --no-compile -e '.[test,perf]'
	touch $@

clean:
	rm -rf .venv .venv-* build site *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis demo.png
