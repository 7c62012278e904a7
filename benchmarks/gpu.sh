#!/usr/bin/env bash
# One command on a machine with a GPU: the benchmarks, then the compact protocol with all systems, results and figures.
# It goes on where it stopped. PROTOCOL=demo METHODS="zero-shot x-sta" and the like run a part (so does a test on a CPU).
set -euo pipefail
cd "$(dirname "$0")/.."
bin=${1:-.venv/bin}
protocol=${PROTOCOL:-compact}
if [ "$protocol" = compact ] && [ -z "${XSTA_DATA:-}" ]; then "$bin/xsta" download compact; fi
if [ -z "${SKIP_BENCHMARKS:-}" ]; then
  "$bin/python" benchmarks/throughput.py --protocol "$protocol" --paper-size
  "$bin/python" benchmarks/method_cost.py
fi
for method in ${METHODS:-zero-shot trans-train x-mixup x-sta}; do
  "$bin/xsta" train --protocol "$protocol" --method "$method"
done
"$bin/xsta" figures --protocol "$protocol"
