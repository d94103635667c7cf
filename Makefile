# SPDX-License-Identifier: GPL-2.0-or-later
#
# make                    build/ferry
# make module KDIR=DIR    build/ferry.ko for the kernel headers in DIR
# make install            the program and its manual page; DESTDIR= PREFIX=
# make check              everything scripts/check runs; check-long: with more time
# make demo               scripts/demo: migrate a running guest and watch it
#
# Single suites, each printing TAP: unit, asan, tsan, fuzz, tidy, layers, model.
# Documentation/testing.rst says what each one proves.
#
# O=DIR moves all output out of build/, WERROR=1 makes warnings errors, V=1 shows
# commands in full. Every sanitizer builds in a folder of its own by calling this
# Makefile again with another O and SANITIZE, so no two kinds of object ever meet.

O ?= build
PREFIX ?= /usr/local
DESTDIR ?=
FUZZ_SECONDS ?= 5

ifeq ($(V),1)
say =
else
say = @printf '%-6s %s\n' '$1' '$(patsubst $(CURDIR)/%,%,$@)';
endif

CFLAGS ?= -O2 -g
PKG_CONFIG ?= pkg-config
CLANG ?= clang

# A package without a .pc file (xxhash on some releases) is linked by its name.
libs = $(or $(shell $(PKG_CONFIG) --libs $1 2>/dev/null),$2)
cflags = $(shell $(PKG_CONFIG) --cflags $1 2>/dev/null)

LDLIBS := $(call libs,json-c,-ljson-c) $(call libs,libisal,-lisal) \
	  $(call libs,libxxhash,-lxxhash) -lpthread
CMOCKA := $(call libs,cmocka,-lcmocka)

WARNINGS := -Wall -Wextra -Wshadow -Wvla -Wmissing-prototypes -Wwrite-strings
ifeq ($(WERROR),1)
WARNINGS += -Werror
endif

ours := -std=gnu11 -D_GNU_SOURCE -Iuser $(WARNINGS)
ifneq ($(SANITIZE),)
ours += -fsanitize=$(SANITIZE) -fno-omit-frame-pointer -fno-sanitize-recover=all
else
ours += -fstack-protector-strong
endif
COMPILE = $(CC) $(ours) $(call cflags,json-c) $(CPPFLAGS) $(CFLAGS) -MMD -MP
LINK = $(CC) $(ours) $(CFLAGS) $(LDFLAGS)

# The agent is all of user/ but the VMM's side: libferry (port) and ferry-vmm (vmm)
# get targets of their own when they exist.
sources := $(sort $(shell find user -name '*.c' -not -path 'user/port/*' -not -path 'user/vmm/*'))
main := user/agent/main.c
objects := $(sources:%.c=$(O)/obj/%.o)
# What tests link: everything but main(), as an archive so that a test may put a
# function of its own in the place of one of ours.
archive := $(O)/obj/ferry.a

# The processes that test_inject works on are copies of itself, and the thread sanitizer
# answers signals in its own time: nothing would be tested but that.
not_under_thread := test_inject
unit_tests := $(sort $(patsubst selftests/unit/%.c,$(O)/unit/%,$(wildcard selftests/unit/test_*.c)))
unit_tests := $(filter-out $(addprefix $(O)/unit/,$(not_under_$(SANITIZE))),$(unit_tests))
fuzzers := $(sort $(patsubst selftests/fuzz/%.c,$(O)/targets/%,$(wildcard selftests/fuzz/fuzz_*.c)))

.DELETE_ON_ERROR:
.SUFFIXES:
.SECONDARY:

.PHONY: all
all: $(O)/ferry

$(O)/ferry: $(objects)
	$(call say,LD)$(LINK) -o $@ $^ $(LDLIBS)

$(archive): $(filter-out $(main:%.c=$(O)/obj/%.o),$(objects))
	@rm -f $@
	$(call say,AR)$(AR) rcs $@ $^

$(O)/obj/%.o: %.c $(O)/obj/flags
	@mkdir -p $(@D)
	$(call say,CC)$(COMPILE) -c -o $@ $<

# Changes when the command does, so that no object stays that WERROR=1 would refuse.
$(O)/obj/flags: FORCE
	@mkdir -p $(@D)
	@echo '$(COMPILE)' | cmp -s - $@ || echo '$(COMPILE)' > $@
