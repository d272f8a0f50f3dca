# Two commands do everything on Debian 12 with a Rust toolchain: `make run` and `make test`.
SHELL := /bin/bash
SUDO := $(shell [ "$$(id -u)" = 0 ] || echo sudo)
APT := $(SUDO) env DEBIAN_FRONTEND=noninteractive RUNLEVEL=1 apt-get
RUN := target/quickstart
BIN := target/release-fast/couloir
CLIENTS := target/clients

# what `couloir -V` says
export COULOIR_RUSTC := $(shell rustc --version 2>/dev/null)

.PHONY: run test build bench docs build-deps test-deps
.DEFAULT_GOAL := build

## build and start conf/quickstart.conf in the foreground
run: build
	@mkdir -p $(RUN)
	@echo
	@echo "Couloir balances on http://127.0.0.1:8080/ over two origins, 127.0.0.1:8081 and 127.0.0.1:8082."
	@echo "Try: curl http://127.0.0.1:8080/   a few times. Ctrl-C ends it."
	@echo
	@exec $(BIN) -p $(CURDIR)/$(RUN)/ -c $(CURDIR)/conf/quickstart.conf -e stderr

## formatting, lints, tests, licences
test: test-deps
	cargo fmt --check
	cargo clippy --locked --all-targets -- -D warnings
	cargo test --locked --no-fail-fast
	@if cargo deny --version >/dev/null 2>&1; then cargo deny --locked check bans licenses sources; \
	else echo "cargo-deny is not installed: bans, licences and sources were not checked"; fi

## an optimised build that does not take long to make
build: build-deps
	cargo build --locked --profile release-fast

## criterion benches
bench: build-deps
	cargo bench --locked

## docs/directives.md, from the declarations of the directives, and the library's documentation
docs: build-deps
	COULOIR_WRITE_DOCS=1 cargo test --locked --test docs
	cargo doc --locked --no-deps

# $(call install,PACKAGES): a shell line that installs what $$missing names
define install
	if [ -n "$$missing" ]; then \
		echo "installing:$$missing"; \
		$(APT) update -qq && $(APT) install -y -qq --no-install-recommends $$missing; \
	fi
endef

build-deps:
	@command -v cargo >/dev/null || { echo "cargo is missing: install Rust from https://rustup.rs"; exit 1; }
	@missing=; need() { command -v "$$1" >/dev/null 2>&1 || missing="$$missing $$2"; }; \
	need cc "gcc libc6-dev"; need cmake cmake; \
	perl -MFindBin -MIPC::Cmd -MTime::Piece -e 1 >/dev/null 2>&1 || missing="$$missing perl"; \
	$(install)

test-deps: build-deps
	@missing=; need() { command -v "$$1" >/dev/null 2>&1 || missing="$$missing $$2"; }; \
	[ -x "$${NGINX_BIN:-/usr/sbin/nginx}" ] || missing=nginx; \
	ls /usr/sbin/php-fpm* >/dev/null 2>&1 || missing="$$missing php-fpm"; \
	need curl curl; need nghttp nghttp2-client; \
	[ -x /usr/bin/memcached ] || missing="$$missing memcached"; \
	ls /usr/lib/uwsgi/plugins/python3*_plugin.so >/dev/null 2>&1 || missing="$$missing uwsgi-core uwsgi-plugin-python3"; \
	python3 -c 'import ensurepip' >/dev/null 2>&1 || missing="$$missing python3-venv"; \
	$(install)
	@$(MAKE) --no-print-directory $(CLIENTS)/installed
	@cargo fmt --version >/dev/null 2>&1 || rustup component add rustfmt
	@cargo clippy --version >/dev/null 2>&1 || rustup component add clippy

# clients from PyPI that some tests run
$(CLIENTS)/installed: tests/clients/requirements.txt
	python3 -m venv $(CLIENTS)
	$(CLIENTS)/bin/pip install --quiet --disable-pip-version-check -r $<
	@touch $@
