# The commands of a checkout. All that a fresh clone needs is python3 (3.10 or newer) and make.

PYTHON ?= python3
BACKEND ?= tensorboard

bin := .venv/bin
# To compile every file of torch and the others takes as long as to fetch them; what is imported is compiled then, and
# kept: where the environment forbids that, each of a hundred processes would compile it again.
unexport PYTHONDONTWRITEBYTECODE
pip := $(bin)/python -m pip --disable-pip-version-check install --quiet --quiet --no-compile --constraint constraints.txt

.PHONY: help demo sweep-demo test lint bench format clean

help:
	@echo "make demo                 train two small models and log what is inside them, to TensorBoard under runs/"
	@echo "make demo BACKEND=wandb   the same, to W&B runs that stay on this machine"
	@echo "make sweep-demo           a sweep of 12 trials at a stand-in of the W&B service: which parameter kills what"
	@echo "make test                 every check and test"
	@echo "make lint                 the checks alone: format, rules, types, layers"
	@echo "make bench                measure what vizlog costs, beside its peers"
	@echo "make format               format the code and mend what the linter can"
	@echo "make clean                remove .venv and everything that was made"

demo: .venv/demo.stamp
	@$(bin)/python examples/lightning_digits.py --backend $(BACKEND)
	@$(bin)/python examples/plain_loop_text.py --backend $(BACKEND)
ifeq ($(BACKEND),wandb)
	@echo
	@echo "Two offline W&B runs were written under runs/. To look at them, with an account: $(bin)/wandb sync runs/wandb/offline-run-*"
else
	@echo
	@echo "TensorBoard logs were written under runs/. To look at them: $(bin)/tensorboard --logdir runs"
endif

sweep-demo: .venv/test.stamp
	@$(bin)/python -m tests.sweep_demo

# pytest comes last, so that its summary is what one sees.
test: lint
	$(bin)/python -m pytest --numprocesses 2 --dist loadfile --no-loadscope-reorder

lint: .venv/test.stamp
	$(bin)/ruff format --check --quiet .
	$(bin)/ruff check --quiet .
	$(bin)/mypy
	$(bin)/lint-imports --no-logo --no-cache

bench: .venv/test.stamp
	$(bin)/python -m benchmarks

format: .venv/test.stamp
	$(bin)/ruff format .
	$(bin)/ruff check --fix .

clean:
	rm -rf .venv build dist runs wandb lightning_logs *.egg-info .coverage .*_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

.venv/bin/python:
	@echo "Making .venv"
	@$(PYTHON) -m venv .venv

.venv/demo.stamp: pyproject.toml constraints.txt | .venv/bin/python
	@echo "Installing vizlog and what it uses into .venv (a few minutes the first time)"
	@$(pip) --editable '.[all]'
	@touch $@

.venv/test.stamp: pyproject.toml constraints.txt | .venv/bin/python
	@echo "Installing vizlog, what it uses and what tests it into .venv (a few minutes the first time)"
	@$(pip) --editable '.[all,test]'
	@touch $@ .venv/demo.stamp
