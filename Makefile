# SPDX-License-Identifier: GPL-2.0-or-later
#
# make                    build/ferry, build/libferry.so and .a
# make module KDIR=DIR    build/ferry.ko for the kernel headers in DIR
# make install-module     that module, for the kernel that KDIR belongs to (modules_install)
# make install-dkms       its sources, for DKMS to build it for each kernel there is
# make install            the program, its manual page, libferry; DESTDIR= PREFIX=
# make check              everything scripts/check runs; check-long: with more time
# make demo               scripts/demo: migrate a running guest and watch it
#
# make bench              all benchmarks, one after the other:
# make bench-compress     what --compress and --checksum cost and gain
# make bench-precopy      precopy against QEMU's own, GiB/s, CPU time and downtime
# make bench-postcopy     page faults and background of postcopy against QEMU's own
# make bench-cpr          the pause when a guest gets another VMM on the same host
# make bench-file         snapshot files against QEMU's mapped-ram and fio; first instruction
# make bench-kmod         what it costs to learn which pages were written; KERNEL=6.12
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
FUZZ_SECONDS ?= 3

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
	  $(call libs,libxxhash,-lxxhash) $(call libs,libmnl,-lmnl) $(call libs,libzstd,-lzstd) \
	  $(call libs,liblz4,-llz4) $(call libs,liburing,-luring) -lpthread
CMOCKA := $(call libs,cmocka,-lcmocka)

WARNINGS := -Wall -Wextra -Wshadow -Wvla -Wmissing-prototypes -Wwrite-strings
ifeq ($(WERROR),1)
WARNINGS += -Werror
endif

ours := -std=gnu11 -D_GNU_SOURCE -Iuser -Iuapi $(WARNINGS)
ifneq ($(SANITIZE),)
ours += -fsanitize=$(SANITIZE) -fno-omit-frame-pointer -fno-sanitize-recover=all
else
ours += -fstack-protector-strong
endif
COMPILE = $(CC) $(ours) $(call cflags,json-c) $(CPPFLAGS) $(CFLAGS) -MMD -MP
LINK = $(CC) $(ours) $(CFLAGS) $(LDFLAGS)

# The agent is all of user/ but the VMM's side: libferry (port) and ferry-vmm (vmm). The
# codec of the port protocol is in both.
sources := $(sort $(shell find user -name '*.c' -not -path 'user/port/*' -not -path 'user/vmm/*') \
	   user/port/channel.c user/port/proto.c)
main := user/agent/main.c
objects := $(sources:%.c=$(O)/obj/%.o)
# What tests link: everything but main(), as an archive so that a test may put a
# function of its own in the place of one of ours.
archive := $(O)/obj/ferry.a

# The processes that these work on are copies of themselves, and the thread sanitizer
# answers signals in its own time: nothing would be tested but that.
not_under_thread := test_inject test_inject_calls test_inject_refusals test_view
unit_tests := $(sort $(patsubst selftests/unit/%.c,$(O)/unit/%,$(wildcard selftests/unit/test_*.c)))
unit_tests := $(filter-out $(addprefix $(O)/unit/,$(not_under_$(SANITIZE))),$(unit_tests))
fuzzers := $(sort $(patsubst selftests/fuzz/%.c,$(O)/targets/%,$(wildcard selftests/fuzz/fuzz_*.c)))

.DELETE_ON_ERROR:
.SUFFIXES:
.SECONDARY:

.PHONY: all
all: $(O)/ferry libferry $(O)/ferry-vmm

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

