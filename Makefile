# Each target makes .venv itself when it is missing or older than the pins.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
# DVC calls `python`: it must be the one with the pins, and kernels must find themselves.
export PATH := $(CURDIR)/$(BIN):$(PATH)

.PHONY: repro nothing_else repository test test-full bench gpu lab lint audit notebooks
# What does not need each other runs side by side, as many at once as JOBS says, each with its share
# of the cores: at the sample's size a second core adds little to one training step. A GPU takes one
# training at a time. `dvc repro`, here for whatever is left, does all, one after the other.
JOBS ?= $(if $(shell command -v nvidia-smi),1,2)
CORES := $(shell getconf _NPROCESSORS_ONLN)
THREADS := $(shell echo $$(($(CORES) > $(JOBS) ? $(CORES) / $(JOBS) : 1)))
# How many times as long as its first stage the whole sample takes: measured with this version on two
# idle cores. How fast a machine is, and how busy, that stage tells.
WHOLE := 26
repro: repository $(VENV)/installed
	$(BIN)/dvc repro check
	@start=$$(date +%s); $(call side_by_side,phantom) && \
	if [ reports/00b_phantom_phantom_a.ipynb -nt reports/check.txt ]; then \
	  echo "On this machine the sample, as it comes, takes about" \
	    "$$(( (($$(date +%s) - start) * $(WHOLE) + 59) / 60 )) minutes in all."; \
	fi
	$(call side_by_side,prepare prepare_external)
	$(call side_by_side,autoencoder)
	$(call side_by_side,train ablation evaluate generalize generalize_external tour foundations \
	  efficiency volumes visualize)
	$(BIN)/dvc repro

# All items of some stages, by the names that DVC has for them, in this order where nothing below says
# otherwise; DVC's lock keeps them apart where they write the same file. After one that fails no
# further one starts.
side_by_side = OMP_NUM_THREADS=$${OMP_NUM_THREADS:-$(THREADS)} $(MAKE) --jobs=$(JOBS) \
  --no-print-directory ITEMS="$(ITEMS)" $(call items,$(1)) nothing_else
items = $(addprefix item/,$(foreach stage,$(1),$(filter $(stage) $(stage)@%,$(ITEMS))))
ITEMS = $(eval ITEMS := $$(shell $(BIN)/dvc stage list --name-only 2>/dev/null))$(ITEMS)
# What of one such call waits for what: DVC refuses an item that reads what another writes just then.
ifeq ($(origin ITEMS),command line)
$(call items,evaluate): item/evaluate@%: item/train@%
$(call items,generalize generalize_external tour volumes visualize): $(call items,evaluate)
# These read no scores, but begun before them they would keep all that does waiting: 20 s of the sample.
$(call items,foundations efficiency): $(call items,evaluate)
$(call items,visualize): $(call items,ablation)
endif
item/%:
	@$(BIN)/dvc --wait-for-lock repro --single-item $*
nothing_else:
	@:

# DVC works in a git repository, which an unpacked download is not: said before minutes of installing.
repository:
	@folder="$$PWD"; \
	until [ -z "$$folder" ] || [ -e "$$folder/.git" ]; do folder=$${folder%/*}; done; \
	[ -n "$$folder" ] || grep -qs no_scm .dvc/config .dvc/config.local || { \
	  echo "error: $(CURDIR) is in no git repository, which DVC needs: run \`git init\`, or write the" \
	    "lines [core] and no_scm = true into .dvc/config.local to do without (and without" \
	    "\`dvc exp\`), and give the same command again" >&2; \
	  exit 1; }

# Side by side, each process with one thread: file by file, so that what a file's tests share is made
# once, the long files first (tests/conftest.py).
SIDE_BY_SIDE := --numprocesses auto --dist loadfile --no-loadscope-reorder
test: repository $(VENV)/installed
	$(BIN)/python -m pytest -m "not slow" $(SIDE_BY_SIDE)

# What `make test` leaves out: the sample's own pipeline twice, all that the documentation tells one to
# type, browsers, and many more hostile inputs.
test-full: repository $(VENV)/installed
	$(BIN)/python -m pytest -m slow --timeout 2700 $(SIDE_BY_SIDE)

# On an idle machine: about 25 minutes on two cores, less on a GPU. BENCH="--batch-sizes 1 4 12" and
# the like change what is measured, see `python -m wavegms bench --help`.
bench: $(VENV)/installed
	$(BIN)/python -m wavegms bench $(BENCH)

# On a machine with a CUDA card: tests, benchmark and the paper's training on BUSI, in MINUTES for all.
# It leaves results/proof/gpu. For a machine without network see docs/large_runs.md.
MINUTES ?= 9
gpu: $(VENV)/installed
	$(BIN)/python -m wavegms gpu --minutes $(MINUTES)

# Without the feed of news and the question for a newer version, which it would ask of its makers.
lab: $(VENV)/installed
	$(BIN)/jupyter lab --notebook-dir=notebooks --LabApp.news_url=None --LabApp.check_for_updates_class=jupyterlab.NeverCheckForUpdate

lint: $(VENV)/installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

# Online only: asks PyPI which pins have known weaknesses. Its tool stays in a place of its own, since
# no result follows from it and what it depends on would move the pins.
audit: $(VENV)/audit/installed
	@$(VENV)/audit/bin/pip-audit --strict --requirement constraints.txt --no-deps \
	  --disable-pip || { \
	  echo "make audit: a pin has a known weakness, or the service was not reached; see above" >&2; \
	  exit 1; }

# For those who change a notebook: run all anew, in the order of the pipeline and with its threads, by
# which the last digits differ, and store their outputs for git. DVC is told that the notebooks' new
# outputs are no reason to run the stages again.
notebooks: repro
	OMP_NUM_THREADS=$${OMP_NUM_THREADS:-$(THREADS)} $(BIN)/python -m wavegms refresh $(patsubst \
	  %,notebooks/%.ipynb,00b_phantom 01_prepare 01b_autoencoder 02_train 03_evaluate 03b_volumes \
	  04_ablation 05_domain_generalization 06_visualize 00_tour 07_efficiency 08_results 09_explore \
	  10_autoencoders)
	$(BIN)/dvc commit --force

$(VENV)/installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable ".[dev]"
	touch $@

$(VENV)/audit/installed: Makefile
	$(PYTHON) -m venv $(VENV)/audit
	$(VENV)/audit/bin/python -m pip install --quiet pip-audit==2.10.1
	touch $@
