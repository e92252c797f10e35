# `make` alone lists the targets.
.PHONY: help check test test-all package golden tables

help:
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed 's/:.*##/\t/' | expand -t 12

check: ## format, lint, types: what pre-commit runs too
	ruff format --check .
	ruff check .
	mypy

test: ## the fast tests, without the slow ones
	pytest

test-all: ## every test, the slow ones included
	pytest -m "slow or not slow"

package: ## the source archive and the wheel, below dist/
	python -m build --no-isolation

golden: ## write the golden losses again; review the difference in git
	BRAINSEG_WRITE_GOLDEN=1 pytest tests/brainseg/training/test_trainer.py -k golden

tables: ## write the tables of docs/report.md again, from study/storage/schema.py
	BRAINSEG_WRITE_TABLES=1 pytest tests/study/storage/test_schema.py -k documentation
