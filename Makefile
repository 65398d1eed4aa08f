# `make` alone lists the targets. Everything that touches the kernel needs root.

SHELL := /bin/bash
.DEFAULT_GOAL := help

PYTEST := target/venv/bin/python -m pytest -c tests/pytest.ini --rootdir tests
# The tests that only wait most of the time: four at once on two CPUs.
BESIDE := --numprocesses 4 --dist worksteal -m "not alone"
OPENSTACK := target/venv-openstack/bin/python tests/openstack/run
ROOT_TESTS := tests/system tests/security tests/api tests/durability tests/docs tests/lists tests/package
FUZZ_SECONDS ?= 60
UPGRADE_FROM ?= HEAD^

.PHONY: help
help: ## this list
	@echo 'berth: containers as OpenStack Nova instances'
	@echo
	@grep -hE '^[a-z0-9-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/^([a-z0-9-]+):.*## /\1\t/' | expand -t 20 | sed 's/^/  make /'

.PHONY: demo
demo: ## the main job on real images: spawn, look, limit, reboot, destroy (root; installs what it needs)
	@scripts/deps build run images
	@$(MAKE) --no-print-directory build
	@demo/run

.PHONY: test
test: ## all that a change must pass, up to a whole OpenStack: 40 to 50 minutes on 2 cores (root; installs what it needs)
	@scripts/deps build run
	@tests/run

.PHONY: test-long
test-long: ## what is not worth its time at every change, with the reasons in tests/run: over an hour (root)
	@scripts/deps build run
	@tests/run long

.PHONY: test-deps
test-deps: ## what the tests need: packages, programs, Python environments, images
	@scripts/deps build run images test lint driver openstack package vm
	@scripts/image-busybox >/dev/null && scripts/image-application >/dev/null && scripts/image-debian >/dev/null && \
		scripts/image-debian --containers >/dev/null && scripts/image-inits >/dev/null
	@tests/vm/build

.PHONY: build
build: ## the release programs, target/release/berth and berth-monitor
	@scripts/deps build
	cargo build --release --locked

.PHONY: test-unit
test-unit: ## Rust's unit tests, some of which make mounts and namespaces (root)
	@scripts/deps build run test
	NEXTEST_STATUS_LEVEL=pass cargo nextest run --locked

.PHONY: test-root
test-root: test-beside test-alone ## the tests against a running service: system, security, durability, API (root)

.PHONY: test-beside
test-beside: build ## of these, all that can run beside each other
	@scripts/deps run images test package
	$(PYTEST) $(ROOT_TESTS) $(BESIDE)

.PHONY: test-alone
test-alone: build ## of these, what measures the host or burdens it
	@scripts/deps run images test package
	$(PYTEST) $(ROOT_TESTS) -m alone

.PHONY: test-each
test-each: build ## each of these with each runtime program, and 500 random kills
	@scripts/deps run images test package
	$(PYTEST) $(ROOT_TESTS) --each $(BESIDE)
	$(PYTEST) $(ROOT_TESTS) --each --kills 250 -m alone

.PHONY: test-system
test-system: build ## of these, the system tests only
	@scripts/deps run images test
	$(PYTEST) tests/system

.PHONY: test-security
test-security: build ## of these, the attempts to get out of an instance
	@scripts/deps run images test
	$(PYTEST) tests/security

.PHONY: test-durability
test-durability: build ## of these, kill -9 at random moments and a full disk
	@scripts/deps run images test
	$(PYTEST) tests/durability

.PHONY: test-v2
test-v2: build ## on cgroup v2, with systemd and Linux 6.1, in an emulated machine (root; slow)
	@scripts/deps images vm
	@tests/vm/run

.PHONY: test-v2-part
test-v2-part: build ## of these, what every change must pass
	@scripts/deps images vm
	@tests/vm/run --part

.PHONY: test-disk
test-disk: build ## one disk image of a cloud's shape, booted in QEMU and on berth (root; slow)
	@scripts/deps run images test vm
	$(PYTEST) tests/disk

.PHONY: test-driver
test-driver: ## the Nova driver's tests, against the oldest and the newest Nova that it works with
	@scripts/deps driver
	@scripts/test-driver

.PHONY: test-driver-all
test-driver-all: ## the same against every Nova that it works with (2025.1 to 2026.2)
	@scripts/deps driver-all
	@scripts/test-driver all

.PHONY: openstack
openstack: build ## a whole OpenStack on this machine, with berth as its only hypervisor (root)
	@scripts/deps run images openstack $(if $(HORIZON),horizon)
	@$(OPENSTACK) up

.PHONY: openstack-down
openstack-down: ## takes it away
	@$(OPENSTACK) down

