# Everything sets itself up; a fresh machine needs python3 (3.11 or newer), pip and make.
PYTHON ?= python3
UV := .tools/bin/uv
BIN := .venv/bin
UV_ENV := UV_PYTHON_DOWNLOADS=never UV_PROJECT_ENVIRONMENT=.venv
LOCK := $(UV) pip compile pyproject.toml -q --universal --generate-hashes --no-header --no-annotate --no-emit-index-url

.PHONY: demo test compare lint format bench figures router docs wheel lock techniques clean
.DEFAULT_GOAL := test

demo: .venv/.demo
	$(BIN)/python -m optillm.demo

test: .venv/.dev
	$(BIN)/pytest -n 4 --dist worksteal

compare: .venv/.dev
	$(UV_ENV) $(UV) pip install -q --python $(BIN)/python --require-hashes -r requirements/compare.txt
	$(BIN)/pytest tests/compare

lint: .venv/.dev
	$(BIN)/ruff format --check optillm tests benchmarks
	$(BIN)/ruff check optillm tests benchmarks
	$(BIN)/mypy
	$(BIN)/lint-imports

format: .venv/.dev
	$(BIN)/ruff format optillm tests benchmarks
	$(BIN)/ruff check --fix optillm tests benchmarks

bench: .venv/.dev
	$(BIN)/python -m benchmarks

figures: .venv/.dev
	$(BIN)/python -m benchmarks.figures

router: .venv/.dev
	$(BIN)/python -m benchmarks.router

docs: .venv/.dev
	$(BIN)/mkdocs build --strict -q

techniques: .venv/.dev
	rm -rf docs/techniques
	$(BIN)/optillm approaches --markdown docs/techniques

wheel: .venv/.dev
	$(BIN)/hatchling build -t wheel

lock: $(UV)
	$(LOCK) --group dev --extra embedded --extra azure --extra wsgi --extra sandbox --extra wasm --extra store --extra postgres --extra train -o requirements/dev.txt
	$(LOCK) --group demo -c requirements/dev.txt -o requirements/demo.txt
	$(LOCK) --group compare -c requirements/dev.txt -o requirements/compare.txt

clean:
	rm -rf .venv .tools dist site

$(UV):
	$(PYTHON) -m pip install -q --disable-pip-version-check --root-user-action=ignore --target .tools uv==0.13.8

.venv/.dev: $(UV) requirements/dev.txt pyproject.toml
	@test -d .venv || $(UV_ENV) $(UV) venv -q --python $(PYTHON) .venv
	$(UV_ENV) $(UV) pip sync -q --python $(BIN)/python --require-hashes requirements/dev.txt
	$(UV_ENV) $(UV) pip install -q --python $(BIN)/python --no-deps --no-build-isolation -e .
	$(BIN)/python -m optillm.sandbox.fetch --python $(PYTHON)
	@touch $@ .venv/.demo

# Once the development set is there, it serves the demo as well.
.venv/.demo: $(UV) requirements/demo.txt pyproject.toml
	@test -d .venv || $(UV_ENV) $(UV) venv -q --python $(PYTHON) .venv
	$(UV_ENV) $(UV) pip install -q --python $(BIN)/python --require-hashes -r requirements/demo.txt
	$(UV_ENV) $(UV) pip install -q --python $(BIN)/python --no-deps --no-build-isolation -e .
	@touch $@
