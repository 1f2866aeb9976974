# SPDX-License-Identifier: GPL-2.0
# One number per medium: builds, boots and tests the diskseq series. "make help" lists the ways in.
# Here is what a user calls; build.mk has the rules for what these need.

BASE ?= $(shell cat bases/default)
ARCH ?= x86_64
# Set by the caller, if at all:
STOCK ?=
SANITIZE ?=
TEST ?=
OTHERS ?= $(if $(LINUX),,$(OTHER_BASES))
LINUX ?=
CONFIG ?=
ACCEL ?= tcg
STORM ?= 2000
MINUTES ?= 2
SEED ?=
MODULES ?=
MUTANTS ?=
N ?= 1000000
ROUNDS ?= 3
SUITE ?= trixie
FIXES ?=
FORCE ?=
export ACCEL FIXES FORCE
# depmod and others are where Debian has only root look.
export PATH := $(PATH):/usr/sbin:/sbin

include build.mk

##@ run         the demonstration: loop devices and their uevents, without and with the series
.PHONY: run
run: $(SERIES)/bzImage build/vm/story.img build/prebuilt/$(PREBUILT_SUITE)/version
	@scripts/guest/play-story $(STORY)

##@ test        all tests of the series, and the selftests on other bases (OTHERS=: none); SANITIZE=1: with KASAN
##@ test-all    everything on each base, with KASAN and without
.PHONY: test test-all
ifdef TEST
# One program, or those of its tests that match a pattern.
test: $(KERNEL)/$(IMAGE) $(SERIES)$(MACHINE)/tests.img
	@scripts/guest/run-selftest test='$(TEST)' kernel=$< dir=$(SERIES)$(MACHINE) $(KNOWN) DISKSEQ_STORM=$(STORM) $(LIMIT)
else ifneq ($(SANITIZE),)
test: $(LOG)/sanitizer.results
	@scripts/results/summary 'make test' $(START) $(SERIES)/results $<
else ifneq ($(MACHINE)$(STOCK),)
test: $(LOG)/plain.results
	@scripts/results/summary 'make test' $(START) $(SERIES)$(MACHINE)/results $<
else
# Two lanes, since guests wait more than they compute, and what computes lets them go first:
#
#   guests    plain --> kselftest --> skips --> story --> clients --> live --> proof --> the other bases
#   builds    check --> bisect --> the kernels of the other bases
#
# Each step waits for the one to its left. A base without patches has nothing to check or bisect;
# one whose Debian kernel has a number, no skips. Only the default base has proof: 5.10 attaches
# 44 loop devices a second, and would take minutes. The kernel with KASAN takes too long to build
# and to run for this: make test SANITIZE=1.
STEPS := plain kselftest $(if $(filter none,$(PREBUILT_NUMBER)),skips) story $(if $(SERIES_PATCHES),clients live \
	$(if $(filter $(shell cat bases/default),$(BASE)),proof) check bisect) \
	$(if $(OTHERS),others)
RESULTS := $(STEPS:%=$(LOG)/%.results)
test: $(KERNEL)/bzImage $(SERIES)/tests.img build/vm/story.img build/prebuilt/$(PREBUILT_SUITE)/version \
		$(if $(SERIES_PATCHES),$(ROOTFS) build/vm/clients.img build/vm/proof.img) | packages-test
	@rm -f $(RESULTS)
	@EVERY=30 $(MAKE) -j2 SIDE_BY_SIDE=y NICE=nice $(RESULTS)
	@scripts/results/summary 'make test' $(START) $(SERIES)/results $(RESULTS)
endif
test-all:
	@for base in $(BASES); do \
		$(MAKE) test BASE=$$base OTHERS= && $(MAKE) test BASE=$$base SANITIZE=1 || exit; done

