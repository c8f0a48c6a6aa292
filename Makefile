# make bench     time fastrnn against torch.nn and print a table
# make test      run the test suite
# make stress    random calls at real sizes for SECONDS, against torch.nn
# make lint      check style: ruff, clang-format
# make clang     compile the extension by Clang, where a warning is an error, and run quick tests
# make arm       compile the kernels and their C++ tests for 64-bit ARM, read the hot loops, and run the
#                tests under qemu-user
# make wheel     build a wheel into dist, and check that it is one of manylinux_2_28
# make docs      build the site of the documentation, build/site; a broken link is an error
# make build     compile the extension in place (incremental)
# make emulated  compile the CUDA kernels for the host and test them there (a part of make test)
# make gpu       build, test, sanitize and time on the NVIDIA GPU at hand, into the folder OUT
# make micro     compile the GPU programs of bench/micro (needs nvcc, no GPU)
# make cuda-check  compile and link csrc/cuda, list what each kernel takes (needs nvcc, no GPU)
# make sanitize  run the C++ tests under the address and undefined-behaviour sanitizers, and those of
#                threads under that of threads
# make coverage  which lines of csrc/cpu the tests of threads and the C++ tests reach
# make every-float  check sigmoid and tanh at all floats, half a minute on two cores
# make thirdparty  train other people's libraries with our modules in them (needs a network)
# make torch-tests  PyTorch's own tests of recurrent modules, from the folder TESTS of its sources, with ours in
#                their place (needs a network)
# make clean     remove everything that these made, .venv included
#
# The first call sets up .venv; later ones install and compile only what changed. Variables:
#   PYTHON         the interpreter that .venv is made of
#   TORCH          what pip installs as torch; it may carry pip's options, to choose a CPU build say
#   FASTRNN_BUILD  auto, none, cpu or cuda (see setup.py)
#   SECONDS        of make stress, 300
#   CLANG          of make clang, and of the hot loops of make arm: the newest clang++-N in /usr/bin, from 16 on
#   ARM_CXX, QEMU  of make arm
# `make gpu` sets nothing up: it takes PYTHON with the torch that it has, and needs no network. It
# builds nothing with SKIP_BUILD=1, and the tests may import what lies as wheels in the folder WHEELS.

PYTHON ?= python3
TORCH ?= torch==2.13.0
FASTRNN_BUILD ?= auto
SECONDS ?= 300
export FASTRNN_BUILD

VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check
SOURCES := $(shell find csrc -type f -not -name '*.pyc')
CPP_TESTS := $(wildcard tests/cpp/test_*.cpp)
CPP_STYLED := $(filter-out %.py,$(SOURCES)) $(shell find tests/cpp -name '*.h' -o -name '*.cpp' 2>/dev/null) \
    $(wildcard bench/*.c bench/micro/*.cu bench/micro/*.cuh)

# Empty files that date the last installation and the last compilation.
INSTALLED := $(VENV)/installed
BUILT := $(VENV)/built-$(FASTRNN_BUILD)
EMULATED := build/emulated.so
CUDA_TESTS := tests/test_cuda.py tests/test_cuda_calls.py tests/test_cuda_errors.py tests/test_cuda_persistent.py

# GCC's address sanitizer; where there is none, the emulation does without. It must be in the process
# before Python, and with it the library whose exceptions it watches.
ASAN := $(wildcard $(shell $(CXX) -print-file-name=libasan.so 2>/dev/null))
PRELOAD := $(if $(ASAN),$(ASAN) $(shell $(CXX) -print-file-name=libstdc++.so))

.PHONY: bench test stress lint docs build emulated gpu micro cuda-check sanitize coverage every-float
.PHONY: arm clang wheel thirdparty torch-tests clean
.DELETE_ON_ERROR:
.SECONDARY:

bench: $(BUILT)
	$(BIN)/python -m bench

# Two processes of one thread each; tests of threading set their own number. A file is not divided,
# so that what its fixtures build is built once.
test: $(BUILT)
	@if ls fastrnn/_C*.so >/dev/null 2>&1; then $(MAKE) --no-print-directory emulated; fi
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist loadfile $(CUDA_TESTS:%=--ignore %)

# The number of threads is a part of each call; this one is of what checks it.
stress: $(BUILT)
	OMP_NUM_THREADS=1 PYTHONPATH=tests $(BIN)/python -m stress --seconds $(SECONDS)

lint: $(INSTALLED)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/clang-format --dry-run -Werror $(CPP_STYLED)

# Reads the sources without importing them. A variable silences an advertisement of the theme.
docs: $(INSTALLED)
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --quiet --strict

build: $(BUILT)

# Not captured is what the address sanitizer reports before it ends the process.
emulated: $(EMULATED)
	CUDA_VISIBLE_DEVICES= OMP_NUM_THREADS=1 ASAN_OPTIONS=detect_leaks=0 LD_PRELOAD="$(PRELOAD)" \
	    $(BIN)/python -m pytest --capture=sys $(CUDA_TESTS)

gpu:
	@test -n "$(OUT)" || { echo "make gpu OUT=folder: where the results go" >&2; exit 2; }
	$(PYTHON) -m bench.gpu --out "$(OUT)" $(if $(SKIP_BUILD),--skip-build) \
	    $(if $(WHEELS),--wheels "$(WHEELS)")

micro: $(VENV)/pyvenv.cfg
	$(BIN)/python -m bench.micro.run --compile-only

cuda-check: $(VENV)/pyvenv.cfg
	$(BIN)/python csrc/cuda/check.py

thirdparty: $(BUILT)
	$(BIN)/python tests/thirdparty

torch-tests: $(BUILT)
	@test -d "$(TESTS)" || { echo "make torch-tests TESTS=folder: test of PyTorch's sources" >&2; exit 2; }
	$(BIN)/python tests/thirdparty/torch_tests.py "$(TESTS)"

clean:
	rm -rf $(VENV) build dist *.egg-info fastrnn/*.so fastrnn/no_kernels.txt
	find . -name __pycache__ -type d -prune -exec rm -r {} +

$(VENV)/pyvenv.cfg:
	@$(PYTHON) -c 'import sys; sys.exit("fastrnn needs Python >= 3.10: set PYTHON" \
	    if sys.version_info < (3, 10) else 0)'
	$(PYTHON) -m venv $(VENV)

# torch comes first and alone: nothing after it may choose another build of it. The package itself
# is installed as a link to this folder; the extension is compiled into it below.
$(INSTALLED): pyproject.toml Makefile | $(VENV)/pyvenv.cfg
	$(PIP) $(TORCH)
	$(BIN)/python -c 'import importlib, sys; \
	    toml = importlib.import_module("tomllib" if sys.version_info >= (3, 11) else "pip._vendor.tomli"); \
	    print(*toml.load(open("pyproject.toml", "rb"))["build-system"]["requires"], sep="\n")' \
	    > $(VENV)/build-requires.txt
	$(PIP) --requirement $(VENV)/build-requires.txt
	FASTRNN_BUILD=none $(PIP) --no-build-isolation --editable '.[test,bench,dev,docs]'
	touch $@

# Not through pip, which compiles in a fresh folder each time: this one lets ninja see what changed.
$(BUILT): $(INSTALLED) setup.py $(SOURCES)
	rm -f $(VENV)/built-* fastrnn/*.so
	PATH="$(abspath $(BIN)):$$PATH" $(BIN)/python setup.py --quiet build_ext --inplace
	touch $@

# -O1: this takes a quarter of the time of -O2 to compile, and runs as fast.
EMULATED_SOURCES := tests/cpp/emulated.cpp csrc/cuda/layer.cpp csrc/cells.cpp csrc/cpu/programs.cpp
TORCH_FOLDER = $(firstword $(wildcard $(VENV)/lib/python*/site-packages/torch))
$(EMULATED): $(wildcard tests/cpp/*.h) $(EMULATED_SOURCES) $(wildcard csrc/cuda/*) $(wildcard csrc/*.h) \
    Makefile | $(BUILT)
	@mkdir -p $(@D)
	$(CXX) -std=c++20 -O1 -g1 $(if $(ASAN),-fsanitize=address -fno-omit-frame-pointer) \
	    -DFASTRNN_EMULATED -shared -fPIC -fvisibility=hidden -Wall -Wextra -Icsrc -Itests/cpp \
	    -isystem $(TORCH_FOLDER)/include $$($(BIN)/python -m pybind11 --includes) $(EMULATED_SOURCES) \
	    -L$(TORCH_FOLDER)/lib -ltorch_cpu -o $@

# -Og: takes two thirds of the time of -O1 to compile, and a third of that of -O0 to run. psabi: a test
# emulates wide registers, but passes them to no other object.
CHECKED := -std=c++20 -Og -g1 -ffp-contract=off -fno-math-errno -fno-trapping-math -Icsrc -Itests/cpp \
    -fno-sanitize-recover=all -fno-omit-frame-pointer -pthread -Wno-psabi
SANITIZE := $(CHECKED) -fsanitize=address,undefined
RACES := $(CHECKED) -fsanitize=thread
ISA := $(filter-out isa_avx512% isa_amx,$(basename $(notdir $(wildcard csrc/cpu/isa*.cpp))))
CPU_OBJECTS := $(patsubst %,build/sanitize/%.o,$(ISA) without_avx512 emulated_tiles emulated_rounding \
    emulated_dpbusd emulated_sdot emulated_byte_tiles memory)
PROGRAMS := $(patsubst tests/cpp/%.cpp,build/sanitize/%,$(CPP_TESTS)) \
    $(patsubst %,build/races/%,test_memory test_team test_threads)

# What takes longest to compile comes first.
sanitize: build/sanitize/test_kernels.o $(PROGRAMS)
	@set -e; for program in $(PROGRAMS); do echo $$program; $$program; done

build/sanitize/%.o: csrc/cpu/%.cpp Makefile
	@mkdir -p $(@D)
	$(CXX) $(SANITIZE) -MMD -c $< -o $@

build/sanitize/%.o: tests/cpp/%.cpp Makefile
	@mkdir -p $(@D)
	$(CXX) $(SANITIZE) -MMD -c $< -o $@

# From an archive a program takes what it has not itself: a test may bring memory of its own.
build/sanitize/cpu.a: $(CPU_OBJECTS)
	rm -f $@
	$(AR) rcs $@ $^

build/sanitize/%: build/sanitize/%.o build/sanitize/cpu.a
	$(CXX) $(SANITIZE) $^ -o $@

build/races/%.o: csrc/cpu/%.cpp Makefile
	@mkdir -p $(@D)
	$(CXX) $(RACES) -MMD -c $< -o $@

build/races/%.o: tests/cpp/%.cpp Makefile
	@mkdir -p $(@D)
	$(CXX) $(RACES) -MMD -c $< -o $@

build/races/test_memory: build/races/memory.o
build/races/%: build/races/%.o
	$(CXX) $(RACES) $^ -o $@

# The package around an extension that was compiled elsewhere, with its tests.
define AROUND
	cp -r fastrnn/*.py fastrnn/*/ $(1)/fastrnn/
	cp -r tests pyproject.toml $(1)/
endef

CLANG ?= $(lastword $(sort $(wildcard /usr/bin/clang++-1[6-9] /usr/bin/clang++-[2-9][0-9])))
CLANG_TESTS := test_layer test_ragged test_direct
clang: $(INSTALLED)
	rm -rf build/clang/lib
	PATH="$(abspath $(BIN)):$$PATH" CC="$(CLANG)" CXX="$(CLANG)" CFLAGS=-Werror FASTRNN_BUILD=cpu \
	    $(BIN)/python setup.py --quiet build_ext --build-temp build/clang/temp --build-lib build/clang/lib
	$(call AROUND,build/clang/lib)
	cd build/clang/lib && OMP_NUM_THREADS=1 $(abspath $(BIN))/python -m pytest -q \
	    $(CLANG_TESTS:%=tests/%.py)

# What the tests run is compiled in half of the time that the extension takes, and has the same bits.
# The hot loops, which nobody runs, are optimized as the extension is.
ARM_CXX ?= aarch64-linux-gnu-g++
QEMU ?= qemu-aarch64 -L /usr/aarch64-linux-gnu
ARM := build/arm
ARM_FLAGS := -std=c++20 -g0 -ffp-contract=off -fno-math-errno -fno-trapping-math -pthread -Icsrc \
    -Itests/cpp -Wall -Wextra -DFASTRNN_OFFERED_ONLY
ARM_PROGRAMS := $(patsubst %,$(ARM)/%,test_kernels test_bits test_vec test_cells test_memory test_denormals \
    test_small_weights)
ARM_OBJECTS := $(patsubst csrc/cpu/%.cpp,$(ARM)/%.o,$(wildcard csrc/cpu/isa*.cpp) csrc/cpu/memory.cpp)
HOT := single pairs small
HOT_LOOPS := $(patsubst %,$(ARM)/%.o,$(HOT:%=gcc_%) $(if $(CLANG),$(HOT:%=clang_%)))
hot = $(if $(filter pairs,$(1)),-DFASTRNN_PAIRS) $(if $(filter small,$(1)),-DFASTRNN_SMALL)
arm: $(ARM)/isa_portable.o $(ARM)/isa_neon.o $(HOT_LOOPS) $(ARM_PROGRAMS)
	python3 tests/cpp/hot_loops.py aarch64-linux-gnu-objdump $(HOT_LOOPS)
	$(MAKE) --no-print-directory $(ARM_PROGRAMS:%=%.passed)

$(ARM)/%.passed: $(ARM)/%
	$(QEMU) $<

$(ARM)/%.o: csrc/cpu/%.cpp Makefile
	@mkdir -p $(@D)
	$(ARM_CXX) -O1 $(ARM_FLAGS) -MMD -c $< -o $@

$(ARM)/%.o: tests/cpp/%.cpp Makefile
	@mkdir -p $(@D)
	$(ARM_CXX) -O1 $(ARM_FLAGS) -MMD -c $< -o $@

$(filter $(ARM)/gcc%,$(HOT_LOOPS)): $(ARM)/gcc_%.o: tests/cpp/hot_loops.cpp Makefile
	@mkdir -p $(@D)
	$(ARM_CXX) -O3 $(ARM_FLAGS) $(call hot,$*) -MMD -c $< -o $@

$(filter $(ARM)/clang%,$(HOT_LOOPS)): $(ARM)/clang_%.o: tests/cpp/hot_loops.cpp Makefile
	@mkdir -p $(@D)
	$(CLANG) --target=aarch64-linux-gnu -O3 $(ARM_FLAGS) $(call hot,$*) -MMD -c $< -o $@

$(ARM)/test_small_weights: $(ARM)/emulated_dpbusd.o $(ARM)/emulated_sdot.o $(ARM)/emulated_byte_tiles.o
$(ARM)/test_%: $(ARM)/test_%.o $(ARM_OBJECTS)
	$(ARM_CXX) $(ARM_FLAGS) $^ -o $@

# CUDA kernels where there is an nvcc; they load beside a torch without CUDA, too. What is excluded comes
# with torch. The check runs what pip installs from the wheel, not this folder.
NVCC := $(wildcard $(CUDA_HOME)/bin/nvcc /usr/local/cuda/bin/nvcc) $(shell command -v nvcc)
WHEEL_BUILD := $(patsubst auto,$(if $(strip $(NVCC)),cuda,cpu),$(FASTRNN_BUILD))
wheel: $(INSTALLED)
	rm -rf build/wheel build/lib.*
	$(BIN)/python tools/older_glibc.py build/wheel/older
	PATH="$(abspath $(BIN)):$$PATH" FASTRNN_BUILD=$(WHEEL_BUILD) \
	    LDFLAGS="$(if $(filter cuda,$(WHEEL_BUILD)),-L$(abspath build/wheel/older))" $(BIN)/python -m pip wheel --quiet \
	    --no-build-isolation --no-deps --wheel-dir build/wheel .
	$(BIN)/python -m auditwheel show build/wheel/*.whl
	PATH="$(abspath $(BIN)):$$PATH" $(BIN)/python -m auditwheel repair --plat manylinux_2_28_$(shell uname -m) \
	    --exclude 'libtorch*' --exclude 'libc10*' --wheel-dir build/wheel/dist build/wheel/*.whl
	$(PIP) --no-deps --target build/wheel/installed build/wheel/dist/*.whl
	cd build/wheel/installed && $(abspath $(BIN))/python -m fastrnn
	mkdir -p dist && cp build/wheel/dist/*.whl dist/
	ls -l dist

-include $(wildcard build/sanitize/*.d build/races/*.d build/coverage/*.d build/arm/*.d)

# The C++ tests, and the tests of threads on an extension, all beside those that others use.
COVER := build/coverage
COVERED := $(patsubst %,$(COVER)/%,test_kernels test_threads test_team test_memory test_zero test_vec)
COVER_TESTS := test_threads test_ragged test_memory test_streamer test_streamer_memory \
    test_direct test_direct_refused test_few_steps test_op_errors
COUNTED := --coverage -O1
coverage: $(COVERED) $(INSTALLED)
	find $(COVER) -name '*.gcda' -delete
	set -e; for program in $(COVERED); do $$program; done
	PATH="$(abspath $(BIN)):$$PATH" FASTRNN_FLAGS="$(COUNTED)" LDFLAGS=--coverage \
	    FASTRNN_BUILD=cpu $(BIN)/python setup.py --quiet build_ext --build-temp $(COVER)/temp --build-lib $(COVER)/lib
	$(call AROUND,$(COVER)/lib)
	cd $(COVER)/lib && OMP_NUM_THREADS=1 $(abspath $(BIN))/python -m pytest -q \
	    $(COVER_TESTS:%=tests/%.py)
	$(BIN)/python tests/cpp/coverage.py $(COVER)

$(COVER)/%.o: csrc/cpu/%.cpp Makefile
	@mkdir -p $(@D)
	$(CXX) $(CHECKED) --coverage -MMD -c $< -o $@

$(COVER)/%.o: tests/cpp/%.cpp Makefile
	@mkdir -p $(@D)
	$(CXX) $(CHECKED) --coverage -MMD -c $< -o $@

$(COVER)/cpu.a: $(CPU_OBJECTS:build/sanitize/%=$(COVER)/%)
	rm -f $@
	$(AR) rcs $@ $^

$(COVER)/%: $(COVER)/%.o $(COVER)/cpu.a
	$(CXX) $(CHECKED) --coverage $^ -o $@

every-float: build/every_float
	$<

build/every_float: tests/cpp/every_float.cpp csrc/cpu/vec.h csrc/cpu/activations.h Makefile
	@mkdir -p $(@D)
	$(CXX) -std=c++20 -O3 -march=native -ffp-contract=off -fno-math-errno -fno-trapping-math \
	    -pthread -Wall -Wextra -Icsrc $< -o $@
