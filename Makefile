# `make` alone lists the targets.
.PHONY: help check test test-all package golden licences tables

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

licences: ## the licence of each installed distribution, as its own metadata say
	@python -c 'import importlib.metadata as m; \
	of = lambda d: [d.get("License-Expression"), *(c.rpartition(" :: ")[2] for c in \
	    d.get_all("Classifier", []) if c[:7] == "License"), (d.get("License") or "?")[:60]]; \
	print(*sorted({f"{d.name} {d.version}: " + next(filter(None, of(d.metadata))).split("\n")[0] \
	    for d in m.distributions()}, key=str.lower), sep="\n")'

golden: ## write the golden losses again; review the difference in git
	BRAINSEG_WRITE_GOLDEN=1 pytest tests/brainseg/training/test_trainer.py -k golden

tables: ## write the tables of docs/report.md and docs/configuration.md again, from the code
	BRAINSEG_WRITE_TABLES=1 pytest tests/study/storage/test_schema.py tests/brainseg/test_configuration_page.py \
	    -k "documentation or page"
