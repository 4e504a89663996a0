# make deps          installs what is missing (Debian 12 packages)
# make               the programs, the tests of fixtures and the benchmarks
# make test          builds and runs every test;   make asan test: the same under AddressSanitizer and UBSan
# make test-self     the tests that spoil results and sources and expect tests and checks to see it
# make test-emu      the tests of the CUDA half, on the CPU (dev/emu);   make emu train_wm: a program so
# make check         formatting, budgets and include rules;   make format: formats
# make bench         benchmarks;   make bench-peer PYTHON=...: PyTorch beside them, in turns
# make ladder        the attention kernel step by step (dev/cuda): ./ladder checks and times each rung on a GPU
# make gpu-check     everything that needs a GPU, in eight minutes;   make cuda-report: registers, spills, instructions
#
# Every source in llmc_like, kernels, models and data is found by its place. The sources of kernels/cpu are built once
# for each instruction set in ISAS and chosen at run time.

CC       := gcc
ISAS     := avx512 avx2 portable
ISA_avx512   := -march=x86-64-v4 -mprefer-vector-width=512
ISA_avx2     := -march=x86-64-v3
ISA_portable := -march=x86-64

WARN     := -std=c11 -Wall -Wextra -Wpedantic -Wshadow -Wstrict-prototypes -Wmissing-prototypes -Wvla
CPPFLAGS := -I. -D_GNU_SOURCE
CFLAGS   := -O3 -g -fopenmp -fno-math-errno -fno-trapping-math -ffp-contract=fast
LDLIBS   := -ldnnl -lcjson -ldl -lm
BUILD    := build/release
BIN      := .
PACKAGES := gcc g++ make libc6-dev libdnnl-dev libcjson-dev libstb-dev libcmocka-dev clang-format python3 python3-venv
PYTHON   := python3
GOLDEN   := ../shared/golden# fixtures of the originals; tested where they are there

# The CUDA half is built where there is an nvcc, for these GPUs and, as PTX, for later ones. NVCC=PATH names another
# compiler, NVCC= leaves CUDA out.
NVCC      := $(firstword $(shell command -v nvcc) $(wildcard /usr/local/cuda/bin/nvcc))
CUDA_ARCH := 80 90
CUDA_PTX   = $(lastword $(CUDA_ARCH))
NVCCFLAGS  = -std=c++17 -O3 -lineinfo -Xfatbin=-compress-all \
             -Xcompiler=-Wall,-Wextra,-fno-exceptions,-fno-rtti,-fno-threadsafe-statics \
             $(foreach a,$(CUDA_ARCH),-gencode arch=compute_$(a),code=sm_$(a)) \
             $(foreach a,$(CUDA_PTX),-gencode arch=compute_$(a),code=compute_$(a))