# after STEP...: waits for those of these steps that there are, when the lanes run side by side.
after = $(if $(SIDE_BY_SIDE),| $(patsubst %,$(LOG)/%.results,$(filter $(1),$(STEPS))))
$(LOG)/plain.results: $(KERNEL)/$(IMAGE) $(SERIES)$(MACHINE)/tests.img $(if $(SIDE_BY_SIDE),,FORCE)
	@scripts/guest/run-selftests name='tests on $(KERNEL)' kernel=$< out=$(basename $@) seconds=1800 $(KNOWN) \
		list=$(SERIES)$(MACHINE)/$(LIST).list initrds=$(SERIES)$(MACHINE)/tests.img \
		DISKSEQ_STORM=$(if $(MACHINE),$$(($(STORM) / 10)),$(STORM)) $(LIMIT)
# Of make proof what takes minutes on this kernel: the other parts have kernels of their own.
$(LOG)/proof.results: $(KERNEL)/bzImage build/vm/proof.img FORCE $(call after,live)
	@$(MAKE) SIDE_BY_SIDE= NICE= MINUTES=1 N=10000 $(LOG)/fuzz.results $(LOG)/million.results
	@cat $(LOG)/fuzz.results $(LOG)/million.results >$@
# As kernel developers run them, by make in the guest: of each program what reads the number.
$(LOG)/kselftest.results: $(KERNEL)/bzImage $(SERIES)/kselftest.img build/vm/shell.img $(call after,plain)
	@echo 'kselftest /run_tests' >$(SERIES)/kselftest.list
	@scripts/guest/run-selftests name='make run_tests in the guest' kernel=$< out=$(basename $@) seconds=600 \
		list=$(SERIES)/kselftest.list initrds='build/vm/shell.img $(SERIES)/kselftest.img' DISKSEQ_TESTS=r5_*
$(LOG)/skips.results: build/prebuilt/$(PREBUILT_SUITE)/version $(SERIES)/tests.img $(call after,kselftest)
	@scripts/guest/expect-skips out=$(basename $@) name="tests on Debian's $$(cat $<)" kernel=$(<D)/vmlinuz \
		seconds=300 list=$(SERIES)/tests.list initrds='$(SERIES)/tests.img $(<D)/modules.img'
$(LOG)/story.results: build/vm/story.img build/prebuilt/$(PREBUILT_SUITE)/version $(SERIES)/bzImage \
		$(call after,kselftest skips)
	@scripts/guest/check-story $@ $(STORY)
$(LOG)/sanitizer.results: $(SANITIZED)/bzImage $(SERIES)/tests.img FORCE
	@LOCKDEP=y scripts/guest/run-selftests name='tests on $(SANITIZED)' kernel=$< out=$(basename $@) seconds=2400 \
		list=$(SERIES)/sanitizer.list initrds=$(SERIES)/tests.img $(KNOWN) DISKSEQ_STORM=$$(($(STORM) / 10))
$(LOG)/check.results: FORCE $(SERIES)/tree.id | packages-test
	@$(NICE) scripts/check/series $(BASE) $@
# Here without a boot.
$(LOG)/bisect.results: FORCE $(SERIES)/tree.id $(SERIES)/tests.img $(call after,check)
	@$(NICE) $(BISECT) how=compile out=$@ $(WITH_CLIENTS)
.PHONY: others-kernels
others-kernels: $(call after,bisect)
	@for base in $(OTHERS); do $(MAKE) SIDE_BY_SIDE= BASE=$$base build/$$base/bzImage || exit; done
$(LOG)/others.results: FORCE $(call after,story live proof) others-kernels
	@rm -f $@.tmp
	@for base in $(OTHERS); do \
		$(MAKE) SIDE_BY_SIDE= NICE= BASE=$$base LIST=sanitizer STORM=200 build/$$base/log/plain.results && \
		cat build/$$base/log/plain.results >>$@.tmp || exit; done
	@mv $@.tmp $@

##@ kernel      a bootable build/BASE/bzImage
.PHONY: kernel
kernel: $(KERNEL)/$(IMAGE)
	@ls -l $<