.PHONY: FORCE

# A test program of one file: unit tests, and by name any selftests/DIR/NAME.c as
# $(O)/selftests/DIR/NAME, for the run.sh beside it.
$(O)/unit/%: $(O)/obj/selftests/unit/%.o $(archive)
	@mkdir -p $(@D)
	$(call say,LD)$(LINK) -o $@ $^ $(CMOCKA) $(LDLIBS)

$(O)/selftests/%: $(O)/obj/selftests/%.o $(archive)
	@mkdir -p $(@D)
	$(call say,LD)$(LINK) -o $@ $^ $(CMOCKA) $(LDLIBS)

# Of two files; test_inject includes the other one.
$(O)/selftests/inject/kill_sweep: $(O)/obj/selftests/inject/target.o

$(O)/targets/%: $(O)/obj/selftests/fuzz/%.o $(archive)
	@mkdir -p $(@D)
	$(call say,LD)$(LINK) -fsanitize=fuzzer -o $@ $^ $(LDLIBS)

-include $(shell find $(O)/obj -name '*.d' 2>/dev/null)

# --- suites -----------------------------------------------------------------

.PHONY: unit unit-programs
unit-programs: $(unit_tests)
unit: $(unit_tests)
	@python3 scripts/tap.py run --timeout 150 $(unit_tests)

.PHONY: asan tsan
asan:
	$(MAKE) O=$(O)/asan SANITIZE=address,undefined unit
# The thread sanitizer of older compilers wants little address randomisation.
tsan: export TAP_WRAPPER = $(shell setarch -R true 2>/dev/null && echo setarch -R)
tsan:
	$(MAKE) O=$(O)/tsan SANITIZE=thread unit

.PHONY: fuzz fuzz-programs fuzz-run
fuzz:
	$(MAKE) O=$(O)/fuzz CC=$(CLANG) SANITIZE=fuzzer-no-link,address,undefined fuzz-run
fuzz-programs: $(fuzzers)
fuzz-run: $(fuzzers)
	@scripts/fuzz $(FUZZ_SECONDS) $(O)/found $(fuzzers)

.PHONY: layers tidy model
layers:
	scripts/layers
	scripts/licences
tidy:
	scripts/tidy
model:
	selftests/model/run.sh

.PHONY: check check-long demo
check:
	scripts/check
check-long:
	scripts/check --long
demo:
	scripts/demo

# --- the kernel module --------------------------------------------------------

# Kbuild writes beside the sources, so it is shown a folder of links to them. O is
# emptied for it: the kernel's Makefile would take ours for the kernel's own.
.PHONY: module
module:
	@test -n "$(KDIR)" || { echo "make module: say KDIR=DIR, a kernel's build folder such as /lib/modules/VERSION/build" >&2; exit 2; }
	@test -f "$(KDIR)/Makefile" || { echo "make module: no kernel headers in '$(KDIR)'" >&2; exit 2; }
	@mkdir -p $(O)/module/kmod
	@ln -sfn $(CURDIR)/Kbuild $(O)/module/Kbuild
	@find $(O)/module/kmod -type l -delete
	@ln -sf $(addprefix $(CURDIR)/,$(wildcard kmod/*)) $(O)/module/kmod/
	$(MAKE) -C $(KDIR) M=$(abspath $(O))/module O= W=1 modules
	cp $(O)/module/kmod/ferry.ko $(O)/ferry.ko

# --- house --------------------------------------------------------------------

.PHONY: install uninstall clean
install: $(O)/ferry
	install -D -m 0755 $(O)/ferry $(DESTDIR)$(PREFIX)/bin/ferry
	install -D -m 0644 Documentation/man/ferry.1 $(DESTDIR)$(PREFIX)/share/man/man1/ferry.1
uninstall:
	rm -f $(DESTDIR)$(PREFIX)/bin/ferry $(DESTDIR)$(PREFIX)/share/man/man1/ferry.1

# Leaves the cache of downloaded kernels alone.
clean:
	rm -rf $(O)/obj $(O)/unit $(O)/selftests $(O)/asan $(O)/tsan $(O)/fuzz $(O)/module $(O)/check \
		$(O)/ferry $(O)/ferry.ko
