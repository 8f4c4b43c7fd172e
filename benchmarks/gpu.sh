#!/usr/bin/env bash
# What to run on a machine with a GPU that is lent for minutes, a piece a call:
#
#   benchmarks/gpu.sh OUT checks                     the GPU tests, then the cost tables: gpu_tests.txt, cost-*.txt
#   benchmarks/gpu.sh OUT train PRESET [GROUP ...]   as much of a preset as the time allows: runs.tar, checkpoints.tar.part…
#
# SECONDS_A_CALL (default 540) is the time a call may take, SEEDS (say "1 2") leaves out the other seeds. Where git's folder is
# not on that machine EOSSLIB_COMMIT says which commit it is, of a tree without changes. Unpack runs.tar, and the joined
# parts of checkpoints.tar, in the repository to go on from there. Runs that are in data/reference are not made again.
# Needs python3 with torch ≥ 2.9, numpy, pandas, pyarrow, scikit-learn, tqdm, pyyaml and fastjsonschema, data/cifar10_5k.npz
# for the cifar10 preset, and pytest (pytest-xdist, if there) for the tests.
set -uo pipefail
limit=${SECONDS_A_CALL:-540}
out=$(mkdir -p "${1:?folder for the results}" && cd "$1" && pwd) what=${2:?checks or train}
shift 2
cd "$(dirname "$0")/.."
export PYTHONPATH="$PWD${PYTHONPATH:+:$PYTHONPATH}" PYTHONUNBUFFERED=1
python3 - << 'END' || exit 1
import fastjsonschema, numpy, pandas, pyarrow, sklearn, torch, tqdm, yaml
assert torch.cuda.is_available(), "there is no GPU"
print(torch.cuda.get_device_name(), "torch", torch.__version__)
# The normal numbers of the noise models; this kernel is compiled when it is first used, by a library of CUDA's own.
assert torch.special.ndtri(torch.tensor([0.5], device="cuda", dtype=torch.float64)).item() == 0
END

left() { echo $((limit - SECONDS)); }

if [ "$what" = checks ]; then
  mapfile -t files < <(grep -l "pytest.mark.gpu" tests/*.py)
  workers=$(python3 -c "import xdist" 2> /dev/null && echo "-n 8")
  # Warnings of other versions of the libraries are not errors here; pytest-benchmark cannot be used beside xdist.
  timeout -s INT -k 10 240 python3 -m pytest $workers -p no:benchmark -p no:cacheprovider -o addopts= -o filterwarnings=default \
    --tb=short -q -m gpu "${files[@]}" 2>&1 | tee "$out/gpu_tests.txt" | tail -n 40
  for model in fc-tanh cnn; do
    [ "$(left)" -gt 30 ] && timeout "$(left)" python3 benchmarks/cost.py --model $model --device cuda 2>&1 | tee "$out/cost-$model.txt"
  done
  exit 0
fi

preset=${1:?a preset, say cifar10}
shift
pack() {
  tar -cf "$out/runs.tar" --exclude=.checkpoints "data/runs/$preset" 2> /dev/null
  # Of a group that was stopped; only if it is small enough to be carried.
  if [ "$(du -sm "data/runs/$preset/.checkpoints" 2> /dev/null | cut -f 1)" -lt 45 ] 2> /dev/null; then
    tar -c "data/runs/$preset/.checkpoints" | split -b 15m - "$out/checkpoints.tar.part"
  fi
}
trap pack EXIT
mkdir -p "data/runs/$preset"
[ -d "data/reference/$preset" ] && cp -rn "data/reference/$preset/." "data/runs/$preset/"
python3 -m eosslib train "$preset" "$@" ${SEEDS:+--seeds $SEEDS} --device cuda --max-seconds "$(left)" --checkpoint-seconds 60
status=$?
exit "$((status == 75 ? 0 : status))"