##@ tree        build/BASE/tree: a git tree of the base with the series, a commit a patch
##@ refresh     writes the commits of build/BASE/tree back to patches/
##@ series      writes the series as mails for "git am", and as mbox files for b4, signed off by you
##@ patch       writes the series as one patch, for "patch -p1"; FIXES=1: only its first thread
.PHONY: tree refresh series patch
tree: $(SERIES)/tree.id
	@git -C $(SERIES)/tree log --oneline base..HEAD
refresh: | packages
	@scripts/series/refresh-patches $(SERIES) $(PATCHES)
series: $(SERIES)/tree.id
	@scripts/series/write-mails $(SERIES) $(PATCHES) $(SERIES)/series
patch: $(SERIES)/tree.id
	@scripts/series/write-patch $(SERIES) $(PATCHES) $(SERIES)/diskseq.patch

##@ check-tree  tells whether each patch applies to LINUX=DIR, and shows the conflicts
.PHONY: check-tree
check-tree: $(SERIES)/source.deb
	@scripts/series/check-tree '$(LINUX)' $< $(PATCHES) $(SERIES)/check-tree

##@ quilt       writes the series for a distribution's source package; FIXES=1: only its first thread
##@ deb         builds linux-image, linux-headers and linux-libc-dev packages
##@ distro      tests check-tree, quilt, deb and the recipes of DISTRIBUTIONS.md
.PHONY: quilt deb distro
quilt: $(SERIES)/tree.id
	@scripts/distro/write-quilt $(SERIES) $(PATCHES) $(SERIES)/quilt
