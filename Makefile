# make deps          installs what is missing (Debian 12 packages)
# make               the programs, the tests of fixtures and the benchmarks
# make test          builds and runs every test;   make asan test: the same under AddressSanitizer and UBSan
# make check         formatting, budgets and include rules
# make bench         benchmarks;   make bench-peer: PyTorch beside them
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

# `make asan test`: another flavour, in its own folder
ifneq ($(filter asan,$(MAKECMDGOALS)),)
CFLAGS   := -O1 -g -fopenmp -fno-math-errno -fno-trapping-math -ffp-contract=fast -fsanitize=address,undefined \
            -fno-omit-frame-pointer -fno-sanitize-recover=undefined
BUILD    := build/asan
BIN      := build/asan/bin
endif

LIB_SRC  := $(wildcard llmc_like/*.c kernels/*.c kernels/flex/*.c kernels/plain/*.c models/*.c data/*.c)
CPU_SRC  := $(wildcard kernels/cpu/*.c)
LIB_OBJ  := $(LIB_SRC:%.c=$(BUILD)/%.o) $(foreach i,$(ISAS),$(CPU_SRC:%.c=$(BUILD)/$(i)/%.o))
LIB      := $(BUILD)/libllmc_like.a

PROGRAMS := $(patsubst %.c,$(BIN)/%,$(wildcard train_*.c))
FIXTURES := $(patsubst test/fixtures_%.c,$(BIN)/test_%,$(wildcard test/fixtures_*.c))
BENCHES  := $(patsubst dev/bench/%.c,$(BIN)/%,$(wildcard dev/bench/bench_*.c))
TESTS    := $(patsubst test/%.c,$(BUILD)/test/%,$(wildcard test/test_*.c))

.PHONY: all asan deps test test-self check bench bench-peer format clean $(notdir $(PROGRAMS) $(FIXTURES) $(BENCHES))
.SECONDARY:
.DELETE_ON_ERROR:

all: $(PROGRAMS) $(FIXTURES) $(BENCHES)
asan: all

$(BUILD)/%.o: %.c
	@mkdir -p $(@D)
	$(CC) $(WARN) $(CPPFLAGS) $(CFLAGS) -MMD -MP -c $< -o $@

define isa_rule
$(BUILD)/$(1)/%.o: %.c
	@mkdir -p $$(@D)
	$(CC) $(WARN) $(CPPFLAGS) $(CFLAGS) $(ISA_$(1)) -DISA=$(1) -MMD -MP -c $$< -o $$@
endef
$(foreach i,$(ISAS),$(eval $(call isa_rule,$(i))))

$(LIB): $(LIB_OBJ)
	@rm -f $@
	@ar rcs $@ $^

$(PROGRAMS): $(BIN)/%: $(BUILD)/%.o $(LIB)
	@mkdir -p $(@D)
	$(CC) $(CFLAGS) $^ $(LDLIBS) -o $@
$(FIXTURES): $(BIN)/test_%: $(BUILD)/test/fixtures_%.o $(LIB)
	@mkdir -p $(@D)
	$(CC) $(CFLAGS) $^ $(LDLIBS) -o $@
$(BENCHES): $(BIN)/%: $(BUILD)/dev/bench/%.o $(LIB)
	@mkdir -p $(@D)
	$(CC) $(CFLAGS) $^ $(LDLIBS) -o $@
$(BUILD)/test/test_%: $(BUILD)/test/test_%.o $(LIB)
	$(CC) $(CFLAGS) $^ $(LDLIBS) -lcmocka -o $@

ifneq ($(BIN),.)
$(foreach p,$(notdir $(PROGRAMS) $(FIXTURES) $(BENCHES)),$(eval $(p): $(BIN)/$(p)))
endif

clean:
	rm -rf build $(notdir $(PROGRAMS) $(FIXTURES) $(BENCHES))

-include $(shell find $(BUILD) -name '*.d' 2>/dev/null)
