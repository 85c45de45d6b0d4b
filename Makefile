# make demo   set up, train on bundled photographs, evaluate, restore; about ten minutes on two cores
# make test   set up, lint and test
# make lint   style and types alone

VENV ?= .venv
PYTHON ?= python3
RUN := $(VENV)/bin/python
DEMO ?= runs/demo

.PHONY: demo test test-short lint

$(VENV)/ready: requirements.txt pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit("error: Python 3.11 or newer is needed, and $(PYTHON) is " + \
	  sys.version.split()[0] + "; name another: make PYTHON=python3.12" if sys.version_info < (3, 11) else 0)'
	$(PYTHON) -m venv --clear $(VENV)
	$(RUN) -m pip install --quiet --disable-pip-version-check --editable ".[test]"
	touch $@

demo: $(VENV)/ready
	$(RUN) train.py --config=configs/demo.py --workdir=$(DEMO)
	$(RUN) -m concertormer_jax synthesize photos/test $(DEMO)/data
	$(RUN) evaluate.py --ckpt=$(DEMO) --data=$(DEMO)/data --output=$(DEMO)/evaluation/tlc-off --tlc=off
	$(RUN) evaluate.py --ckpt=$(DEMO) --data=$(DEMO)/data --output=$(DEMO)/evaluation/tlc-auto --tlc=auto
	$(RUN) -m concertormer_jax restore --ckpt=$(DEMO) $(DEMO)/data/input/sklearn_china.png $(DEMO)/restored.png --compare
	@echo
	@cat $(DEMO)/evaluation/tlc-off/results.md; tail -n 1 $(DEMO)/evaluation/tlc-auto/results.md
	@echo
	@echo "Pictures: $(DEMO)/evaluation/tlc-off/worst_ten.png, $(DEMO)/samples/, and before and after in $(DEMO)/"

lint: $(VENV)/ready
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/ty check --python $(VENV)

test: lint
	$(RUN) -m pytest

# For another Python: make test-short PYTHON=python3.13 VENV=.venv-3.13
test-short: $(VENV)/ready
	$(RUN) -m pytest tests/test_concerto_attention.py tests/test_step.py tests/test_command_line.py tests/test_restorer.py \
	  tests/test_convert.py tests/test_package.py
