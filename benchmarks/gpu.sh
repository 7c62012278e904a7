#!/usr/bin/env bash
# One command on a machine with a GPU: the benchmarks, then the protocol parallel: systems, grids, figures.
# It goes on where it stopped. paper_size.py and single trainings ran on an H200; this script as a whole was tested on a CPU
# only, in its smallest size, and there is no throughput record of a GPU.
# A part of it, or a try on a CPU, by variables (tests/test_gpu_script.py does so):
#   PROTOCOL         a protocol's name or a folder of your own files
#   METHODS, GRIDS   what is trained, by name; grids have the protocol's own settings whatever TRAIN says
#   PAPER_SIZE       empty leaves out benchmarks/paper_size.py, which needs a GPU
#   BENCHMARK, TRAIN, FIGURES   options of benchmarks/throughput.py, xsta train, and xsta figures (instead of --inspect)
set -euo pipefail
cd "$(dirname "$0")/.."
bin=${1:-.venv/bin}
protocol=${PROTOCOL:-parallel}
if [ "$protocol" = parallel ] && [ -z "${XSTA_DATA:-}" ]; then "$bin/xsta" download parallel; fi
"$bin/python" benchmarks/throughput.py --protocol "$protocol" ${BENCHMARK:-}
if [ -n "${PAPER_SIZE-yes}" ]; then "$bin/python" benchmarks/paper_size.py --protocol "$protocol"; fi
for method in ${METHODS:-zero-shot trans-train pairs x-mixup x-mixup_content x-sta}; do
  "$bin/xsta" train --protocol "$protocol" --method "$method" ${TRAIN:-}
done
for grid in ${GRIDS-ablations seeds gamma layers}; do
  "$bin/xsta" grid --name "$grid" --protocol "$protocol"
done
"$bin/xsta" figures --protocol "$protocol" ${FIGURES---inspect}
