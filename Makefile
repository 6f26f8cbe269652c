# `make help` lists the targets. Every target builds the virtual environment when it is missing.
SCALE    ?= quick
DATA     ?= auto
DATA_DIR ?= data
OUT      ?= runs
STORAGE  ?= journal
WORKERS  ?= 2
SEEDS    ?=
TRAIN    ?= yes
PUBLISHED ?= yes
PYTHON   ?= python3
PORT     ?= 6006
SEARCH   ?= sweeps/search_vqgan_lc.yaml
TRIALS   ?=
CHECKPOINTS ?= checkpoints
FILE     ?= experiments/vqgan_lc_imagenet.yaml
DEVICES  ?=
ARGS     ?=

PY    := .venv/bin/python
READY := .venv/.ready
GPU_PY = $(if $(wildcard $(PY)),$(PY),$(PYTHON))
# In the environment, where make does not print it: it may hold a password.
export STORAGE
CELLS  = --scale $(SCALE) --data $(DATA) --data-dir "$(DATA_DIR)" --output-dir "$(OUT)" $(if $(SEEDS),--seeds $(SEEDS))
SWEEP  = $(PY) -m sweeps.run $(CELLS) --workers $(WORKERS) $(if $(filter no,$(PUBLISHED)),--no-published)
TABLE  = $(PY) -m sweeps.table $(CELLS)
SAMPLES = $(PY) -m sweeps.samples $(CELLS)
SHOWN  = $(filter-out sweeps/search_% sweeps/claims.yaml,$(sort $(wildcard sweeps/*.yaml sweeps/*/*[0-9].yaml)))
GENERATED = sweeps/vit_vqgan/table6.yaml sweeps/vqgan_lc/table4.yaml
# Trains what is missing of a sweep and shows its tables; with TRAIN=no only the latter. The empty line ends the recipe.
define show
$(if $(filter yes,$(TRAIN)),$(SWEEP),$(TABLE)) $(1)

endef

define strips
$(SAMPLES) $(1)

endef

.PHONY: help setup check-data preview ablation-codebook factorized-codes losses generate probe search tables claims leaderboard \
        report dashboard bench gpu-check check format classify release docs \
        options test test-fast clean
.DEFAULT_GOAL := help

help: ## list targets and variables
	@awk -F ':.*## ' '/^[a-z0-9%-]+:.*## / {printf "  make %-18s %s\n", $$1, $$2}' $(MAKEFILE_LIST)
	@echo
	@echo "  SCALE=quick|reduced|cifar|paper   quick: minutes on a laptop (default); reduced: hours;"
	@echo "                              cifar: all of CIFAR-10, minutes on one GPU that WORKERS=8 share; paper: ImageNet, many GPUs"
	@echo "  DATA=auto|cifar10|shapes|image_folder   auto: CIFAR-10 from DATA_DIR, else downloaded, else rendered shapes"
	@echo "  DATA_DIR=data               where the data is, or is downloaded to"
	@echo "  OUT=runs                    where checkpoints, logs, records and tables go"
	@echo "  WORKERS=2                   cells trained at the same time on this machine, each with its share of the cores"
	@echo "  TRAIN=yes|no                no: show what is finished, train nothing"
	@echo "  PUBLISHED=yes|no            no: train also what only the repository's published records hold, which have no weights"
	@echo "  SEEDS=0,1                   seeds of each cell; a table shows their mean and spread"
	@echo "  STORAGE=journal             the sweep's queue: a file in OUT, or postgresql://... for many machines: docs/sweeps.md"

setup: $(READY) ## build the virtual environment .venv (Python 3.11 or newer)

$(READY): pyproject.toml
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or newer is needed: make PYTHON=python3.11")'
	test -x $(PY) || $(PYTHON) -m venv .venv
	$(PY) -m pip install --quiet --editable '.[dev]'
	touch $(READY)

check-data: $(READY) ## every image of DATA_DIR=photos decoded once: what is damaged, unusual, doubled or not read (ARGS=data.image_size=128)
	$(PY) -m experiments.check_data --data-dir "$(DATA_DIR)" $(ARGS)

preview: $(READY) ## what FILE=experiments/....yaml costs (DEVICES=32): sizes, MACs, memory, hours; seconds, no data
	$(PY) -m experiments.preview "$(FILE)" $(if $(DEVICES),--devices $(DEVICES))

ablation-codebook: $(READY) ## {VQ, FC, FC+l2, EMA, LC, ...} x codebook size, and latent dimension: train what is missing, show the tables
	$(call show,sweeps/ablation_codebook.yaml)

factorized-codes: $(READY) ## what decides how many factorized codes are used: l2-norm, dimension, order of the VQ terms
	$(call show,sweeps/factorized_codes.yaml)

losses: $(READY) ## what each loss of ViT-VQGAN is for: logit-Laplace, L2 and perceptual left out in turn (A, section 3.3)
	$(call show,sweeps/vit_vqgan/section3_3.yaml)

