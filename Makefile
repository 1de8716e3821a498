# Set-up and the main jobs; every target makes the virtual environment first. See README.md.
#
#   make demo    stages 01 to 06 on the bundled data with the offline BERT
#   make test    the whole test suite
#   make check   formatter, linter, types
#   make fuzz    the compiled tokenizer beside `tokenizers` on a million strings
#                (DATA=folder of the data folders; without, on the bundled data)
#   make sanitize  the native runtime's tests under the address and undefined-behaviour sanitizers
#   make bench   what the logit cache saves, beside a teacher pass (after make demo)
#   make speed   inference, training and caching beside their peers, then docs/speed.md; two hours
#                (DATA=folder of the data folders; without, on the bundled data)
#   make serving the server and `bert-kd predict` beside their peers, then docs/serving.md; half an
#                hour (after make demo)
#   make quality students beside teacher, twins and control models on the bundled data

PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
EXTRAS := runtime,serve,report,offline,dev
# A torch that the user's Python has already (a CUDA build, say) is used as it is; one in a virtual
# environment can't be seen from another.
OWN_TORCH = $(shell $(PYTHON) -c 'import importlib.util as u, sys; sys.exit(sys.prefix != sys.base_prefix or not u.find_spec("torch"))' && echo yes)

.PHONY: setup demo test check bench speed serving quality fuzz sanitize clean

setup: $(VENV)/.ready

$(VENV)/.ready: setup.cfg setup.py pyproject.toml constraints.txt $(wildcard bert_kd/runtime/native/src/*)
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "bert_kd needs Python 3.11 or newer; set PYTHON=python3.x"; exit 2; }
	$(PYTHON) -m venv $(if $(OWN_TORCH),--system-site-packages) $(VENV)
	$(if $(OWN_TORCH),grep -v '^torch==' constraints.txt,cat constraints.txt) > $(VENV)/constraints.txt
	$(if $(OWN_TORCH),,$(BIN)/pip install --quiet -c $(VENV)/constraints.txt torch==2.13.0)
	$(BIN)/pip install --quiet -c $(VENV)/constraints.txt -e '.[$(EXTRAS)]'
	@touch $@

demo: setup
	$(BIN)/bert-kd run --config scripts/configs/demo.toml
	@echo
	$(BIN)/bert-kd predict --bundle runs/demo/bundles/base \
		--text "where is my parcel, it was due on monday" \
		--text "I don't want my money back, I want one whose lid closes" \
		--text "cant log in, the code never comes"

test: setup
	$(BIN)/python -m pytest

check: setup
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy

bench: setup
	$(BIN)/python benchmarks/cache_reuse.py --json benchmarks/results/cache_reuse.json

DATA ?=
SPEED_DATA := $(if $(DATA),--data $(DATA))
RESULTS := benchmarks/results

speed: setup
	$(BIN)/pip install --quiet -c $(VENV)/constraints.txt -e ".[bench]"
	$(BIN)/python benchmarks/inference.py $(SPEED_DATA) --work runs/inference --minutes 40 \
		--json $(RESULTS)/inference.json
	$(BIN)/python benchmarks/training.py $(SPEED_DATA) --json $(RESULTS)/training.json
	$(BIN)/python benchmarks/training.py $(SPEED_DATA) --hidden 256 --accuracy \
		--json $(RESULTS)/training-accuracy.json
	$(BIN)/python benchmarks/caching.py $(SPEED_DATA) --json $(RESULTS)/caching.json
	$(BIN)/python benchmarks/caching.py $(SPEED_DATA) --freezing \
		--json $(RESULTS)/caching-freezing.json
	$(BIN)/python benchmarks/caching.py --memory 10000 100000 1000000 \
		--json $(RESULTS)/caching-memory.json
	$(BIN)/python benchmarks/speed_docs.py

serving: setup
	$(BIN)/pip install --quiet -c $(VENV)/constraints.txt -e ".[bench]"
	$(BIN)/python benchmarks/serving.py --memory-minutes 10 --json $(RESULTS)/serving.json
	$(BIN)/python benchmarks/bulk.py --long-rows 10000000 --json $(RESULTS)/bulk.json
	$(BIN)/python benchmarks/serving_docs.py

quality: setup
	$(BIN)/pip install --quiet -c $(VENV)/constraints.txt -e ".[bench]"
	$(BIN)/python benchmarks/quality.py --suite helpdesk --seeds 5 \
		--json benchmarks/results/quality-helpdesk.json --write-docs

fuzz: setup
	PYTHONPATH=. $(BIN)/python tests/runtime/native/fuzz_tokenizer.py $(SPEED_DATA)

sanitize: setup
	$(BIN)/python tests/runtime/native/sanitize.py

clean:
	rm -rf $(VENV) build dist *.egg-info .mypy_cache .ruff_cache .pytest_cache
