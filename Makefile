# nskit: the two commands are `make demo` and `make test`.

PREFIX ?= /usr/local
BINDIR ?= $(PREFIX)/bin
MANDIR ?= $(PREFIX)/share/man
CARGO ?= cargo

TOOLS = subid-alloc ns-new uidmap-set ns-enter idmap-mount pivot-exec ns-show
SCRIPTS = \
	.ci/run \
	tests/apparmor \
	tests/bench/growth \
	tests/bench/idmap \
	tests/bench/ns-show \
	tests/bench/pipeline \
	tests/bench/plot \
	tests/bench/subid-alloc \
	tests/build \
	tests/completions/make \
	tests/completions/nskit.bash \
	tests/coverage \
	tests/deb \
	tests/debian \
	tests/defences/run \
	tests/demo \
	tests/emulated \
	tests/faults/run \
	tests/fuzz/run \
	tests/html \
	tests/lab \
	tests/missing \
	tests/new-kernel \
	tests/old-kernel \
	tests/private \
	tests/rootfs \
	tests/run
# Static: a tool still runs after the root has changed under it.
MUSL = $(shell uname -m)-unknown-linux-musl
RUST = $(shell find Cargo.toml Cargo.lock bins common -name '*.rs' -o -name 'Cargo.*')

all: target/bin/.made

target/bin/.made: $(RUST)
	@tests/build $(MUSL) target/bin $(TOOLS)
	@touch $@

demo: all
	@tests/demo

# make lab N=3 and make lab-check N=3: the lessons of man/labs.
lab: all
	@tests/lab shell $(N)

lab-check: all
	@tests/lab check $(N)

test:
	@tests/run

test-all:
	@tests/run --all

# What test-all has beyond test.
test-rest:
	@tests/run --rest

# Every system call failed in turn: hours. NAME="pipeline grant": only these of tests/faults/list.
faults: all
	@tests/faults/run $(NAME)

