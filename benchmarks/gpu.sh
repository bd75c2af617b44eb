#!/bin/bash
# All measurements on one GPU of 80 to 141 GB, in less than nine minutes:
#
#     bash benchmarks/gpu.sh [--small] [OUT [PART...]]
#
# Each part is a script in benchmarks/on_gpu/ that prints JSON lines; they go to OUT (gpu.jsonl) too, and a table follows.
# A part that fails or takes too long is a line with the reason, and the others go on. --small runs everything at small
# sizes on any device, which a test does on a CPU.
set -uo pipefail
cd "$(dirname "$0")/.."

small=()
if [[ ${1:-} == --small ]]; then small=(--small) && shift; fi
out=${1:-gpu.jsonl}
wanted=" ${*:2} "
export XLA_PYTHON_CLIENT_MEM_FRACTION=${XLA_PYTHON_CLIENT_MEM_FRACTION:-0.92}
export TF_CPP_MIN_LOG_LEVEL=${TF_CPP_MIN_LOG_LEVEL:-2}

parts() { # seconds, and the script; together less than nine minutes
  cat <<'END'
35  peaks
70  decode
100 update
25  attention
35  logprobs
35  products
235 run
END
}

parts | while read -r seconds script; do
  if [[ $# -gt 1 && $wanted != *" $script "* ]]; then continue; fi
  python -m benchmarks.on_gpu.part "$seconds" "$script" "${small[@]}" </dev/null
done | tee "$out"
python -m benchmarks.on_gpu.table "$out"
