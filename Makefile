# The habits of this project, each one word. The checks live in .ci/run, the rest here.
#
# Variables, to be set on the command line: PKG (which packages), BENCH (which benchmarks),
# COUNT (runs of each), BASE (what bench-compare compares with), SEED (of the soak), FUZZTIME.

PKG      ?= ./...
BENCH    ?= .
COUNT    ?= 6
BASE     ?= HEAD
FUZZTIME ?= 10s
# Read once: the clock must not tell the log another seed than the run.
SEED     := $(or $(SEED),$(shell date +%s))

.DEFAULT_GOAL := help

.PHONY: help
help: ## Show this list
	@awk 'BEGIN {FS = ":.*## "} /^##@/ {printf "\n%s\n", substr($$0, 5)} /^[a-z-]+:.*## / {printf "  %-14s %s\n", $$1, $$2}' $(MAKEFILE_LIST)
	@printf '\nFor example: make race PKG=./transport/memory\n             make bench-compare BASE=main BENCH=Publish COUNT=10\n             make fuzz FUZZTIME=1m\n'

##@ While writing

.PHONY: fmt
fmt: ## Format the Go files
	@git ls-files -z --cached --others --exclude-standard '*.go' | xargs -0 gofmt -s -w

.PHONY: test
test: ## Run the tests of PKG
	go test $(PKG)

.PHONY: race
race: ## Run the tests of PKG, in full, under the race detector
	CGO_ENABLED=1 go test -race -timeout 30m $(PKG)

.PHONY: lint
lint: ## Run golangci-lint in every module (the first time builds it, some minutes)
	@.ci/run lint

.PHONY: examples
examples: ## Run every program below examples/
	@.ci/run examples

.PHONY: cover
cover: ## Measure which lines the tests reach, across packages
	@mkdir -p .bin
	go test -coverpkg=./... -coverprofile=.bin/cover.out $(PKG)
	go tool cover -func=.bin/cover.out | tail -n 1

##@ Before sending

.PHONY: ci
ci: ## Run everything that a change has to pass
	@.ci/run

.PHONY: docs
docs: ## Generate the capability matrix into README.md and docs/
	go run ./internal/docgen

.PHONY: docs-check
docs-check: ## Verify that the generated documents are those of this code
	@.ci/run docs

.PHONY: tidy
tidy: ## Tidy go.mod and go.sum of every module
	@git ls-files --cached --others --exclude-standard go.mod '*/go.mod' | while read -r mod; do \
		echo "$$mod"; (cd "$$(dirname "$$mod")" && go mod tidy) || exit; done

.PHONY: vuln
vuln: ## Look for known vulnerabilities in what is called
	@.ci/run vuln

##@ Longer

.PHONY: bench
bench: ## Run the benchmarks of PKG, and those of bench/ against hand-written nats.go
	go test -run '^$$' -bench '$(BENCH)' -benchmem $(PKG)
	cd bench && go test -run '^$$' -bench '$(BENCH)' -benchmem ./...

.PHONY: bench-compare
bench-compare: ## Compare the benchmarks of BASE with those of the working tree
	@PKG='$(PKG)' BENCH='$(BENCH)' COUNT='$(COUNT)' BASE='$(BASE)' tools/bench-compare

.PHONY: fuzz
fuzz: ## Run every fuzz target for FUZZTIME
	@FUZZTIME=$(FUZZTIME) .ci/run fuzz

.PHONY: soak
soak: ## Run the chaos harness on a cluster for long; SEED repeats a run
	@echo "SEED=$(SEED)"
	GOFLUX_SOAK=1 GOFLUX_SEED=$(SEED) go test -run Soak -count=1 -timeout 60m -v ./internal/chaos/...

.PHONY: interop
interop: ## Run the tests against the JavaScript client of NATS (needs node and npm)
	@.ci/run interop