deb: $(SERIES)/deb/version
	@ls -l $(<D)/*.deb
distro: $(if $(LINUX),,$(LOG)/quilt.results $(LOG)/check-tree.results) $(LOG)/recipes.results $(LOG)/deb.results
	@scripts/results/summary 'make distro' $(START) $(SERIES)/results $^
$(LOG)/quilt.results: FORCE quilt $(SERIES)/source.deb | packages-distro
	@scripts/distro/test-quilt dir=$(SERIES) suite=$(DEB_SUITE) deb=$(SERIES)/source.deb quilt=$(SERIES)/quilt out=$@
$(LOG)/check-tree.results: FORCE $(SERIES)/tree.id $(SERIES)/source.deb
	@scripts/series/test-check-tree tree=$(SERIES)/tree deb=$(SERIES)/source.deb patches=$(PATCHES) \
		dir=$(SERIES)/check-tree-test out=$@
$(LOG)/recipes.results: FORCE quilt patch | packages-distro
	@scripts/distro/test-recipes dir=$(SERIES) page=DISTRIBUTIONS.md out=$@
$(LOG)/deb.results: FORCE $(SERIES)/deb/version $(SERIES)/tests.img | packages-distro
	@scripts/distro/test-debs debs=$(SERIES)/deb suite=$(INSTALL_SUITE) out=$@ \
		list=$(SERIES)/tests.list initrd=$(SERIES)/tests.img $(KNOWN) DISKSEQ_STORM=$$(($(STORM) / 10))

##@ shell       boots to a prompt, with util-linux and the tests at hand
.PHONY: shell
shell: $(KERNEL)/bzImage $(SERIES)/tests.img build/vm/shell.img
	@vm/boot -k $< -i $(SERIES)/tests.img -i build/vm/shell.img -s

##@ check       checkpatch, warnings, sparse, git am, documentation: boots nothing
##@ static      warnings and sparse with more compilers and machines, coccicheck
.PHONY: check static
check: $(LOG)/check.results
	@scripts/results/summary 'make check' $(START) $(SERIES)/results $<
static: $(LOG)/static.results
	@scripts/results/summary 'make static' $(START) $(SERIES)/results $<
$(LOG)/static.results: FORCE $(SERIES)/tree.id | packages-static
	@scripts/check/static $(BASE) $@

##@ coverage    which lines of the series the selftests execute, by patch: build/BASE/coverage/index.html
.PHONY: coverage
coverage: $(LOG)/coverage.results
	@scripts/results/summary 'make coverage' $(START) $(SERIES)/results $(LOG)/counted.results $<
# The counting kernel is slower, and its storm is that of a slow one.
$(LOG)/coverage.results: $(COUNTED)/bzImage $(SERIES)/tests.img FORCE
	@rm -f $@ $(LOG)/counted-*.counts
	@scripts/guest/run-selftests name='tests on $(COUNTED)' kernel=$< out=$(LOG)/counted seconds=2400 \
		obj=$(COUNTED)/obj $(KNOWN) list=$(SERIES)/tests.list initrds=$(SERIES)/tests.img \
		DISKSEQ_STORM=$$(($(STORM) / 10))
	@scripts/report/coverage $(SERIES)/tree $(COUNTED)/obj $(PATCHES)/unexecuted $(SERIES)/coverage/index.html $@ \
		$(LOG)/counted-*.counts

##@ mutants     makes small faults in the series, and reports those that no test finds: MUTANTS=PATTERN
.PHONY: mutants
mutants: $(LOG)/mutants.results
	@scripts/results/summary 'make mutants' $(START) $(SERIES)/results $<
$(LOG)/mutants.results: $(MUTATED)/bzImage $(SERIES)/tests.img FORCE
	@scripts/guest/run-mutants kernel=$< list=$(MUTATED)/list dir=$(MUTATED) tree=$(SERIES)/tree \
		initrd=$(SERIES)/tests.img programs=$(SERIES)/tests.list explained=$(PATCHES)/survivors out=$@ \
		only='$(MUTANTS)' $(KNOWN) DISKSEQ_STORM=200

##@ compare     the selftests on all bases and on Debian's kernels: a table, rule by kernel
.PHONY: compare
compare: $(SERIES)/bzImage $(SERIES)/tests.img $(patsubst %,build/prebuilt/%/version,$(COMPARE))
	@for base in $(OTHER_BASES); do $(MAKE) BASE=$$base build/$$base/bzImage || exit; done
	@STORM=$$(($(STORM) / 10)) scripts/guest/compare-kernels start=$(START) dir=$(SERIES) \
		bases='$(BASE) $(OTHER_BASES)' suites='$(COMPARE)'

##@ clients     unmodified systemd, udev, util-linux and more, of SUITE=trixie|sid; RESCAN=y: udev rescans
.PHONY: clients
# systemd comes last, since it removes the loop devices that it has used.
CLIENTS_TESTS := $(addprefix /clients/,util-linux udev example drivers blktests lvm md zram udisks systemd)
clients: $(LOG)/clients.results $(LOG)/live.results
	@scripts/results/summary 'make clients' $(START) $(SERIES)/results $^
$(LOG)/clients.results: $(SERIES)/bzImage $(ROOTFS) build/vm/clients.img \
		$(if $(SIDE_BY_SIDE),$(call after,story),FORCE)
	@scripts/guest/run-clients name='programs of $(SUITE) on $(SERIES)' kernel=$< out=$(basename $@) seconds=2400 \
		disk=$(ROOTFS) initrd=build/vm/clients.img programs='$(CLIENTS_TESTS)' \
		$(RESCAN:%=DISKSEQ_RESCAN=%)
# In a guest of its own, whose disk it takes away.
$(LOG)/live.results: $(SERIES)/bzImage $(ROOTFS) build/vm/clients.img \
		$(if $(SIDE_BY_SIDE),$(call after,clients),FORCE)
	@scripts/guest/run-clients name='a live system on $(SERIES)' kernel=$< out=$(basename $@) seconds=900 \
		disk=$(ROOTFS) initrd=build/vm/clients.img programs=/clients/live DISKSEQ_LIVE=y

##@ fuzz        random operations on all kinds of disks, observed: MINUTES=2; SEED=N repeats one;
##@             MODULES=1: drivers are modules, and are unloaded now and then
##@ million     N=1000000 attaches of loop, and a tenth of that of nbd, zram and md each
.PHONY: fuzz million
fuzz: $(LOG)/fuzz.results
	@scripts/results/summary 'make fuzz' $(START) $(SERIES)/results $<
million: $(LOG)/million.results
	@scripts/results/summary 'make million' $(START) $(SERIES)/results $<
$(LOG)/fuzz.results: $(if $(MODULES),$(LOADABLE),$(KERNEL))/bzImage build/vm/proof.img FORCE
	@$(SANITIZE:%=LOCKDEP=y) scripts/guest/run-proof name='fuzzer on $(<D)' kernel=$< out=$(basename $@) \
		seconds=$$(($(MINUTES) * 60 + 600)) initrds='build/vm/proof.img $(if $(MODULES),$(<D)/modules.img)' program=/proof/fuzz \
		DISKSEQ_SECONDS=$$(($(MINUTES) * 60)) $(SEED:%=DISKSEQ_SEED=%)
$(LOG)/million.results: $(KERNEL)/bzImage build/vm/proof.img FORCE
	@scripts/guest/run-proof name='$(N) media on $(KERNEL)' kernel=$< out=$(basename $@) \
		seconds=$$(($(N) / 10 + 900)) initrds=build/vm/proof.img program=/proof/million DISKSEQ_MILLION=$(N)

##@ scale       how the cost of a media change grows with what is around it: base and series; ROUNDS=3
.PHONY: scale
scale: $(LOG)/scale.results
	@scripts/results/summary 'make scale' $(START) $(SERIES)/results $<
$(LOG)/scale.results: $(PRISTINE)/bzImage $(SERIES)/bzImage build/vm/proof.img FORCE | packages-scale
	@scripts/guest/measure-scale stock=$(PRISTINE)/bzImage series=$(SERIES)/bzImage initrd=build/vm/proof.img \
		out=$(basename $@) rounds=$(ROUNDS)
	@scripts/report/scale $(basename $@)

##@ inject      each allocation of each operation fails once: TEST=PATTERN for some operations
.PHONY: inject
inject: $(LOG)/inject.results
	@scripts/results/summary 'make inject' $(START) $(SERIES)/results $<
$(LOG)/inject.results: $(FAILING)/bzImage build/vm/proof.img FORCE
	@LOCKDEP=y TAINT=512 scripts/guest/run-proof name='failures on $(FAILING)' kernel=$< out=$(basename $@) \
		seconds=28800 initrds=build/vm/proof.img program=/proof/inject $(if $(TEST),'DISKSEQ_ONLY=$(TEST)')

##@ races       data races (KCSAN) in all tests, and in the fuzzer while each step of the series is delayed: MINUTES=30
.PHONY: races
races: MINUTES = 30
races: $(LOG)/races.results $(LOG)/delays.results
	@scripts/results/summary 'make races' $(START) $(SERIES)/results $^
# A data race counts as a warning, and the rest of them would not be seen.
$(LOG)/races.results: $(RACING)/bzImage $(SERIES)/tests.img FORCE
	@scripts/guest/run-selftests name='tests on $(RACING)' kernel=$< out=$(basename $@) seconds=3600 \
		list=$(SERIES)/sanitizer.list initrds=$(SERIES)/tests.img races=$(RACING)/list $(KNOWN) DISKSEQ_STORM=200 panic_on_warn=0
$(LOG)/delays.results: $(RACING)/bzImage build/vm/proof.img FORCE
	@scripts/guest/run-proof name='fuzzer on $(RACING)' kernel=$< out=$(basename $@) \
		seconds=$$(($(MINUTES) * 180 + 900)) initrds=build/vm/proof.img program=/proof/fuzz races=$(RACING)/list \
		DISKSEQ_SECONDS=$$(($(MINUTES) * 60)) DISKSEQ_DELAYS=$$(wc -l <$(RACING)/list) $(SEED:%=DISKSEQ_SEED=%) DISKSEQ_LIMIT=300 panic_on_warn=0
	@scripts/results/delays $(RACING)/list $(LOG)/delays.console

##@ proof       coverage, mutants, inject, races, fuzz, million and scale, one after the other: takes many hours
.PHONY: proof
proof:
	@failed=; for part in coverage mutants inject races fuzz 'fuzz MODULES=1' million scale; do \
		$(MAKE) $$part || failed="$$failed $$part"; \
	done; [ -z "$$failed" ] || { echo "failed:$$failed"; exit 1; }

##@ measure     what the number costs and saves with udev: base and series side by side
.PHONY: measure
measure: $(PRISTINE)/bzImage $(SERIES)/bzImage $(ROOTFS) build/vm/clients.img
	@scripts/guest/measure $(START) $(ROOTFS) build/vm/clients.img $(LOG) $(filter %/bzImage,$^)
	@scripts/report/contention 'Linux $(BASE)=$(LOG)/measure-$(notdir $(PRISTINE)).tap' \
		'Linux $(BASE) with the series=$(LOG)/measure-$(notdir $(SERIES)).tap' >$(LOG)/contention.svg.tmp
	@mv $(LOG)/contention.svg.tmp $(LOG)/contention.svg

##@ report      build/BASE/report/index.html: pictures and tables of what was run, on one page
.PHONY: report
report: $(SERIES)/report/timeline.svg $(SERIES)/report/run.cast | packages-report
	@scripts/report/page 'diskseq on Linux $(BASE)' 'Who uses loop0, and what udev is told=make run=$<' \
		'What holds on which kernel=make compare=$(LOG)/compare.md' \
		'What it costs=make measure=$(LOG)/measure.md' \
		'Whose partition a program takes for its own=make measure=$(LOG)/contention.svg' \
		'How that grows=make scale=$(LOG)/scale.md' \
		$(foreach axis,partitions listeners pollers beside disks cpus, \
		'What an attach and a detach cost: $(axis)=make scale=$(LOG)/scale-$(axis).svg') \
		'What the tests execute of the series=make coverage=$(SERIES)/coverage/by-patch.md' \
		'The story=make run=$(LOG)/story' >$(<D)/index.html
	@scripts/report/look-at $(<D)/index.html $(LOG)/report.results
	@scripts/results/summary 'make report' $(START) $(SERIES)/results $(LOG)/report.results
# A kernel without a number has no colours for its events.
$(SERIES)/report/timeline.svg: $(LOG)/story.results scripts/report/timeline
	@mkdir -p $(@D)
	@scripts/report/timeline $(if $(filter none,$(PREBUILT_NUMBER)),,'Linux $(BASE)=$(LOG)/story-prebuilt') \
		'Linux $(BASE) with the series=$(LOG)/story' >$@.tmp
	@mv $@.tmp $@

# make run, for asciinema play. asciinema itself succeeds whatever it records.
$(SERIES)/report/run.cast: $(SERIES)/bzImage build/vm/story.img build/prebuilt/$(PREBUILT_SUITE)/version | packages-report
	@mkdir -p $(@D)
	@asciinema rec -q --overwrite --cols 100 --rows 50 -t 'make run' -c 'scripts/guest/play-story $(STORY)' $@.tmp
	@tail -n 1 $@.tmp | grep -q 'make run: '
	@mv $@.tmp $@

##@ bisect      builds and boots the kernel after each patch, with all tests that pass by then
.PHONY: bisect
bisect: $(SERIES)/tree.id $(SERIES)/tests.img
	@$(BISECT) how=boot out=$(LOG)/bisect-all.results $(WITH_CLIENTS)
	@scripts/results/summary 'make bisect' $(START) $(SERIES)/results $(LOG)/bisect-all.results

##@ clean       removes build/; downloads and compiled files stay in the user's cache
##@ help        this list
.PHONY: clean help
clean:
	rm -rf build
help:
	@echo "make TARGET [BASE=$(subst $() ,|,$(BASES))] [ARCH=$(subst $() ,|,$(MACHINES))] [LINUX=DIR: your kernel]"
	@echo "     [TEST=PROGRAM[:PATTERN]] [SANITIZE=1] [STOCK=1] [CONFIG=FILE] [ACCEL=tcg|kvm] [STORM=N]"
	@sed -n 's/^##@ / /p' Makefile
	@echo "STOCK=1: without the patches; CONFIG: for deb; STORM: attaches of the storm tests"
	@echo "FORCE=1: tree discards commits and edits, refresh overwrites patches/"