# The transcripts on kernels that lack a system call, each of tests/without: hours. Only these:
# CALL="openat2 statmount" FILE=tests/sessions/show.md
CALL ?= $(shell tests/without --list)
FILE ?= README.md $(shell grep -L '^<!-- needs:.* long' man/labs/[0-9]*.md tests/attacks/*.md \
    tests/examples/*.md tests/refusals/[a-z]*.md tests/sessions/*.md)
missing:
	@NSKIT_WITHOUT="$(CALL)" tests/run $(FILE)

# Each defence taken out, to see that its attack notices: 5 minutes. NAME="one-write own-proc": only these
# of tests/defences.
defences: all
	@tests/defences/run $(NAME)

# libFuzzer on whatever is read, SECONDS for each target of tests/fuzz/targets.rs. NAME="subid map":
# only these.
SECONDS ?= 60
fuzz:
	@tests/fuzz/run $(SECONDS) $(NAME)

# Which lines of the privileged room the tests reach.
coverage: all
	@tests/coverage

# Figures of this machine, for the record: no test depends on them.
bench: all
	@{ echo '# Figures'; for bench in pipeline growth ns-show idmap subid-alloc; do \
	    echo && tests/bench/$$bench || exit 1; done; } >target/RESULTS.md
	@mv target/RESULTS.md tests/bench/RESULTS.md
	@tests/bench/plot tests/bench/RESULTS.md tests/bench

# The manual and the labs, to be read in a browser.
HTML ?= target/html
html:
	@tests/html $(HTML)
	@echo "made $(HTML)/index.html"

# Pages of others need not be installed here; that ours are there is tested (tests/docs.rs).
lint:
	$(CARGO) fmt --all --check
	rustfmt --edition 2024 --check tests/fuzz/fuzzer.rs
	$(CARGO) clippy --workspace --all-targets --locked --quiet -- -D warnings
	mandoc -Tlint -Wwarning man/*.[157]
	@! mandoc -Tlint -Wstyle man/*.[157] 2>/dev/null | grep -v 'referenced manual not found'
	shellcheck $(SCRIPTS)

# Where shells look, and the lessons as their readers see them.
BASHDIR = $(PREFIX)/share/bash-completion/completions
ZSHDIR = $(PREFIX)/share/zsh/site-functions
FISHDIR = $(PREFIX)/share/fish/vendor_completions.d
DOCDIR = $(PREFIX)/share/doc/nskit
LABS = $(notdir $(wildcard man/labs/[0-9]*.md))

install: all
	umask 022 && mkdir -p $(foreach dir,$(BINDIR) $(MANDIR)/man1 $(MANDIR)/man5 $(MANDIR)/man7 \
	    $(BASHDIR) $(ZSHDIR) $(FISHDIR) $(DOCDIR)/labs,$(DESTDIR)$(dir))
	cd target/bin && install -m 755 $(TOOLS) $(abspath $(DESTDIR)$(BINDIR))
	install -m 644 man/*.1 $(DESTDIR)$(MANDIR)/man1
	install -m 644 man/*.5 $(DESTDIR)$(MANDIR)/man5
	install -m 644 man/*.7 $(DESTDIR)$(MANDIR)/man7
	tests/completions/make target/bin $(DESTDIR)$(BASHDIR) $(DESTDIR)$(ZSHDIR) $(DESTDIR)$(FISHDIR)
	for lab in $(LABS); do tests/lab text $${lab%%-*} >$(DESTDIR)$(DOCDIR)/labs/$$lab || exit 1; done
	cd $(DESTDIR)$(DOCDIR)/labs && chmod 644 *.md

# uidmap-set in place of newuidmap and newgidmap, with the capabilities that
# these have: only when it is asked for by name, and never over shadow's own.
install-newuidmap: install
	cd $(DESTDIR)$(BINDIR) && for name in newuidmap newgidmap; do \
	    if [ -e $$name ] && [ "$$(readlink $$name)" != uidmap-set ]; then \
	        echo "$(DESTDIR)$(BINDIR)/$$name is not ours: choose another PREFIX" >&2; exit 1; fi; done
	setcap cap_setuid,cap_setgid=ep $(DESTDIR)$(BINDIR)/uidmap-set
	cd $(DESTDIR)$(BINDIR) && for name in newuidmap newgidmap; do ln -sf uidmap-set $$name; done

# For systems on which AppArmor keeps user namespaces from ordinary users.
APPARMORDIR ?= /etc/apparmor.d
install-apparmor:
	@if [ -z "$(DESTDIR)" ] && ! [ -e $(APPARMORDIR)/abi/4.0 ]; then \
	    echo 'there is no AppArmor 4.0 here, and none before it keeps user namespaces from anybody' >&2; exit 1; fi
	install -d $(DESTDIR)$(APPARMORDIR)
	tests/apparmor $(BINDIR) >$(DESTDIR)$(APPARMORDIR)/nskit
	@$(call apparmor,-r)

# Tells the kernel, if this is its machine and it has AppArmor.
apparmor = if [ -z "$(DESTDIR)" ] && aa-enabled --quiet 2>/dev/null; then \
	    apparmor_parser $(1) $(APPARMORDIR)/nskit; fi

uninstall:
	@if grep -qs ' $(BINDIR)/ns-new ' $(DESTDIR)$(APPARMORDIR)/nskit; then \
	    $(call apparmor,-R); rm $(DESTDIR)$(APPARMORDIR)/nskit; fi
	for name in newuidmap newgidmap; do \
	    if [ "$$(readlink $(DESTDIR)$(BINDIR)/$$name)" = uidmap-set ]; then rm $(DESTDIR)$(BINDIR)/$$name; fi; done
	rm -f $(TOOLS:%=$(DESTDIR)$(BINDIR)/%) $(TOOLS:%=$(DESTDIR)$(MANDIR)/man1/%.1) \
	    $(DESTDIR)$(MANDIR)/man5/nskit-record.5 $(DESTDIR)$(MANDIR)/man7/nskit.7 \
	    $(DESTDIR)$(BASHDIR)/nskit $(TOOLS:%=$(DESTDIR)$(BASHDIR)/%) \
	    $(DESTDIR)$(ZSHDIR)/_nskit $(TOOLS:%=$(DESTDIR)$(FISHDIR)/%.fish)
	rm -rf $(DESTDIR)$(DOCDIR)

# All of it for a machine without a toolchain: tar -C / -xf nskit.tar.gz. Directories are not in it:
# tar would give those that are there another owner and mode.
TAR ?= target/nskit.tar.gz
static-tar: all
	@dir=$$(mktemp -d) && trap 'rm -rf "$$dir"' EXIT && $(MAKE) -s install DESTDIR="$$dir" && \
	    (cd "$$dir" && find * ! -type d | LC_ALL=C sort) | \
	    tar -C "$$dir" --owner=0 --group=0 -czf $(TAR) -T -
	@echo "made $(TAR)"

# For Debian and its kin: dpkg -i target/nskit_*.deb
deb: all
	@tests/deb target

clean:
	$(CARGO) clean

.PHONY: all demo lab lab-check test test-all test-rest faults missing defences fuzz coverage bench html lint install install-newuidmap install-apparmor uninstall static-tar deb clean