CUDA_HOME  = $(patsubst %/bin/nvcc,%,$(realpath $(NVCC)))
CUDA_LIB   = $(patsubst %/libcudart_static.a,%,$(firstword $(wildcard \
             $(CUDA_HOME)/lib64/libcudart_static.a $(CUDA_HOME)/targets/*/lib/libcudart_static.a)))

# `make asan test`: another flavour, in its own folder
ifneq ($(filter asan,$(MAKECMDGOALS)),)
CFLAGS   := -O1 -g -fopenmp -fno-math-errno -fno-trapping-math -ffp-contract=fast -fsanitize=address,undefined \
            -fno-omit-frame-pointer -fno-sanitize-recover=undefined
BUILD    := build/asan
BIN      := build/asan/bin
endif

# `make emu train_wm`, `make asan emu train_wm`: the CUDA half compiled for the host (dev/emu), each in its own folder.
# The compiler calls dev/emu/access.c before each access of a kernel; under ASan it cannot, and ASan checks instead.
EMU      := $(filter emu test-emu test-emu-self,$(MAKECMDGOALS))
EMU_TESTS := test_emu test_emu_sm90 test_emu_bugs test_emu_sm90_bugs test_ops test_event_ops test_attention \
             test_flex_cuda test_documents test_optim test_checkpoint test_cuda_errors \
             test_train_wm_cuda test_train_icecube_cuda
ifneq ($(EMU),)
CXX      := g++
CXXFLAGS := -std=c++17 -Wall -Wextra -Wshadow -Wno-unknown-pragmas -Wno-psabi -DLLMC_EMU -Idev/emu/include -fopenmp -O1 -g \
            -fno-exceptions -fno-rtti -fno-threadsafe-statics -ffp-contract=fast
ifeq ($(filter asan,$(MAKECMDGOALS)),)
CXXFLAGS += -fsanitize=thread,alignment,bounds -fno-sanitize-recover=alignment,bounds \
            --param tsan-instrument-func-entry-exit=0
BUILD    := build/emu
else
CXXFLAGS += -fsanitize=address,undefined -fno-sanitize=vptr -fno-sanitize-recover=undefined -fno-omit-frame-pointer
BUILD    := build/emu-asan
endif
BIN      := $(BUILD)/bin
LDLIBS   += -rdynamic# kernels compiled at run time call the program's emulator
endif

# `make deps train_wm`: nothing is compiled before the packages are there, with -j too
AFTER    := $(filter deps,$(MAKECMDGOALS))

LIB_SRC  := $(wildcard llmc_like/*.c kernels/*.c kernels/flex/*.c kernels/plain/*.c models/*.c data/*.c)
CPU_SRC  := $(wildcard kernels/cpu/*.c)
ifneq ($(EMU),)
LIB_SRC  := $(filter-out kernels/no_cuda.c,$(LIB_SRC)) $(wildcard dev/emu/*.c)
CU_SRC   := $(wildcard kernels/cuda/*.cu)
else ifeq ($(BUILD),build/asan)
NVCC     :=
else ifneq ($(NVCC),)
LIB_SRC  := $(filter-out kernels/no_cuda.c,$(LIB_SRC))
CU_SRC   := $(wildcard kernels/cuda/*.cu)
LDLIBS   += $(CUDA_LIB:%=-L%) -lcudart_static -lrt -lpthread
else ifneq ($(filter-out check deps format clean,$(or $(MAKECMDGOALS),all)),)
$(info make: no nvcc, so this build has no CUDA; NVCC=PATH names one)
endif
LIB_OBJ  := $(CU_SRC:%.cu=$(BUILD)/%.o) $(LIB_SRC:%.c=$(BUILD)/%.o) $(foreach i,$(ISAS),$(CPU_SRC:%.c=$(BUILD)/$(i)/%.o))
LIB      := $(BUILD)/libllmc_like.a

PROGRAMS := $(patsubst %.c,$(BIN)/%,$(wildcard train_*.c))
FIXTURES := $(patsubst test/fixtures_%.c,$(BIN)/test_%,$(wildcard test/fixtures_*.c))
BENCHES  := $(patsubst dev/bench/%.c,$(BIN)/%,$(wildcard dev/bench/bench_*.c))
LADDER   := $(patsubst %.cu,$(BUILD)/%.o,$(wildcard dev/cuda/*.cu)) $(BUILD)/dev/cuda/ladder.o
TESTS    := $(patsubst test/%.c,$(BUILD)/test/%,$(wildcard test/test_*.c))
ifneq ($(EMU),)
TESTS    := $(EMU_TESTS:%=$(BUILD)/test/%)
endif

.PHONY: all asan emu deps test test-emu test-emu-self test-self check bench bench-peer gpu-check cuda-report \
        format clean FORCE
.SECONDARY:
.DELETE_ON_ERROR:

all: $(PROGRAMS) $(FIXTURES) $(BENCHES)
asan emu: $(if $(filter-out asan emu,$(MAKECMDGOALS)),,all)

$(BUILD)/%.o: %.c | $(AFTER)
	@mkdir -p $(@D)
	$(CC) $(WARN) $(CPPFLAGS) $(CFLAGS) -MMD -MP -c $< -o $@

ifneq ($(EMU),)
$(BUILD)/%.o: %.cu | $(AFTER)
	@mkdir -p $(@D)
	$(CXX) -x c++ $(CPPFLAGS) $(CXXFLAGS) -MMD -MP -c $< -o $@
$(BUILD)/dev/emu/%.o: CPPFLAGS += -Idev/emu/include
$(BUILD)/dev/emu/nvrtc.o: CPPFLAGS += -DEMU_COMPILE='"$(CXX) -x c++ -I. -D_GNU_SOURCE $(CXXFLAGS) -include cuda_runtime.h"'
else
$(BUILD)/%.o: %.cu | $(AFTER)
	@mkdir -p $(@D)
	$(NVCC) $(NVCCFLAGS) $(CPPFLAGS) $(CUDA_LIB:%=-DCUDA_LIB='"%"') -MMD -MP -c $< -o $@
# Hopper's own instructions are of no other GPU, later ones included
$(BUILD)/%_sm90.o: CUDA_ARCH := 90a
$(BUILD)/%_sm90.o: CUDA_PTX :=
endif

define isa_rule
$(BUILD)/$(1)/%.o: %.c | $(AFTER)
	@mkdir -p $$(@D)
	$(CC) $(WARN) $(CPPFLAGS) $(CFLAGS) $(ISA_$(1)) -DISA=$(1) -MMD -MP -c $$< -o $$@
endef
$(foreach i,$(ISAS),$(eval $(call isa_rule,$(i))))

# The assembler includes these
$(BUILD)/kernels/flash_cuda_text.o: $(wildcard kernels/cuda/*.cuh kernels/cuda/*.h)

# What the library is made of: with and without NVCC it is not the same
$(BUILD)/objects: FORCE
	@mkdir -p $(@D)
	@echo '$(LIB_OBJ)' | cmp -s - $@ || echo '$(LIB_OBJ)' >$@

$(LIB): $(LIB_OBJ) $(BUILD)/objects
	@rm -f $@
	@ar rcs $@ $(LIB_OBJ)

$(PROGRAMS): $(BIN)/%: $(BUILD)/%.o $(LIB)
	@mkdir -p $(@D)
	$(CC) $(CFLAGS) $^ $(LDLIBS) -o $@
$(FIXTURES): $(BIN)/test_%: $(BUILD)/test/fixtures_%.o $(LIB)
	@mkdir -p $(@D)
	$(CC) $(CFLAGS) $^ $(LDLIBS) -o $@
$(BENCHES): $(BIN)/%: $(BUILD)/dev/bench/%.o $(LIB)
	@mkdir -p $(@D)
	$(CC) $(CFLAGS) $(filter %.o,$^) $(LIB) $(LDLIBS) -o $@
$(BIN)/bench_attention: $(BUILD)/dev/bench/attention_layer.o $(BUILD)/dev/bench/attention_wm_layer.o
ifneq ($(EMU)$(NVCC),)
$(BIN)/ladder: $(LADDER) $(LIB)
	$(CC) $(CFLAGS) $^ $(LDLIBS) -o $@
else
ladder:
	@echo 'make ladder: this needs nvcc (NVCC=PATH names one), or make emu ladder' && false
endif
$(BUILD)/test/test_%: $(BUILD)/test/test_%.o $(LIB)
	$(CC) $(CFLAGS) $^ $(LDLIBS) -lcmocka -o $@

ifneq ($(BIN),.)
.PHONY: ladder $(notdir $(PROGRAMS) $(FIXTURES) $(BENCHES))
$(foreach p,ladder $(notdir $(PROGRAMS) $(FIXTURES) $(BENCHES)),$(eval $(p): $(BIN)/$(p)))
endif

deps:
	@dev/deps $(PACKAGES)
	@dev/deps_python build/python data/requirements.txt

test: $(TESTS) $(FIXTURES) $(PROGRAMS)
	@GOLDEN=$(GOLDEN) dev/test $(BUILD) $(BIN)

test-emu: $(TESTS) $(FIXTURES) $(PROGRAMS) $(BIN)/ladder
	@GOLDEN=$(GOLDEN) dev/test $(BUILD) $(BIN) cuda
	@$(BIN)/ladder --heads 1 --tokens 384 --repeats 1
	@$(BIN)/ladder --heads 1 --tokens 384 --repeats 1 --causal

test-emu-self: $(TESTS)
	@CXX='$(CXX) -x c++ $(CXXFLAGS) -D_GNU_SOURCE' LINK='$(CC) $(CFLAGS)' LDLIBS='$(LDLIBS)' dev/emu/plant $(BUILD) $(if $(PLANT),'$(PLANT)')

test-self: $(BUILD)/test/test_ops $(BUILD)/test/test_fixtures
	$(BUILD)/test/test_ops
	$(BUILD)/test/test_fixtures
	dev/check --self
	$(MAKE) test-emu-self

# This test runs the programs on fixtures; tests of train_wm find it in BIN
$(BUILD)/test/test_fixtures.o: CPPFLAGS += -DTEST_BIN='"$(BIN)"'
$(BUILD)/test/test_fixtures: | $(FIXTURES)
$(filter $(BUILD)/test/test_bench_%,$(TESTS)): | $(BENCHES)

check:
	@dev/check

format:
	clang-format -i $(shell git ls-files '*.c' '*.h' '*.cu' '*.cuh')

bench: $(BENCHES)
	@mkdir -p build/bench
	for b in $(notdir $(BENCHES)); do $(BIN)/$$b --json build/bench/$$b.json || exit 1; done

bench-peer: $(PROGRAMS) $(BENCHES)
	@mkdir -p build/bench
	$(PYTHON) dev/bench/peer_attention.py --json build/bench/peer_attention.json
	$(PYTHON) dev/bench/peer_wm.py --json build/bench/peer_wm.json
	$(PYTHON) dev/bench/peer_icecube.py --json build/bench/peer_icecube.json

# GPU_CHECK: its options (dev/gpu_check --help)
gpu-check:
	@MAKE='$(MAKE)' NVCC='$(NVCC)' $(PYTHON) dev/gpu_check $(GPU_CHECK)

cuda-report:
	@NVCC='$(NVCC)' dev/cuda_report

clean:
	rm -rf build ladder $(notdir $(PROGRAMS) $(FIXTURES) $(BENCHES))

-include $(shell find $(BUILD) -name '*.d' 2>/dev/null)
