# What a person or CI calls. Each target does its own set-up first; the work is in scripts/.

VENV := .venv/bin

.DEFAULT_GOAL := help
.PHONY: help setup lock check test demo clean

help: ## this list
	@sed -n 's/^\([a-z]*\):.*## \(.*\)/  make \1\t\2/p' Makefile

setup: ## install what is needed: Debian packages, .venv, CRIU (root; repeatable)
	@scripts/setup.sh

lock: ## write requirements.lock anew from pyproject.toml
	@scripts/lock.sh

check: setup ## lint, format, types, layers
	$(VENV)/ruff check
	$(VENV)/ruff format --check
	$(VENV)/mypy
	$(VENV)/lint-imports

test: check ## every check and every test
	$(VENV)/python -m pytest

demo: setup ## move a redis with live clients to another node, and back
	@$(VENV)/netlab run demo

clean: ## remove .venv and tool caches (the CRIU cache stays: /var/cache/mycoproxy)
	rm -rf .venv *.egg-info build dist .mypy_cache .ruff_cache .pytest_cache .import_linter_cache .hypothesis