search: $(READY) ## SEARCH=sweeps/search_....yaml TRIALS=20: best values of a recipe's keys by TPE, hopeless trials ended early
	$(PY) -m sweeps.search "$(SEARCH)" --scale $(SCALE) --data $(DATA) --data-dir "$(DATA_DIR)" --output-dir "$(OUT)" \
	  --workers $(WORKERS) $(if $(TRIALS),--trials $(TRIALS))

table%: $(READY) ## table1 ... table11: that table of both papers, where they have one
	$(if $(wildcard sweeps/*/table$*.yaml),,$(error no paper has a table $* that this suite makes))
	$(foreach file,$(wildcard sweeps/*/table$*.yaml),$(call show,$(file)))

figure%: $(READY) ## figure3, figure5: utilisation by epoch, PSNR with the M-th nearest code (VQGAN-LC)
	$(if $(wildcard sweeps/*/figure$*.yaml),,$(error no paper has a figure $* that this suite makes))
	$(foreach file,$(wildcard sweeps/*/figure$*.yaml),$(call show,$(file)))

generate: $(READY) ## tokenizer -> tokens or latents -> VIM, GPT, LDM, DiT, SiT -> images with FID (A-Table 6, B-Table 4), and strips of them
	$(foreach file,$(GENERATED),$(call show,$(file)))
	$(if $(filter yes,$(TRAIN)),$(foreach file,$(GENERATED),$(call strips,$(file))))

probe: $(READY) ## tokenizer -> tokens -> VIM -> linear probe of every block (A-Table 7, A-Figure 3)
	$(call show,sweeps/vit_vqgan/table7.yaml)

classify: $(READY) ## tokenizer -> tokens -> ViT on codes or decoded images, beside untouched ones (B, section 4.2)
	$(call show,sweeps/vqgan_lc/section4_2.yaml)

tables: $(READY) ## render every table and figure from finished records; trains nothing
	$(TABLE) $(SHOWN)

report: $(READY) ## the tables of SCALE and all verdicts as one page that needs no network, OUT/report.html; trains nothing
	$(PY) -m sweeps.report $(CELLS) $(SHOWN)

claims: $(READY) ## which of the papers' conclusions hold: verdicts from finished records into docs/claims.md; trains nothing
	$(PY) -m sweeps.claims --output-dir "$(OUT)"

leaderboard: $(READY) ## every tokenizer in CHECKPOINTS=folder, public or own, by one protocol on DATA_DIR: one table, also in OUT
	$(PY) -m experiments.leaderboard "$(CHECKPOINTS)" --data $(DATA) --data-dir "$(DATA_DIR)" --output-dir "$(OUT)" $(ARGS)

release: $(READY) ## build/release: the trained tokenizers of OUT as archives with model cards and checksums; prints how to publish them
	$(PY) -m experiments.release --output-dir "$(OUT)"

dashboard: $(READY) ## TensorBoard over all runs
	@echo "rFID, PSNR, utilisation and losses of all runs: http://localhost:$(PORT)/#custom_scalars"
	$(PY) -m tensorboard.main --logdir "$(OUT:~/%=$(HOME)/%)/experiments" --port $(PORT)

bench: $(READY) ## benchmarks, each against its alternative in the same run, about a quarter of an hour; writes docs/benchmarks.md
	@$(PY) -m pip install --quiet --editable '.[dev,bench]'
	$(PY) -m benchmarks.collect docs/benchmarks.md

gpu-check: ## on a machine with a GPU, with or without .venv: the tests that need one, then a line a bar of benchmarks.gpu
	$(GPU_PY) -m pytest -m gpu tests/gpu -rs
	$(GPU_PY) -m benchmarks.gpu

check: $(READY) ## ruff (lint and format) and mypy
	$(PY) -m ruff check .
	$(PY) -m ruff format --check .
	$(PY) -m mypy

docs: $(READY) ## the documentation as a site in build/site, to read without a network; API, options, tables, notebook
	@$(PY) -m pip install --quiet --editable '.[dev,docs]'
	NO_MKDOCS_2_WARNING=1 $(PY) -m mkdocs build --strict --quiet
	@echo "build/site/index.html; with the search: $(PY) -m http.server -d build/site"

options: $(READY) ## write docs/options.md, the page of all options, from the dataclasses
	$(PY) -m docs.options

format: $(READY) ## let ruff fix what it can
	$(PY) -m ruff check --fix .
	$(PY) -m ruff format .

PYTEST = DATA_DIR="$(abspath $(wildcard $(DATA_DIR)))" OMP_NUM_THREADS=1 $(PY) -m pytest \
           -n $(WORKERS) --dist loadfile --no-loadscope-reorder

test: $(READY) ## all tests, WORKERS files at a time
	$(PYTEST) --durations=25

test-fast: $(READY) ## what takes less than a second each, for the edit loop
	$(PYTEST) -m "not slow"

clean: ## remove the environment and caches, never runs or data
	rm -rf .venv build *.egg-info .mypy_cache .ruff_cache .pytest_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
