# make demo         set up, restore and score bundled photographs, train for a minute, make a page
# make train-demo   set up, train a network from nothing and score it; about eight minutes on two cores
# make test         set up, lint and test
# make lint         style and types alone
# make docs         the documentation site, with the notebook run: runs/docs/index.html

VENV ?= .venv
PYTHON ?= python3
RUN := $(VENV)/bin/python
DEMO ?= runs/demo

.PHONY: demo train-demo test test-short lint docs

$(VENV)/ready: requirements.txt pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit("error: Python 3.11 or newer is needed, and $(PYTHON) is " + \
	  sys.version.split()[0] + "; name another: make PYTHON=python3.12" if sys.version_info < (3, 11) else 0)'
	$(PYTHON) -m venv --clear $(VENV)
	$(RUN) -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable ".[test]"
	touch $@

# Of the weights that come with this software: their scores, one minute of training that goes on from them, a page.
demo: $(VENV)/ready
	$(RUN) evaluate.py --output=$(DEMO)/evaluation
	$(RUN) -m concertormer_jax restore $(DEMO)/evaluation/pairs/input $(DEMO)/restored --compare
	$(RUN) train.py --config=configs/pocket.py:finetune --workdir=$(DEMO)/finetuned
	@echo; cat $(DEMO)/evaluation/results.md; echo
	@echo "Before and after, in any browser: $(DEMO)/evaluation/comparison.html"
	@if [ -n "$$DISPLAY$$WAYLAND_DISPLAY" ] || [ "$$(uname)" = Darwin ]; then \
	  $(RUN) -m webbrowser -t "file://$(abspath $(DEMO))/evaluation/comparison.html"; fi

# From nothing: trains the smallest network on bundled photographs and scores it on others.
train-demo: $(VENV)/ready
	$(RUN) train.py --config=configs/demo.py --workdir=$(DEMO)
	$(RUN) evaluate.py --ckpt=$(DEMO) --output=$(DEMO)/evaluation/tlc-off --tlc=off
	$(RUN) evaluate.py --ckpt=$(DEMO) --output=$(DEMO)/evaluation/tlc-auto --tlc=auto
	@echo; cat $(DEMO)/evaluation/tlc-off/results.md; tail -n 1 $(DEMO)/evaluation/tlc-auto/results.md; echo
	@echo "Before and after, in any browser: $(DEMO)/evaluation/tlc-off/comparison.html"

lint: $(VENV)/ready
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/ty check --python $(VENV)

test: lint
	$(RUN) -m pytest

# A warning, such as a link that leads nowhere, is an error. CI builds it in tests/test_docs.py.
docs: $(VENV)/ready
	$(RUN) -m sphinx --quiet --fresh-env --fail-on-warning --keep-going -c docs . runs/docs

# For another Python: make test-short PYTHON=python3.13 VENV=.venv-3.13
test-short: $(VENV)/ready
	$(RUN) -m pytest tests/test_concerto_attention.py tests/test_command_line.py tests/test_restorer.py tests/test_package.py \
	  tests/test_torch_format.py
