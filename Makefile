# nskit: the two commands are `make demo` and `make test`.

PREFIX ?= /usr/local
BINDIR ?= $(PREFIX)/bin
MANDIR ?= $(PREFIX)/share/man
CARGO ?= cargo

TOOLS = subid-alloc ns-new uidmap-set ns-enter idmap-mount pivot-exec ns-show
SCRIPTS = \
	.ci/run \
	tests/bench/idmap \
	tests/bench/ns-show \
	tests/bench/subid-alloc \
	tests/build \
	tests/demo \
	tests/faults/run \
	tests/lab \
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

# Figures of this machine, for the record: no test depends on them.
bench: all
	@{ echo '# Figures'; for bench in tests/bench/[a-z]*; do \
	    if [ -x "$$bench" ]; then echo && "$$bench" || exit 1; fi; done; } >target/RESULTS.md
	@mv target/RESULTS.md tests/bench/RESULTS.md

lint:
	$(CARGO) fmt --all --check
	$(CARGO) clippy --workspace --all-targets --locked --quiet -- -D warnings
	mandoc -Tlint -Wwarning man/*.[157]
	shellcheck $(SCRIPTS)

install: all
	install -d $(DESTDIR)$(BINDIR) $(DESTDIR)$(MANDIR)/man1 $(DESTDIR)$(MANDIR)/man5 $(DESTDIR)$(MANDIR)/man7
	cd target/bin && install -m 755 $(TOOLS) $(abspath $(DESTDIR)$(BINDIR))
	install -m 644 man/*.1 $(DESTDIR)$(MANDIR)/man1
	install -m 644 man/*.5 $(DESTDIR)$(MANDIR)/man5
	install -m 644 man/*.7 $(DESTDIR)$(MANDIR)/man7

# uidmap-set in place of newuidmap and newgidmap, with the capabilities that
# these have: only when it is asked for by name, and never over shadow's own.
install-newuidmap: install
	cd $(DESTDIR)$(BINDIR) && for name in newuidmap newgidmap; do \
	    if [ -e $$name ] && [ "$$(readlink $$name)" != uidmap-set ]; then \
	        echo "$(DESTDIR)$(BINDIR)/$$name is not ours: choose another PREFIX" >&2; exit 1; fi; done
	setcap cap_setuid,cap_setgid=ep $(DESTDIR)$(BINDIR)/uidmap-set
	cd $(DESTDIR)$(BINDIR) && for name in newuidmap newgidmap; do ln -sf uidmap-set $$name; done

uninstall:
	cd $(DESTDIR)$(BINDIR) && for name in newuidmap newgidmap; do \
	    if [ "$$(readlink $$name)" = uidmap-set ]; then rm $$name; fi; done
	cd $(DESTDIR)$(BINDIR) && rm -f $(TOOLS)
	cd $(DESTDIR)$(MANDIR) && rm -f $(TOOLS:%=man1/%.1) man5/nskit-record.5 man7/nskit.7

clean:
	$(CARGO) clean

.PHONY: all demo lab lab-check test test-all test-rest faults bench lint install install-newuidmap uninstall clean
