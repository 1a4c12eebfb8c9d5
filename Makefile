# The commands. Each installs what it needs first; CI runs the same ones.
.DEFAULT_GOAL := help
.PHONY: help run down reset test test-fast check audit fix migrate flask openapi requirements clean environment chaos drill simulate bench

VENV := .venv/bin
export PORT AUDIT

help: ## this list
	@sed -n 's/^\([a-z-]*\):.*## /\1|/p' $(MAKEFILE_LIST) | awk -F'|' '{ printf "  make %-14s %s\n", $$1, $$2 }'

run: environment ## run everything on this machine, with a demo payment; Ctrl-C ends it (PORT=8000)
	@exec $(VENV)/python -m devstack up

test: environment ## every check: format, lint, types, import contracts, secrets, deploy files, audit, all tests
	@exec $(VENV)/python -m devstack.checks format lint types imports secrets deploy audit tests

check: environment ## the checks that need no server: format, lint, types, import contracts, secrets, deploy files, audit
	@exec $(VENV)/python -m devstack.checks format lint types imports secrets deploy audit

audit: environment ## find known vulnerabilities in the pinned packages (AUDIT=required fails without a network)
	@exec $(VENV)/python -m devstack.checks audit

test-fast: environment ## the tests without whole stacks (no journeys, no devstack)
	@exec $(VENV)/python -m devstack.checks tests-fast

chaos: environment ## run the stack under faults, and check each key (SEED=1 MINUTES=1 REDIS=absent)
	@exec $(VENV)/python -m chaos $(if $(SEED),--seed $(SEED)) $(if $(MINUTES),--minutes $(MINUTES)) $(if $(REDIS),--redis $(REDIS))

drill: environment ## back up under load, lose all data, restore it, and check each key (SECONDS=15)
	@exec $(VENV)/python -m chaos.drill $(if $(SECONDS),--seconds $(SECONDS))

simulate: environment ## run the engine on a virtual clock, seed by seed (SEEDS=1000 SEED= START= MUTANT=)
	@exec $(VENV)/python -m tests.simulation $(if $(SEEDS),--seeds $(SEEDS)) $(if $(SEED),--seed $(SEED)) $(if $(START),--start $(START)) $(if $(MUTANT),--mutant $(MUTANT))

bench: environment ## measure the cost, compared with a floor and a plain service (ROUNDS=4 SECONDS=4 ONLY="endtoend counts" ROWS="one|plain" PAYMENTS=3000)
	@exec $(VENV)/python -m bench $(ONLY) --keep $(if $(ROUNDS),--rounds $(ROUNDS)) $(if $(SECONDS),--seconds $(SECONDS)) $(if $(ROWS),--rows "$(ROWS)") $(if $(PAYMENTS),--payments $(PAYMENTS))

flask: environment ## run a command of the running stack: make flask ARGS="payments list"
	@$(VENV)/python -m devstack flask $(ARGS)

fix: environment ## format, and fix what the linter can fix
	@$(VENV)/ruff check --fix --quiet . ; $(VENV)/ruff format .

migrate: environment ## migrate the schema of DATABASE_URL, or of the running stack, to the newest version
	@$(VENV)/python -m devstack flask db upgrade

openapi: environment ## write openapi.json from the code
	@$(VENV)/python -m devstack flask openapi write openapi.json

requirements: ## pin the packages of requirements*.in, with hashes (UPGRADE=1 for the newest)
	@VERB="$(firstword $(MAKECMDGOALS))" sh devstack/bootstrap.sh
	@for name in requirements requirements-dev; do \
		$(VENV)/uv pip compile --universal --python-version 3.11 --no-header --no-emit-index-url --generate-hashes \
			--quiet $(if $(UPGRADE),--upgrade) $$name.in --output-file $$name.txt || exit 1; \
	done

down: environment ## end the stack of `make run` that runs in another terminal
	@$(VENV)/python -m devstack down

reset: environment ## delete the data of `make run`
	@$(VENV)/python -m devstack reset

clean: ## remove the environment, caches and the data of `make run`
	@if [ -x $(VENV)/python ] && [ -d var ]; then $(VENV)/python -m devstack reset; fi
	@rm -rf .venv .mypy_cache .ruff_cache .pytest_cache .import_linter_cache .hypothesis htmlcov .coverage*
	@find . -name __pycache__ -type d -prune -exec rm -rf {} +

environment:
	@VERB="$(firstword $(MAKECMDGOALS))" sh devstack/bootstrap.sh
