# SPDX-License-Identifier: GPL-2.0
# How what the targets in Makefile need is made: names and files. It checks what the caller asks for.

BASES := $(sort $(patsubst bases/%.mk,%,$(wildcard bases/*.mk)))
ifeq ($(wildcard bases/$(BASE).mk),)
$(error BASE=$(BASE) is not known; choose one of: $(BASES))
endif
include bases/$(BASE).mk
# What scripts read of it.
export DEB_SUITE DEB_PACKAGE DEB_VERSION DEB_SHA256 PREBUILT_NUMBER MAIL_PREFIX SIZES SIZES_OBJECT IO_PATH

# The machine by the kernel's name for it; others have another name for the last.
override ARCH := $(ARCH:s390x=s390)
ifeq ($(filter $(ARCH),$(MACHINES)),)
$(error ARCH=$(ARCH) is not known for BASE=$(BASE); choose one of: $(MACHINES))
endif
include machines/$(ARCH).mk
ifeq ($(filter tcg kvm,$(ACCEL)),)
$(error ACCEL=$(ACCEL) is not known; use tcg or kvm)
endif
ifeq ($(shell expr 'x$(STORM)' : 'x[1-9][0-9][0-9][0-9]*$$'),0)
$(error STORM=$(STORM): give a number of attaches, 100 or more)
endif
# Those that count something, by name.
whole = $(if $(filter 0,$(shell expr 'x$($(1))' : 'x[1-9][0-9]*$$')),$(error $(1)=$($(1)): give a whole number, 1 or more))
$(call whole,MINUTES)
$(call whole,N)
$(call whole,ROUNDS)
$(if $(SEED),$(call whole,SEED))
ifeq ($(filter trixie sid,$(SUITE)),)
$(error SUITE=$(SUITE) is not known; use trixie or sid)
endif
ifneq ($(and $(MODULES),$(STOCK)),)
$(error MODULES=$(MODULES) and STOCK=$(STOCK): there is no such kernel; leave one out)
endif
ifneq ($(CONFIG),$(wildcard $(CONFIG)))
$(error CONFIG=$(CONFIG): no such file)
endif

# What is built for another machine lies beside what is built for this one.
ifneq ($(ARCH),x86_64)
MACHINE := -$(ARCH)
NOT_THERE := $(filter-out test kernel tree refresh series clean help,$(MAKECMDGOALS)) $(SANITIZE:%=SANITIZE=%)
ifneq ($(strip $(NOT_THERE)),)
$(error $(strip $(NOT_THERE)): not with ARCH=$(ARCH), which is for test and kernel)
endif
# The kernel's make and its selftests look for these in the environment.
export ARCH CROSS_COMPILE
else
MACHINE :=
unexport ARCH CROSS_COMPILE
endif

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
# What builds uses all processors by itself. What tests goes side by side: see test.
ifndef SIDE_BY_SIDE
.NOTPARALLEL:
endif
.SUFFIXES:
MAKEFLAGS += --no-builtin-rules --no-print-directory

OTHER_BASES := $(filter-out $(BASE),$(BASES))
SERIES := build/$(BASE)
PRISTINE := build/$(BASE)-stock
SANITIZED := build/$(BASE)-sanitizer
COUNTED := build/$(BASE)-coverage
RACING := build/$(BASE)-races
MUTATED := build/$(BASE)-mutants$(SANITIZE:%=-sanitizer)
FAILING := build/$(BASE)-inject
LOADABLE := build/$(BASE)-modules$(SANITIZE:%=-sanitizer)
PACKAGING := build/$(BASE)-deb
PATCHES := patches/$(BASE)
SERIES_PATCHES := $(shell sed 's/[[:space:]]*\#.*//' $(PATCHES)/series)
LOG := $(SERIES)$(MACHINE)/log
START := $(shell date +%s)
# The root file system of the guests with systemd: Debian's suite that the caller means
ROOTFS := build/vm/clients-$(SUITE).squashfs
# Debian's suites with the kernels that compare is about, the oldest first
COMPARE := bookworm trixie sid trixie-backports

# The kernel that the caller means.
KERNEL := $(if $(STOCK),$(PRISTINE),$(if $(SANITIZE),$(SANITIZED),$(SERIES)))$(MACHINE)
# The tests that run: all, or those for a slow kernel, 64-bit ones and a few for 32 bits.
LIST ?= tests
# What a base is known to fail: without patches, and what is left with them. Without them, what
# never comes is not waited for as long as elsewhere.
PATCHED := $(if $(STOCK),,$(SERIES_PATCHES))
KNOWN := $(addprefix known=,$(wildcard $(if $(PATCHED),$(PATCHES)/fails,bases/$(BASE).fails)))
LIMIT := $(if $(PATCHED),,$(KNOWN:%=DISKSEQ_LIMIT=2))

FRAGMENTS := $(shell scripts/kernel/fragments $(BASE) $(CONFIGS))
WITH_CLIENTS := $(shell scripts/kernel/fragments $(BASE) $(CONFIGS) clients)
WITH_COVERAGE := $(shell scripts/kernel/fragments $(BASE) $(CONFIGS) clients coverage)
WITH_SANITIZER := $(shell scripts/kernel/fragments $(BASE) $(CONFIGS) sanitizer)
WITH_RACES := $(shell scripts/kernel/fragments $(BASE) $(CONFIGS) races)
WITH_FAILURES := $(shell scripts/kernel/fragments $(BASE) $(CONFIGS) sanitizer inject)
IN_PIECES := $(shell scripts/kernel/fragments $(BASE) $(CONFIGS) $(if $(SANITIZE),sanitizer,clients) deb)
PACKAGED := $(shell scripts/kernel/fragments $(BASE) $(CONFIGS) clients deb)

STORY = start=$(START) story=build/vm/story.img prebuilt=build/prebuilt/$(PREBUILT_SUITE) series=$(SERIES) \
	number=$(if $(SERIES_PATCHES),series,$(PREBUILT_NUMBER))
# As the kernel of the whole series is, most of which is in the cache then.
BISECT := scripts/check/bisect base=$(BASE) files=$(FILES_clients) list=$(SERIES)/sanitizer.list \
	tests=$(SERIES)/tests.img

# What the machine needs. Asked every time, since it takes no time.
.PHONY: packages packages-test packages-static packages-shell packages-clients packages-deb packages-distro packages-report packages-scale
packages:
	@scripts/fetch/install-packages kernel $(filter arm64 s390,$(ARCH))
# A static pattern, since make looks up no other kind for a phony target.
packages-test packages-shell packages-clients packages-deb packages-distro packages-report packages-scale: packages-%:
	@scripts/fetch/install-packages kernel $*
packages-static:
	@scripts/fetch/install-packages kernel test static arm64 s390

# FORCE: the program behind the target sees by itself whether there is anything to do, and
# leaves the target's time alone if not.
.PHONY: FORCE
$(SERIES)/origin: FORCE | packages
	@scripts/tree/record-origin $(BASE) $@ "$(LINUX)" $(DEB_PACKAGE) $(DEB_VERSION)
$(SERIES)/source.deb: bases/$(BASE).mk | packages
	@mkdir -p $(@D)
	@scripts/fetch/source-package $@
$(SERIES)/base: $(SERIES)/origin $(if $(LINUX),,$(SERIES)/source.deb)
	@scripts/tree/import-base $(SERIES) $(or $(LINUX),$(SERIES)/source.deb) $@
$(SERIES)/tree.id: FORCE $(SERIES)/base
	@scripts/tree/checkout-series $(SERIES) $(PATCHES)
$(PRISTINE)/tree.id: FORCE $(SERIES)/base
	@scripts/tree/checkout-series $(PRISTINE) stock $(SERIES)
$(MUTATED)/tree.id $(RACING)/tree.id: $(SERIES)/tree.id scripts/tree/add-mutants
	@mkdir -p $(@D)
	@scripts/tree/add-mutants $(SERIES)/tree $(@D)/tree $(@D)/list $(if $(filter $(RACING)/%,$@),delays)
	@cp $< $@

# Kernels: what each is built from, and how it is configured.
$(SERIES)$(MACHINE)/$(IMAGE) $(SANITIZED)/bzImage $(COUNTED)/bzImage $(FAILING)/bzImage: $(SERIES)/tree.id
$(PRISTINE)$(MACHINE)/$(IMAGE): $(PRISTINE)/tree.id
$(SERIES)/bzImage $(PRISTINE)/bzImage: $(WITH_CLIENTS)
$(SANITIZED)/bzImage: $(WITH_SANITIZER)
$(FAILING)/bzImage: $(WITH_FAILURES)
$(COUNTED)/bzImage: $(WITH_COVERAGE)
$(MUTATED)/bzImage: $(MUTATED)/tree.id $(if $(SANITIZE),$(WITH_SANITIZER),$(WITH_CLIENTS))
$(RACING)/bzImage: $(RACING)/tree.id $(WITH_RACES)
$(LOADABLE)/bzImage: $(SERIES)/tree.id $(IN_PIECES)
%/$(IMAGE): $(FRAGMENTS) scripts/kernel/build scripts/kernel/configure
	@$(NICE) scripts/kernel/build $@ $(patsubst %.id,%,$(filter %.id,$^)) \
		$(if $(filter vm/configs/clients.config,$^),$(FILES_clients),$(FILES_$(ARCH))) $(filter %.config,$^)

# What CONFIG is, or would be: packages are built anew when that changes.
$(PACKAGING)/config: FORCE
	@mkdir -p $(@D)
	@cat $(or $(CONFIG),$(PACKAGED)) >$@.tmp
	@cmp -s $@.tmp $@ || mv $@.tmp $@
$(SERIES)/deb/version: $(SERIES)/tree.id $(PACKAGING)/config scripts/distro/build-debs scripts/kernel/configure | packages-deb
	@scripts/distro/build-debs dir=$(PACKAGING) tree=$(SERIES)/tree out=$(@D) files=$(FILES_deb) config="$(CONFIG)" $(PACKAGED)

# Programs of the guest: static, since it has no libraries.
TESTS := tools/testing/selftests/block_diskseq
STATIC := $(CC) -std=gnu11 -O2 -Wall -Wextra -Wno-unused-parameter -D_GNU_SOURCE -D_FILE_OFFSET_BITS=64 -static
CLIENTS_PROGRAMS := $(addprefix build/vm/clients/,change repeat storm uevents contend cost crowd diskseq-wait diskseq-mount)

build/vm$(MACHINE)/init: vm/init.c | packages
	@mkdir -p $(@D)
	@$(STATIC) -o $@ $<
build/vm/story: vm/story.c $(addprefix $(TESTS)/,disk.c image.c uevent.c diskseq.h) | packages
	@mkdir -p $(@D)
	@$(STATIC) -I$(TESTS) -o $@ $(filter %.c,$^)
build/vm/story.img: build/vm/init build/vm/story scripts/guest/pack-initrd
	@rm -rf $@.root && mkdir $@.root && cp $(filter build/%,$^) $@.root
	@scripts/guest/pack-initrd $@.root $@
build/vm/shell.img: build/vm/init scripts/guest/pack-shell scripts/guest/pack-initrd | packages-shell
	@scripts/guest/pack-shell $< $@
# The proof's programs are made of the selftests' files, and stay out of the kernel.
PROOF := $(addprefix build/vm/proof/,fuzz million scale inject)
build/vm/proof/fuzz: $(sort $(wildcard proof/do_*.c))
build/vm/proof/fuzz build/vm/proof/million: proof/share.c proof/observe.c proof/fuzz.h
build/vm/proof/inject: $(sort $(wildcard proof/fail_*.c)) proof/inject.h
$(PROOF): build/vm/proof/%: proof/%.c \
		$(addprefix $(TESTS)/,disk.c image.c uevent.c dm_dev.c md_dev.c nbd_dev.c qmp.c zram_dev.c \
		diskseq.h dm_dev.h md_dev.h nbd_dev.h qmp.h zram_dev.h) | packages
	@mkdir -p $(@D)
	@$(STATIC) -I$(TESTS) -o $@ $(filter %.c,$^)
build/vm/proof.img: build/vm/init $(PROOF) scripts/guest/pack-initrd
	@rm -rf $@.root && mkdir -p $@.root/proof $@.root/mnt && cp $< $@.root && cp $(PROOF) $@.root/proof
	@scripts/guest/pack-initrd $@.root $@
build/vm/clients-%.squashfs: FORCE | packages-clients
	@scripts/fetch/clients-rootfs $* $@
build/vm/overlay: vm/overlay.c | packages
	@mkdir -p $(@D)
	@$(STATIC) -o $@ $<
build/vm/clients/%: clients/%.c $(addprefix $(TESTS)/,disk.c image.c uevent.c diskseq.h) | packages
	@mkdir -p $(@D)
	@$(STATIC) -I$(TESTS) -o $@ $(filter %.c,$^)
build/vm/clients/cost: $(TESTS)/nbd_dev.c $(TESTS)/nbd_dev.h
build/vm/clients/diskseq-wait build/vm/clients/diskseq-mount: build/vm/clients/%: Documentation/block/%.c | packages
	@mkdir -p $(@D)
	@$(STATIC) -o $@ $<
build/vm/clients.img: build/vm/overlay $(CLIENTS_PROGRAMS) $(wildcard vm/clients/*) \
		$(filter-out %.c,$(wildcard clients/*)) Documentation/block/diskseq.rst $(wildcard contrib/blktests/diskseq/*) \
		scripts/guest/pack-clients scripts/guest/pack-initrd
	@scripts/guest/pack-clients $< $@ $(CLIENTS_PROGRAMS) $(filter clients/% %.rst,$^) contrib/blktests/diskseq
$(SERIES)$(MACHINE)/tests.img: FORCE $(SERIES)/tree.id build/vm$(MACHINE)/init
	@scripts/guest/build-selftests $(SERIES)/tree build/vm$(MACHINE)/init $(@D)
$(SERIES)/kselftest.img: $(SERIES)/tests.img scripts/guest/pack-kselftest
	@scripts/guest/pack-kselftest $(SERIES)/selftests $(SERIES)/root/tests $@

build/prebuilt/%/version: scripts/fetch/prebuilt-kernel | packages
	@scripts/fetch/prebuilt-kernel $* $(@D)
