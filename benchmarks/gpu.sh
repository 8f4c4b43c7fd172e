#!/usr/bin/env bash
# One call on a machine with a GPU, resumable: the GPU tests, the cost table, then as much of a preset as the time allows.
#
#   benchmarks/gpu.sh OUT [SECONDS] [PRESET] [GROUP ...]
#
# OUT gets gpu_tests.txt, cost.txt and runs.tar (run files and checkpoints); unpack runs.tar in the repository to go on from
# there next time. Needs python3 with torch, numpy, pandas, pyarrow, scikit-learn, tqdm, pyyaml and fastjsonschema, and
# data/cifar10_5k.npz for the cifar10 preset; the tests also need pytest and are left out where it is missing.
set -uo pipefail
out=$(mkdir -p "${1:?folder for the results}" && cd "$1" && pwd)
seconds=${2:-400} preset=${3:-cifar10}
shift "$(($# < 3 ? $# : 3))"
cd "$(dirname "$0")/.."
export PYTHONPATH="$PWD${PYTHONPATH:+:$PYTHONPATH}"
[ -f runs.tar ] && tar -xf runs.tar

if python3 -c "import pytest" 2> /dev/null; then
  timeout 120 python3 -m pytest -o addopts= -q -m gpu tests > "$out/gpu_tests.txt" 2>&1
else
  echo "pytest is not installed: the GPU tests did not run" > "$out/gpu_tests.txt"
fi
timeout 200 python3 benchmarks/cost.py --model fc-tanh cnn --device cuda > "$out/cost.txt" 2>&1
python3 -m eosslib train "$preset" "$@" --device cuda --max-seconds "$seconds" --checkpoint-seconds 60
status=$?
tar -cf "$out/runs.tar" "data/runs/$preset" 2> /dev/null
exit "$((status == 75 ? 0 : status))"
