# Set-up, demo and tests; README.md says what each does.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
WORKERS ?= 2
READY := $(VENV)/.ready

.PHONY: install demo test test-slurm test-full check format clean

install: $(READY)

# The lock is the tested set; the package itself is installed in place.
$(READY): requirements.lock setup.py
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	DS_BUILD_OPS=0 $(BIN)/python -m pip install --quiet -r requirements.lock
	$(BIN)/python -m pip install --quiet --no-deps --editable .
	touch $(READY)

demo: $(READY)
	$(BIN)/python launch/demo.py

# Two pytest workers share the files: most tests compute on one core, or wait for processes of their own.
test: $(READY)
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -m "not slurm and not drill" --durations=15 -n $(WORKERS) --dist loadfile

# On a real Slurm, started by the tests themselves (Debian: slurmctld slurmd slurm-client munge).
test-slurm: $(READY)
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -m slurm --durations=15 -n $(WORKERS) --dist load

# Whole runs and launchers several times over, every engine resumed on every other, ten kills.
test-full: $(READY)
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -m drill --durations=15 -n $(WORKERS) --dist loadfile

check: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: $(READY)
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

clean:
	rm -rf $(VENV) build dist *.egg-info demo_run