.PHONY: tempest
tempest: openstack ## all of Tempest's tests of compute, and its scenarios (an hour and more)
	@$(OPENSTACK) tempest

.PHONY: test-openstack
test-openstack: build ## the cloud up, Heat, a part of Tempest, the cloud down (root)
	@scripts/deps run images openstack
	@$(OPENSTACK) test

.PHONY: test-scale
test-scale: build ## the cloud up, a hundred servers while what carries them is killed, what befalls a host, down (root)
	@scripts/deps run images openstack
	@$(OPENSTACK) test-scale

.PHONY: test-foreign
test-foreign: build ## other people's clients and tests against the cloud, everything logged; not in test-long: not run whole as one yet (root)
	@scripts/deps run images openstack foreign
	@$(OPENSTACK) foreign

.PHONY: test-devstack
test-devstack: build ## the DevStack plugin: stack, servers, Tempest, unstack, stack, clean, compare (root; an hour)
	@scripts/deps run images devstack
	@tests/devstack/run

.PHONY: test-package
test-package: build ## the Debian package under systemd: install, upgrade, remove, purge, under an instance (root)
	@scripts/deps run images package devstack
	@tests/devstack/run package

.PHONY: fuzz
fuzz: ## the fuzzers, FUZZ_SECONDS each (60)
	@scripts/deps build fuzz
	@scripts/fuzz $(FUZZ_SECONDS)

.PHONY: bench
bench: ## figures, each against its peers in the same run (root; installs LXC, libvirt-lxc and Docker)
	@scripts/deps build run images bench
	@$(MAKE) --no-print-directory build
	@bench/run

.PHONY: bench-images
bench-images: build ## images in and snapshots out, beside skopeo, umoci, docker and tar (root; 5 GB of memory)
	@scripts/deps run bench
	@bench/images

.PHONY: bench-openstack
bench-openstack: openstack ## a server's way to ACTIVE, beside Nova's fake driver and libvirt-lxc (root)
	@scripts/deps bench
	@bench/openstack

.PHONY: style
style: ## formatting and compiler lints
	cargo fmt --check
	cargo clippy --locked --all-targets --quiet -- -D warnings
	@# What the fuzzers build.
	cargo clippy --locked --lib --no-default-features --quiet -- -D warnings

.PHONY: lint
lint: style ## formatting and compiler lints, licences, unused dependencies, shell and Python
	@scripts/deps build test lint
	cargo deny --log-level error check bans licenses sources
	cargo machete --with-metadata --skip-target-dir
	shellcheck scripts/deps scripts/fuzz scripts/test-driver scripts/deb scripts/build-at scripts/qemu scripts/image-debian .ci/run tests/openstack/cloud/no-gateway-mtu
	shellcheck --shell=sh debian/prerm debian/postrm
	cd devstack && shellcheck override-defaults settings plugin.sh lib/berth lib/nova_plugins/hypervisor-berth
	shellcheck tests/vm/build tests/vm/guest tests/vm/suite
	shellcheck tests/devstack/boot tests/devstack/guest tests/devstack/package tests/devstack/plugin-functions
	find scripts/tempest -type f -perm -100 -exec shellcheck {} +
	target/venv/bin/ruff check scripts tests demo bench

.PHONY: deb
deb: build ## a Debian package of the service, in target/deb
	@scripts/deps package
	@scripts/deb

.PHONY: wheel
wheel: ## the Nova driver's wheel, in target/wheel
	@scripts/deps driver
	@cd nova-driver && ../target/venv-nova-34/bin/python -m hatchling build -t wheel -d ../target/wheel

.PHONY: docs
docs: build ## writes docs/configuration.md and the tables of docs/features.md anew from the code
	@scripts/deps driver
	target/release/berth configuration > docs/configuration.md
	target/venv-nova-34/bin/python scripts/features-tables

.PHONY: test-docs
test-docs: build ## the documents' links, commands and metrics; lists of tests; circles of files; the package
	@scripts/deps run images test package
	$(PYTEST) tests/docs tests/lists tests/package

.PHONY: test-upgrade
test-upgrade: build ## instances of UPGRADE_FROM's programs (HEAD^), taken over by this tree's (root; builds both)
	@scripts/deps run images test
	@scripts/build-at $(UPGRADE_FROM)
	BERTH_OLD=$(CURDIR)/target/old/berth $(PYTEST) tests/upgrade

.PHONY: openapi
openapi: build ## writes openapi/ anew from the code
	target/release/berth openapi > openapi/berth-v1.json

.PHONY: deps
deps: ## what building, running and testing need, by apt-get and cargo (root)
	@scripts/deps build run images test

.PHONY: clean
clean: ## everything that was made
	cargo clean
	rm -rf fuzz/target
