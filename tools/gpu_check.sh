#!/usr/bin/env bash
# On a machine with an NVIDIA GPU and nvcc: builds for CUDA, then runs tools/gpu_check (the stages, the
# tables, an archive, the verdict). --dry needs neither: it runs every stage at a small size on the CPU.
#
#   VIDGEN_WHEELS=DIR             take the packages that are missing from this folder of wheels
#   VIDGEN_GPU_CHECK_SECONDS=540  the whole time, set-up included
set -euo pipefail
cd "$(dirname "$0")/.."

refuse() {
    echo "gpu-check: $1" >&2
    exit 1
}

dry=
for word; do [ "$word" != --dry ] || dry=1; done

if [ -z "$dry" ]; then
    gpu=$(nvidia-smi --query-gpu=name --format=csv,noheader 2>/dev/null | head -n 1) || true
    [ -n "$gpu" ] || refuse "no NVIDIA GPU is visible here (nvidia-smi names none), so nothing was checked; make gpu-check DRY=1 tries the script on the CPU"
    command -v nvcc "${CUDA_HOME:-/usr/local/cuda}/bin/nvcc" >/dev/null ||
        refuse "found $gpu but no nvcc; install the CUDA toolkit or set CUDA_HOME, then run make gpu-check again"
    export VIDGEN_CUDA=1 # a build without CUDA would pass for the wrong reason
fi

python=${VIDGEN_PYTHON:-.venv/bin/python}
# Without VIDGEN_PYTHON the bootstrap makes .venv and installs every package there.
[ -z "${VIDGEN_WHEELS:-}" ] || [ -z "${VIDGEN_PYTHON:-}" ] || "$python" tools/gpu_check/wheels.py "$VIDGEN_WHEELS"
tools/bootstrap.sh dev
if [ -z "$dry" ]; then
    "$python" -c 'import sys, torch; sys.exit(not torch.cuda.is_available())' ||
        refuse "$gpu is there but torch does not see it; install a CUDA build (VIDGEN_TORCH_INDEX names an index that has one)"
fi
exec "$python" tools/gpu_check --elapsed "$SECONDS" "$@"
