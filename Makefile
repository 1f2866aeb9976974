# SPDX-License-Identifier: GPL-2.0
# One number per medium: builds, boots and proves the diskseq series. "make help" lists the ways in.

BASE ?= 5.10
ARCH ?= x86_64
# Set by the caller, if at all:
STOCK ?=
SANITIZE ?=
LINUX ?=
CONFIG ?=
ACCEL ?= tcg
STORM ?= 10000
FORCE ?=
# Debian's suites with the kernels that compare is about: 6.1, 6.12 and 7.2
COMPARE := bookworm trixie sid
export ACCEL FORCE
# depmod and others are where Debian has only root look.
export PATH := $(PATH):/usr/sbin:/sbin

ifeq ($(wildcard bases/$(BASE).mk),)
$(error BASE=$(BASE) is not known; choose one of: $(sort $(patsubst bases/%.mk,%,$(wildcard bases/*.mk))))
endif
# The machine by the kernel's name for it; others have another name for the last.
override ARCH := $(ARCH:s390x=s390)
ifeq ($(wildcard machines/$(ARCH).mk),)
$(error ARCH=$(ARCH) is not known; choose one of: $(sort $(patsubst machines/%.mk,%,$(wildcard machines/*.mk))))
endif
ifeq ($(filter tcg kvm,$(ACCEL)),)
$(error ACCEL=$(ACCEL) is not known; use tcg or kvm)
endif
ifeq ($(shell expr 'x$(STORM)' : 'x[1-9][0-9][0-9][0-9]*$$'),0)
$(error STORM=$(STORM): give a number of attaches, 100 or more)
endif
ifneq ($(CONFIG),$(wildcard $(CONFIG)))
$(error CONFIG=$(CONFIG): no such file)
endif
include bases/$(BASE).mk
include machines/$(ARCH).mk
FRAGMENTS := $(CONFIGS:%=vm/configs/%.config)
WITH_CLIENTS := $(FRAGMENTS) vm/configs/clients.config

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

SERIES := build/$(BASE)
PRISTINE := build/$(BASE)-stock
SANITIZED := build/$(BASE)-sanitizer
PATCHES := patches/$(BASE)
LOG := $(SERIES)$(MACHINE)/log
START := $(shell date +%s)

# The kernel that the caller means.
KERNEL := $(if $(STOCK),$(PRISTINE),$(if $(SANITIZE),$(SANITIZED),$(SERIES)))$(MACHINE)

##@ run        the main job: the story on real loop devices, without and with the series
.PHONY: run
run: $(SERIES)/bzImage build/vm/story.img build/prebuilt/$(DEB_SUITE)/version
	@scripts/guest/play-story $(START) build/vm/story.img build/prebuilt/$(DEB_SUITE) $(SERIES)

##@ test       everything that proves the series; ends with "N passed, N failed"; ARCH=i386, arm64 or
##@            s390: the selftests alone, on such a machine
.PHONY: test
ifdef MACHINE
test: $(LOG)/plain.results
	@scripts/results/summary 'make test ARCH=$(ARCH)' $(START) $<
else
RESULTS := $(patsubst %,$(LOG)/%.results,plain without told clients sanitizer check bisect)
test: $(KERNEL)/bzImage $(SERIES)/tests.img build/vm/story.img build/prebuilt/$(DEB_SUITE)/version \
		build/vm/clients.squashfs build/vm/clients.img | packages-test
	@rm -f $(RESULTS)
	@EVERY=30 $(MAKE) -j2 SIDE_BY_SIDE=y NICE=nice $(RESULTS)
	@scripts/results/summary 'make test' $(START) $(RESULTS)
endif

# Guests wait more than they compute, so they run beside what computes, which lets them go
# first: the last kernel's build, then the checks.
$(LOG)/plain.results: $(KERNEL)/$(IMAGE) $(SERIES)$(MACHINE)/tests.img $(if $(MACHINE),FORCE)
	@scripts/guest/run-selftests "tests on $(KERNEL)" $< $(basename $@) 1800 \
		$(SERIES)$(MACHINE)/tests.list $(SERIES)$(MACHINE)/tests.img DISKSEQ_STORM=$(if $(MACHINE),$$(($(STORM) / 10)),$(STORM))
$(LOG)/without.results: build/prebuilt/$(DEB_SUITE)/version $(SERIES)/tests.img | $(LOG)/plain.results
	@scripts/guest/expect-skips "tests on Debian's $$(cat $<)" $(<D)/vmlinuz $(basename $@) 300 \
		$(SERIES)/tests.list $(SERIES)/tests.img $(<D)/modules.img
$(LOG)/told.results: build/vm/story.img build/prebuilt/$(DEB_SUITE)/version $(SERIES)/bzImage | $(LOG)/without.results
	@scripts/guest/check-story $@ $(START) $< build/prebuilt/$(DEB_SUITE) $(SERIES)
$(LOG)/sanitizer.results: $(SANITIZED)/bzImage $(SERIES)/tests.img | $(LOG)/clients.results
	@LOCKDEP=y scripts/guest/run-selftests "tests on $(SANITIZED)" $< $(basename $@) 2400 \
		$(SERIES)/sanitizer.list $(SERIES)/tests.img DISKSEQ_STORM=$$(($(STORM) / 10))
$(LOG)/check.results: FORCE $(SERIES)/tree.id | packages-test $(if $(SIDE_BY_SIDE),$(SANITIZED)/bzImage)
	@$(NICE) scripts/check/series $(BASE) $@

##@ kernel     a bootable build/BASE/bzImage; STOCK=1: without the series; SANITIZE=1: with KASAN, lockdep, ...;
##@            ARCH=i386, arm64 or s390: for such a machine
.PHONY: kernel
kernel: $(KERNEL)/$(IMAGE)
	@ls -l $<

##@ tree       build/BASE/tree: a git tree of the base with the series on top, a commit a patch
##@ refresh    takes the commits of build/BASE/tree back into patches/ and the files that they add
##@ series     writes the series as mails for "git am" to build/BASE/series/, signed off by you
.PHONY: tree refresh series
tree: $(SERIES)/tree.id
	@git -C $(SERIES)/tree log --oneline base..HEAD
refresh: | packages
	@scripts/series/refresh-patches $(SERIES) $(PATCHES)
series: $(SERIES)/tree.id
	@scripts/series/write-mails $(SERIES) $(PATCHES) $(SERIES)/series

##@ check-tree does LINUX=DIR take the series: for each patch, what is in its way and what to do
.PHONY: check-tree
check-tree: $(SERIES)/source.deb
	@scripts/series/check-tree '$(LINUX)' $< $(PATCHES) $(SERIES)/check-tree

##@ quilt      writes the series for a distribution's source package to build/BASE/quilt/
##@ deb        builds linux-image and linux-headers packages in build/BASE/deb/; CONFIG=FILE: so configured
##@ distro     tests the three: Debian's source package takes the series, the packages install and boot
.PHONY: quilt deb distro
PACKAGING := build/$(BASE)-deb
PACKAGED := $(WITH_CLIENTS) vm/configs/deb.config
quilt: $(SERIES)/tree.id
	@scripts/distro/write-quilt $(SERIES) $(PATCHES) $(SERIES)/quilt
deb: $(SERIES)/deb/version
	@ls -l $(<D)/*.deb
distro: $(if $(LINUX),,$(LOG)/quilt.results $(LOG)/check-tree.results) $(LOG)/deb.results
	@scripts/results/summary 'make distro' $(START) $^
$(LOG)/quilt.results: FORCE quilt $(SERIES)/source.deb | packages-distro
	@scripts/distro/test-quilt $(SERIES) $(DEB_SUITE) $(SERIES)/source.deb $(SERIES)/quilt $@
$(LOG)/check-tree.results: FORCE $(SERIES)/tree.id $(SERIES)/source.deb
	@scripts/series/test-check-tree $(SERIES)/tree $(SERIES)/source.deb $(PATCHES) $(SERIES)/check-tree-test $@
$(LOG)/deb.results: FORCE $(SERIES)/deb/version $(SERIES)/tests.img | packages-distro
	@scripts/distro/test-debs $(SERIES)/deb $(DEB_SUITE) $@ \
		$(SERIES)/tests.list $(SERIES)/tests.img DISKSEQ_STORM=$$(($(STORM) / 10))

# What CONFIG is, or would be: packages are built anew when that changes.
$(PACKAGING)/config: FORCE
	@mkdir -p $(@D)
	@cat $(or $(CONFIG),$(PACKAGED)) >$@.tmp
	@cmp -s $@.tmp $@ || mv $@.tmp $@
$(SERIES)/deb/version: $(SERIES)/tree.id $(PACKAGING)/config scripts/distro/build-debs scripts/kernel/configure | packages-deb
	@scripts/distro/build-debs $(PACKAGING) $(SERIES)/tree $(@D) $(PACKAGED_FILES) "$(CONFIG)" $(PACKAGED)

##@ shell      boots to a prompt, with util-linux and the tests at hand
.PHONY: shell
shell: $(KERNEL)/bzImage $(SERIES)/tests.img build/vm/shell.img
	@vm/boot -k $< -i $(SERIES)/tests.img -i build/vm/shell.img -s

##@ check      the part of test that boots nothing: checkpatch, warnings, sparse, git am, documentation
##@ static     warnings and sparse on four machines, in all that can be configured, clang, coccicheck
.PHONY: check static
check: $(LOG)/check.results
	@scripts/results/summary 'make check' $(START) $<
static: $(LOG)/static.results
	@scripts/results/summary 'make static' $(START) $<
$(LOG)/static.results: FORCE $(SERIES)/tree.id | packages-static
	@scripts/check/static $(BASE) $@

##@ compare    the tests on Debian's kernels 6.1, 6.12 and 7.2, as a table rule by kernel
.PHONY: compare
compare: $(SERIES)/bzImage $(SERIES)/tests.img $(patsubst %,build/prebuilt/%/version,$(COMPARE))
	@STORM=$$(($(STORM) / 10)) scripts/guest/compare-kernels $(START) $(SERIES) $(COMPARE)

##@ clients    systemd, udev, util-linux, mdadm and nbd of Debian 13 on the series' kernel; RESCAN=y: while
##@            udev has the disks scanned all the time
.PHONY: clients
# systemd comes last, since it removes the loop devices that it has used.
CLIENTS_TESTS := $(addprefix /clients/,util-linux udev example drivers zram systemd)
CLIENTS_PROGRAMS := $(addprefix build/vm/clients/,change storm uevents contend cost diskseq-wait)
clients: $(LOG)/clients.results
	@scripts/results/summary 'make clients' $(START) $<
$(LOG)/clients.results: $(SERIES)/bzImage build/vm/clients.squashfs build/vm/clients.img $(if $(SIDE_BY_SIDE),| $(LOG)/told.results,FORCE)
	@scripts/guest/run-clients "programs on $(SERIES)" $< $(basename $@) 1800 \
		build/vm/clients.squashfs build/vm/clients.img $(CLIENTS_TESTS) $(RESCAN:%=DISKSEQ_RESCAN=%)

##@ measure    what the number costs and what it saves with udev: the base and the series side by side
.PHONY: measure
measure: $(PRISTINE)/bzImage $(SERIES)/bzImage build/vm/clients.squashfs build/vm/clients.img
	@scripts/guest/measure $(START) build/vm/clients.squashfs build/vm/clients.img $(LOG) $(filter %/bzImage,$^)

##@ bisect     builds and boots the kernel after each patch of the series, with all tests that pass by then
.PHONY: bisect
bisect: $(SERIES)/tree.id $(SERIES)/tests.img
	@$(BISECT) all $(LOG)/bisect-all.results $(WITH_CLIENTS)
	@scripts/results/summary 'make bisect' $(START) $(LOG)/bisect-all.results
# As the kernel of the whole series is, most of which is in the cache then.
BISECT := scripts/check/bisect $(BASE) $(CLIENTS_FILES) $(SERIES)/sanitizer.list $(SERIES)/tests.img
# Here with the tests that are the patch's own.
$(LOG)/bisect.results: FORCE $(SERIES)/tree.id $(SERIES)/tests.img $(if $(SIDE_BY_SIDE),| $(LOG)/check.results)
	@$(NICE) $(BISECT) own $@ $(WITH_CLIENTS)

##@ clean      removes build/; downloads and compiled files stay in the user's cache directory
##@ help       this list
.PHONY: clean help
clean:
	rm -rf build
help:
	@echo "make TARGET [BASE=$(BASE)] [ARCH=$(ARCH)] [LINUX=DIR, your own kernel tree] [CONFIG=FILE]"
	@echo "            [ACCEL=tcg|kvm] [STORM=$(STORM)]"
	@sed -n 's/^##@ /  /p' Makefile

# What the machine needs. Asked every time, since it takes no time.
.PHONY: packages packages-test packages-static packages-shell packages-clients packages-deb packages-distro
packages:
	@scripts/fetch/install-packages kernel $(filter arm64 s390,$(ARCH))
# A static pattern, since make looks up no other kind for a phony target.
packages-test packages-shell packages-clients packages-deb packages-distro: packages-%:
	@scripts/fetch/install-packages kernel $*
packages-static:
	@scripts/fetch/install-packages kernel test static arm64 s390

# FORCE: the program behind the target sees by itself whether there is anything to do, and
# leaves the target's time alone if not.
.PHONY: FORCE
$(SERIES)/origin: FORCE | packages
	@scripts/tree/record-origin $@ "$(LINUX)" $(DEB_PACKAGE) $(DEB_VERSION)
$(SERIES)/source.deb: bases/$(BASE).mk | packages
	@mkdir -p $(@D)
	@scripts/fetch/source-package $@ $(DEB_SUITE) $(DEB_PACKAGE) $(DEB_VERSION) $(DEB_SHA256)
$(SERIES)/base: $(SERIES)/origin $(if $(LINUX),,$(SERIES)/source.deb)
	@scripts/tree/import-base $(SERIES) $(or $(LINUX),$(SERIES)/source.deb) $@
$(SERIES)/tree.id: FORCE $(SERIES)/base
	@scripts/tree/checkout-series $(SERIES) $(PATCHES)
$(PRISTINE)/tree.id: FORCE $(SERIES)/base
	@scripts/tree/checkout-series $(PRISTINE) stock $(SERIES)

$(SERIES)$(MACHINE)/$(IMAGE) $(SANITIZED)/bzImage: $(SERIES)/tree.id
$(PRISTINE)$(MACHINE)/$(IMAGE): $(PRISTINE)/tree.id
$(SERIES)/bzImage $(PRISTINE)/bzImage: vm/configs/clients.config
$(SERIES)/bzImage $(PRISTINE)/bzImage: FILES := $(CLIENTS_FILES)
$(SANITIZED)/bzImage: vm/configs/sanitizer.config
%/$(IMAGE): $(FRAGMENTS) scripts/kernel/build scripts/kernel/configure
	@$(NICE) scripts/kernel/build $@ $(patsubst %.id,%,$(filter %.id,$^)) $(FILES) $(sort $(filter %.config,$^))

# Programs of the guest: static, since it has no libraries.
TESTS := tools/testing/selftests/block_diskseq
STATIC := $(CC) -std=gnu11 -O2 -Wall -Wextra -Wno-unused-parameter -D_GNU_SOURCE -D_FILE_OFFSET_BITS=64 -static

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
build/vm/clients.squashfs: FORCE | packages-clients
	@scripts/fetch/clients-rootfs $@
build/vm/overlay: vm/overlay.c | packages
	@mkdir -p $(@D)
	@$(STATIC) -o $@ $<
build/vm/clients/%: clients/%.c $(addprefix $(TESTS)/,disk.c image.c uevent.c diskseq.h) | packages
	@mkdir -p $(@D)
	@$(STATIC) -I$(TESTS) -o $@ $(filter %.c,$^)
build/vm/clients/cost: $(TESTS)/nbd_dev.c $(TESTS)/nbd_dev.h
build/vm/clients/diskseq-wait: Documentation/block/diskseq-wait.c | packages
	@mkdir -p $(@D)
	@$(STATIC) -o $@ $<
build/vm/clients.img: build/vm/overlay $(CLIENTS_PROGRAMS) $(wildcard vm/clients/*) \
		$(filter-out %.c,$(wildcard clients/*)) scripts/guest/pack-clients scripts/guest/pack-initrd
	@scripts/guest/pack-clients $< $@ $(CLIENTS_PROGRAMS) $(filter clients/%,$^)
$(SERIES)$(MACHINE)/tests.img: FORCE $(SERIES)/tree.id build/vm$(MACHINE)/init
	@scripts/guest/build-selftests $(SERIES)/tree build/vm$(MACHINE)/init $(@D)

build/prebuilt/%/version: scripts/fetch/prebuilt-kernel | packages
	@scripts/fetch/prebuilt-kernel $* $(@D)
