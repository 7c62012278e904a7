# Two commands matter: `make demo` and `make test`. Each sets up everything it needs in .venv first.
PYTHON ?= python3
BIN := .venv/bin
NOTEBOOKS := $(sort $(wildcard notebooks/*.ipynb))
LESSONS := $(filter-out notebooks/solutions.ipynb,$(NOTEBOOKS))
# Now and then the reply of a cell with widgets is lost (jupyter/nbclient, issue 312) and papermill would wait for ever: a cell
# has five minutes (none took two on one core), and where nothing is overwritten the notebook a second try.
PAPERMILL := $(BIN)/papermill --no-progress-bar --start-timeout 120 --execution-timeout 300 --cwd notebooks
export TOKENIZERS_PARALLELISM = true
# Freed memory is kept for reuse: training on a CPU spends less time on page faults (docs/launching.md).
export MALLOC_MMAP_THRESHOLD_ = 4294967296
export MALLOC_TRIM_THRESHOLD_ = 68719476736

.PHONY: demo test lab check notebooks reader grids more-grids bench spanish gpu clean

# setuptools warns of every editable installation: nothing that a stranger can act on.
.venv/.ready: pyproject.toml constraints.txt
	@echo "Setting up .venv (a few minutes the first time; 2 GB, several more with torch's default CUDA build) ..."
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --upgrade pip
	PYTHONWARNINGS=ignore $(BIN)/python -m pip install --quiet --constraint constraints.txt --editable ".[notebooks,test]"
	@touch $@

# The trained reader answers, another one is trained for some steps, the notebooks run; all goes to runs/. Two notebooks run
# at a time, each on half of the cores: a third of their time is imports, which take one core.
demo: .venv/.ready
	@echo "6 to 12 minutes on 2 cores, up to 5 GiB of memory, 1 GB of disk in runs/; tracked files stay as they are."
	$(BIN)/xsta demo
	@mkdir -p runs/notebooks
	@printf '%s\n' $(LESSONS) | OMP_NUM_THREADS=$$((($$(nproc) + 1) / 2)) xargs -P 2 -I NAME sh -c 'echo "running NAME"; \
	  run() { $(PAPERMILL) --log-level WARNING NAME runs/NAME 2> runs/NAME.log; }; \
	  run || run || { cat runs/NAME.log; exit 255; }; echo "done with NAME"'
	@echo "Done. Open runs/figures/ or the executed notebooks in runs/notebooks/."

test: .venv/.ready
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/python -m pytest

# The notebooks in a browser; LAB takes options of JupyterLab, such as LAB="--no-browser --port 9999".
lab: .venv/.ready
	$(BIN)/jupyter lab $(LAB) notebooks

# The notebooks in their smallest size, as CI runs them.
check: .venv/.ready
	@for notebook in $(NOTEBOOKS); do \
	  mkdir -p runs/notebooks; echo "$$(date +%T) $$notebook, smallest size"; \
	  run() { $(PAPERMILL) -p small True $$notebook runs/notebooks/small-$$(basename $$notebook); }; \
	  run || run || exit 1; \
	done

# Re-execute the notebooks and keep their outputs, and those of the small runs that the tests repeat.
notebooks: .venv/.ready
	@for notebook in $(NOTEBOOKS); do $(PAPERMILL) --progress-bar $$notebook $$notebook || exit 1; done
	$(BIN)/python notebooks/tidy.py $(NOTEBOOKS)
	$(BIN)/python tests/test_notebooks.py

# Train, pack and measure the reader in the box (an hour and a half on one core with bfloat16; data: xsta download parallel).
reader: .venv/.ready
	$(BIN)/xsta reader --make

# Measure every committed demo result anew: the systems, then the grids behind tables and figures (hours on 2 cores).
# After a stop, `make more-grids` goes on where they were.
grids: .venv/.ready
	rm -rf runs/demo results/demo
	$(MAKE) more-grids

more-grids: .venv/.ready
	for grid in methods ablations gamma layers seeds variants; do $(BIN)/xsta grid --name $$grid --protocol demo || exit 1; done
	$(BIN)/xsta figures --protocol demo --inspect

# Speed against the plain way (12 minutes on 2 cores, 20 GB of memory), and what each part of the method costs (6 GiB).
# It writes the records in benchmarks/results/ anew; without parallel's files the first part measures demo, in another file.
bench: .venv/.ready
	$(BIN)/python benchmarks/throughput.py
	$(BIN)/python benchmarks/method_cost.py

# A reader for Spanish from English files, by Apertium (apt install apertium-eng-spa) and by people's pairs: half an hour of
# translating and answering on one core, then five trainings of 300 steps, half an hour each; data: xsta download parallel.
spanish: .venv/.ready
	$(BIN)/python benchmarks/spanish.py --train

# On a GPU: the throughput benchmark, then the systems and the grids under parallel, with figures.
gpu: .venv/.ready
	bash benchmarks/gpu.sh $(BIN)

clean:  # what can be made again in minutes; runs/ has trained models and paid answers
	rm -rf .venv build *.egg-info