# libferry, what a VMM links. It shows what its header has and nothing else: the shared one
# by the map, the static one by being a single object whose hidden symbols are local.
LIBFERRY_VERSION := 1.0
soname := libferry.so.1
libferry_objects := $(patsubst %.c,$(O)/pic/%.o,$(sort $(wildcard user/port/*.c)))

.PHONY: libferry
libferry: $(O)/libferry.so $(O)/libferry.a $(O)/ferry.pc

$(O)/pic/%.o: %.c $(O)/obj/flags
	@mkdir -p $(@D)
	$(call say,CC)$(COMPILE) -fPIC -fvisibility=hidden -c -o $@ $<

$(O)/libferry.so.$(LIBFERRY_VERSION): $(libferry_objects) user/port/libferry.map
	$(call say,LD)$(LINK) -shared -Wl,-soname,$(soname) \
		-Wl,--version-script=user/port/libferry.map $(if $(SANITIZE),,-Wl,-z,defs) \
		-o $@ $(libferry_objects) -lpthread
$(O)/libferry.so: $(O)/libferry.so.$(LIBFERRY_VERSION)
	@ln -sfn $(<F) $(O)/$(soname)
	@ln -sfn $(soname) $@

$(O)/libferry.a: $(libferry_objects)
	@$(CC) -r -nostdlib -o $(O)/pic/libferry.o $^
	@objcopy --localize-hidden $(O)/pic/libferry.o
	@rm -f $@
	$(call say,AR)$(AR) rcs $@ $(O)/pic/libferry.o

$(O)/ferry.pc: user/port/ferry.pc.in Makefile FORCE
	@mkdir -p $(@D)
	@sed 's|@PREFIX@|$(PREFIX)|; s|@VERSION@|$(LIBFERRY_VERSION)|' $< | cmp -s - $@ || \
		sed 's|@PREFIX@|$(PREFIX)|; s|@VERSION@|$(LIBFERRY_VERSION)|' $< > $@

# ferry-vmm; its guest is in a section that is copied into guest RAM. That is written for a
# machine without a library and with values of its own in the vector registers.
vmm_objects := $(patsubst %,$(O)/obj/%.o,$(basename $(sort $(wildcard user/vmm/*.c user/vmm/payload/*.[cS]))))
$(O)/obj/user/vmm/payload/batch.o: override CFLAGS += -O2 -ffreestanding -mgeneral-regs-only \
	-fno-stack-protector -fno-sanitize=all -fcf-protection=none -fno-tree-loop-distribute-patterns
$(O)/obj/%.o: %.S $(O)/obj/flags
	@mkdir -p $(@D)
	$(call say,AS)$(COMPILE) -c -o $@ $<
$(O)/ferry-vmm: $(vmm_objects) $(O)/libferry.a
	$(call say,LD)$(LINK) -o $@ $^ -lpthread

# A test program of one file: unit tests, and by name any selftests/DIR/NAME.c as
# $(O)/selftests/DIR/NAME, for the run.sh beside it.
$(O)/unit/%: $(O)/obj/selftests/unit/%.o $(archive) $(O)/libferry.a
	@mkdir -p $(@D)
	$(call say,LD)$(LINK) -o $@ $(filter %.o,$^) $(filter %.a,$^) $(CMOCKA) $(LDLIBS)

$(O)/selftests/%: $(O)/obj/selftests/%.o $(archive) $(O)/libferry.a
	@mkdir -p $(@D)
	$(call say,LD)$(LINK) -o $@ $^ $(CMOCKA) $(LDLIBS)

# Of more than one file.
$(addprefix $(O)/unit/,test_dirty test_dirty_races test_dirty_refusals): \
	$(O)/obj/selftests/unit/dirty_rig.o
$(O)/unit/test_dirty $(O)/unit/test_fault_huge $(O)/unit/test_hugetlb: \
	$(O)/obj/selftests/unit/huge_pool.o
$(addprefix $(O)/unit/,test_adopt test_port test_port_create test_port_peers): \
	$(O)/obj/selftests/unit/port_agent.o $(O)/obj/selftests/unit/port_vmm.o
$(O)/unit/test_port_guest: $(O)/obj/selftests/unit/port_vmm.o
$(O)/unit/test_multifd $(O)/unit/test_multifd_packets: $(O)/obj/selftests/unit/multifd_rig.o
$(O)/unit/test_qemu: $(O)/obj/selftests/unit/fake_qemu.o
$(addprefix $(O)/unit/test_qemu_,live state undo views): $(O)/obj/selftests/unit/qemu_rig.o
$(addprefix $(O)/unit/,test_fault test_fault_pages test_fault_races): \
	$(O)/obj/selftests/unit/fault_rig.o
$(addprefix $(O)/unit/,test_inject test_inject_calls test_inject_refusals): \
	$(O)/obj/selftests/unit/inject_rig.o $(O)/obj/selftests/inject/target.o
$(O)/selftests/inject/kill_sweep: $(O)/obj/selftests/inject/target.o

$(O)/targets/%: $(O)/obj/selftests/fuzz/%.o $(archive) $(O)/libferry.a
	@mkdir -p $(@D)
	$(call say,LD)$(LINK) -fsanitize=fuzzer -o $@ $^ $(LDLIBS)

-include $(shell find $(O)/obj $(O)/pic -name '*.d' 2>/dev/null)

# --- suites -----------------------------------------------------------------

# What the suites make in $(O), all at once.
.PHONY: unit test-programs
test-programs: $(unit_tests) $(addprefix $(O)/selftests/,inject/kill_sweep port/leaks port/abi)
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

# --- benchmarks: a table each, and lines "ratio NAME: MEDIAN (MIN..MAX)" at its end ---

benches := bench-compress bench-precopy bench-postcopy bench-cpr bench-file bench-kmod

# One at a time whatever -j says.
.PHONY: bench $(benches)
bench:
	@for name in $(benches); do echo "== $$name"; $(MAKE) --no-print-directory $$name || exit; done

bench-compress: $(O)/selftests/bench/compress
	@$<

# QEMU 11.1 is fetched once. BENCH="--mib 256 --rounds 2" makes it short.
bench-precopy: $(O)/ferry $(O)/ferry-vmm
	@selftests/qemu/qemu.sh 11.1 > /dev/null
	@FERRY=$(abspath $(O))/ferry FERRY_VMM=$(abspath $(O))/ferry-vmm \
		python3 selftests/bench/precopy.py $(BENCH)

bench-postcopy: $(O)/ferry $(O)/ferry-vmm $(O)/selftests/bench/roundtrip
	@selftests/qemu/qemu.sh 11.1 > /dev/null
	@FERRY=$(abspath $(O))/ferry FERRY_VMM=$(abspath $(O))/ferry-vmm \
		ROUNDTRIP=$(abspath $(O))/selftests/bench/roundtrip \
		python3 selftests/bench/postcopy.py $(BENCH)

bench-cpr: $(O)/ferry $(O)/ferry-vmm
	@selftests/qemu/qemu.sh 11.1 > /dev/null
	@FERRY=$(abspath $(O))/ferry FERRY_VMM=$(abspath $(O))/ferry-vmm \
		python3 selftests/bench/cpr.py $(BENCH)

bench-file: $(O)/ferry $(O)/ferry-vmm
	@selftests/qemu/qemu.sh 11.1 > /dev/null
	@FERRY=$(abspath $(O))/ferry FERRY_VMM=$(abspath $(O))/ferry-vmm \
		python3 selftests/bench/file.py $(BENCH)

bench-kmod:
	@O='$(O)' selftests/bench/kmod.sh $(KERNEL)

# --- the kernel module --------------------------------------------------------

# Kbuild writes beside the sources, so it is shown a folder of links to them. It gets all
# that was said to us (C=2, CF=..., FERRY_BROKEN=1) but O, which would mean the kernel's own
# output there, even when empty. selftests/kmod/build.sh does this for Debian's kernels.
.PHONY: module
module: MAKEOVERRIDES := $(filter-out O=%,$(MAKEOVERRIDES))
module:
	@test -n "$(KDIR)" || { echo "make module: say KDIR=DIR, a kernel's build folder such as /lib/modules/VERSION/build" >&2; exit 2; }
	@test -f "$(KDIR)/Makefile" || { echo "make module: no kernel headers in '$(KDIR)'" >&2; exit 2; }
	@mkdir -p $(O)/module/kmod
	@ln -sfn $(CURDIR)/Kbuild $(O)/module/Kbuild
	@ln -sfn $(CURDIR)/uapi $(O)/module/uapi
	@find $(O)/module/kmod -type l -delete
	@ln -sf $(addprefix $(CURDIR)/,$(wildcard kmod/*)) $(O)/module/kmod/
	$(MAKE) -C $(KDIR) M=$(abspath $(O))/module W=1 modules
	cp $(O)/module/kmod/ferry.ko $(O)/ferry.ko

.PHONY: install-module install-dkms install-device uninstall-dkms
install-module: MAKEOVERRIDES := $(filter-out O=%,$(MAKEOVERRIDES))
install-module: module install-device
	$(MAKE) -C $(KDIR) M=$(abspath $(O))/module INSTALL_MOD_PATH=$(DESTDIR) modules_install

# Then: dkms install ferry/VERSION
dkms_version := $(shell sed -n 's/^PACKAGE_VERSION="\(.*\)"/\1/p' kmod/dkms.conf)
dkms = $(DESTDIR)/usr/src/ferry-$(dkms_version)
install-dkms: install-device
	install -d $(dkms)/kmod $(dkms)/uapi/linux
	install -m 0644 kmod/dkms.conf Kbuild $(dkms)
	install -m 0644 $(filter-out kmod/dkms.conf kmod/udev.rules kmod/broken.c,$(wildcard kmod/*)) $(dkms)/kmod
	install -m 0644 $(wildcard uapi/linux/*.h) $(dkms)/uapi/linux
uninstall-dkms:
	rm -rf $(dkms)

# What belongs to the module however it was built: who may open the device, the manual
# page, and the headers for programs.
install-device:
	install -D -m 0644 kmod/udev.rules $(DESTDIR)/usr/lib/udev/rules.d/60-ferry.rules
	install -D -m 0644 Documentation/man/ferry.4 $(DESTDIR)$(PREFIX)/share/man/man4/ferry.4
	install -D -m 0644 -t $(DESTDIR)$(PREFIX)/include/linux $(wildcard uapi/linux/ferry*.h)

# --- house --------------------------------------------------------------------

.PHONY: install uninstall clean
install: $(O)/ferry libferry $(O)/ferry-vmm
	install -D -m 0755 $(O)/ferry $(DESTDIR)$(PREFIX)/bin/ferry
	install -D -m 0755 $(O)/ferry-vmm $(DESTDIR)$(PREFIX)/bin/ferry-vmm
	install -D -m 0644 -t $(DESTDIR)$(PREFIX)/share/man/man1 Documentation/man/ferry.1 Documentation/man/ferry-vmm.1
	install -D -m 0644 user/include/ferry.h $(DESTDIR)$(PREFIX)/include/ferry.h
	install -D -m 0644 $(O)/libferry.a $(DESTDIR)$(PREFIX)/lib/libferry.a
	install -D -m 0755 $(O)/libferry.so.$(LIBFERRY_VERSION) \
		$(DESTDIR)$(PREFIX)/lib/libferry.so.$(LIBFERRY_VERSION)
	ln -sfn libferry.so.$(LIBFERRY_VERSION) $(DESTDIR)$(PREFIX)/lib/$(soname)
	ln -sfn $(soname) $(DESTDIR)$(PREFIX)/lib/libferry.so
	install -D -m 0644 $(O)/ferry.pc $(DESTDIR)$(PREFIX)/lib/pkgconfig/ferry.pc
uninstall:
	rm -f $(DESTDIR)$(PREFIX)/bin/ferry $(DESTDIR)$(PREFIX)/share/man/man1/ferry.1 \
		$(DESTDIR)$(PREFIX)/bin/ferry-vmm $(DESTDIR)$(PREFIX)/share/man/man1/ferry-vmm.1 \
		$(DESTDIR)$(PREFIX)/include/ferry.h $(DESTDIR)$(PREFIX)/lib/libferry.a \
		$(DESTDIR)$(PREFIX)/lib/libferry.so.$(LIBFERRY_VERSION) \
		$(DESTDIR)$(PREFIX)/lib/$(soname) $(DESTDIR)$(PREFIX)/lib/libferry.so \
		$(DESTDIR)$(PREFIX)/lib/pkgconfig/ferry.pc

# Leaves the cache of downloaded kernels alone.
clean:
	rm -rf $(O)/obj $(O)/unit $(O)/selftests $(O)/asan $(O)/tsan $(O)/fuzz $(O)/module $(O)/check \
		$(O)/ferry $(O)/ferry-vmm $(O)/ferry.ko $(O)/pic $(O)/libferry.* $(O)/ferry.pc
