# make demo    the main job on this machine, until Ctrl-C (CHECK=1: verify each step, clean up, exit)
# make test    all tests; needs root
# make test-v2 the same system on a stock Debian 13 host, emulated (slow)
# make torture SIGKILL of any process of a host, chosen by chance (SECONDS=600; SEED=n: a run again)
# make fuzz    input at random, for longer than in `make test` (CASES=20000); prints the seed of what fails
# make bench   measures, with the peers in the same run (ONLY=start: one group); writes target/bench.json
# make package a .deb and a static tarball in target/package
# make lint    format, clippy, dependency graph
.PHONY: all demo fuzz test test-unit test-kernel test-system test-v2 torture bench package lint packages clean-packages
SHELL    := /bin/bash
TRIPLE   := $(shell rustc -vV | sed -n 's/^host: //p')
DEBUG    := target/$(TRIPLE)/debug
RELEASE  := target/$(TRIPLE)/release
# In a network namespace of its own: tests listen and connect on loopback only.
OWN_NET  := unshare --net -- sh -ec 'ip link set lo up; exec "$$@"' own-net

all:
	cargo build --workspace

# package:program that shows it is there
DEMO_PACKAGES  := mmdebstrap:mmdebstrap nftables:nft curl:curl redis-tools:redis-cli iproute2:ip
TEST_PACKAGES  := $(DEMO_PACKAGES) busybox-static:busybox btrfs-progs:mkfs.btrfs e2fsprogs:mkfs.ext4 \
                  xfsprogs:mkfs.xfs rsyslog:rsyslogd
BENCH_PACKAGES := $(TEST_PACKAGES) runc:runc lxc:lxc-start bubblewrap:bwrap nginx-light:nginx \
                  haproxy:haproxy wrk:wrk util-linux:taskset dnsperf:dnsperf

# Of examples/site.toml.
SITE_IMAGES    := debian:mariadb-server debian:wordpress,wordpress-theme-twentytwentythree

# $(call install,PACKAGES): those whose program is missing
define install
	@missing=; for p in $(1); do command -v $${p##*:} >/dev/null || missing="$$missing $${p%%:*}"; done; \
	if [ -n "$$missing" ]; then \
	  [ "$$(id -u)" = 0 ] || { echo "needs root to install:$$missing; run it as root or through sudo" >&2; exit 5; }; \
	  echo "installing:$$missing"; apt-get update -qq && \
	  DEBIAN_FRONTEND=noninteractive apt-get install -yqq --no-install-recommends $$missing >/dev/null; fi
endef

demo:
	@echo "Bailiwick demo. A first run takes about 10 minutes on two cores (packages, build, images); the next ones seconds."
	$(call install,$(DEMO_PACKAGES))
	cargo build --quiet --release --bins
	@$(RELEASE)/bailiwick-demo $(if $(CHECK),--check)

test: test-unit test-kernel test-system

test-unit:
	$(call install,$(TEST_PACKAGES))
	cargo test --quiet --workspace --exclude bailiwick-system-tests --exclude bailiwick-kernel-tests

test-kernel:
	$(call install,$(TEST_PACKAGES))
	cargo build --quiet --workspace --bins
	cargo test --quiet -p bailiwick-kernel-tests --no-run
	$(OWN_NET) cargo test -p bailiwick-kernel-tests

# The images that the system tests use are built once, into the store that hosts share.
test-system:
	$(call install,$(TEST_PACKAGES))
	cargo build --quiet --workspace --bins
	cargo test --quiet -p bailiwick-system-tests --no-run
	$(DEBUG)/bailiwick-images debian:nginx-light debian:redis-server debian:postgresql debian:dnsmasq-base debian: \
	  $(SITE_IMAGES)
	$(OWN_NET) cargo test -p bailiwick-system-tests

SECONDS_OF_TORTURE := $(if $(filter environment% command%,$(origin SECONDS)),$(SECONDS),120)
torture:
	$(call install,$(TEST_PACKAGES))
	cargo build --quiet --workspace --bins
	$(DEBUG)/bailiwick-images debian:nginx-light debian:redis-server debian:
	$(OWN_NET) $(DEBUG)/bailiwick-torture $(SECONDS_OF_TORTURE) $(SEED)

# On a stock Debian 13 host with systemd and pure cgroup v2, which the program V2_HOST boots.
V2_HOST ?= ../shared/tools/v2-host
test-v2:
	$(call install,$(DEMO_PACKAGES) binutils:strip)
	cargo build --quiet --release --bins
	cargo test --quiet -p bailiwick-system-tests --test sizes --test copies --test owned --test egress --test neighbours --no-run
	$(RELEASE)/bailiwick-images debian:nginx-light debian:
	dir=$$(mktemp -d /var/tmp/bailiwick-v2-XXXXXX); trap 'rm -rf "$$dir"' EXIT; \
	tests/v2/prepare $(RELEASE) $(DEBUG)/deps "$$dir" && \
	V2_HOST_PACKAGES="mmdebstrap kexec-tools e2fsprogs xfsprogs curl nftables" $(V2_HOST) "$$dir"

# Whatever reads what a tenant, a client or another process says. Databases and trees on disk take a while: fewer of those.
fuzz: CASES ?= 20000
fuzz:
	$(call install,$(TEST_PACKAGES))
	cargo build --quiet --workspace --bins
	PROPTEST_CASES=$(CASES) cargo test --quiet -p bailiwick-wire -p bailiwick-model -p bailiwick-network -p bailiwick-shim
	PROPTEST_CASES=$$(($(CASES) / 10)) cargo test --quiet -p bailiwick-archive -p bailiwick-image -p bailiwick-gateway
	PROPTEST_CASES=$$(($(CASES) / 50)) cargo test --quiet -p bailiwick-control store
	PROPTEST_CASES=$$(($(CASES) / 5)) $(OWN_NET) cargo test -p bailiwick-system-tests --test fuzzed

package:
	$(call install,binutils:strip)
	cargo build --quiet --release --bins
	packaging/make-package $(RELEASE) target/package

bench:
	$(call install,$(BENCH_PACKAGES))
	cargo build --quiet --release --bins
	$(RELEASE)/bailiwick-images debian:nginx-light debian: debian:dnsmasq-base $(SITE_IMAGES)
	$(OWN_NET) $(RELEASE)/bailiwick-bench $(ONLY)

lint:
	cargo fmt --all --check
	cargo clippy --quiet --workspace --all-targets -- -D warnings
	cargo test --quiet -p bailiwick-system-tests --test dependencies
