#!/bin/sh
# Compiles every CUDA file for the architectures named (default: 80 90a 100a) and fails on a warning
# or a register spill. Needs nvcc but no GPU. Usage: tools/compile_cuda.sh [ARCH...]
set -eu
cd "$(dirname "$0")/.."
nvcc=${CUDACXX:-$(command -v nvcc || echo /usr/local/cuda/bin/nvcc)}
if ! command -v "$nvcc" >/dev/null; then
    echo "compile_cuda: nvcc not found on PATH or in /usr/local/cuda; set CUDACXX to its path" >&2
    exit 2
fi
[ $# -gt 0 ] || set -- 80 90a 100a
targets=
for arch; do
    targets="$targets -gencode=arch=compute_$arch,code=sm_$arch"
done
log=$(mktemp)
object=$(mktemp)
trap 'rm -f "$log" "$object"' EXIT
status=0
for file in csrc/cuda/*.cu; do
    echo "compile_cuda: $file for $*"
    # shellcheck disable=SC2086  # one word for each target
    if ! "$nvcc" -std=c++17 -O3 -Icsrc -Icsrc/include -Xcompiler=-Wall,-Wextra,-fPIC \
        --expt-relaxed-constexpr --Werror=all-warnings -Xptxas=-v --threads=0 $targets \
        -c "$file" -o "$object" >"$log" 2>&1; then
        cat "$log" >&2
        status=1
    elif grep -E 'spill' "$log" | grep -vqE '0 bytes spill stores, 0 bytes spill loads'; then
        grep -E -B2 '[1-9][0-9]* bytes spill' "$log" >&2
        echo "compile_cuda: $file spills registers" >&2
        status=1
    fi
done
exit $status
