#!/usr/bin/env bash
# Sets up .venv and builds vidgen in it: `run` for training and sampling, `dev` for tests and lint
# too. Each part is redone only when what it was made from has changed, so a second call is instant.
#
#   VIDGEN_PYTHON=python3     use this interpreter's own environment (a container's, with its own
#                             torch) instead of .venv; only vidgen itself is installed into it
#   VIDGEN_TORCH_INDEX=URL    take torch from this index, to choose a CPU or CUDA build of it; for
#                             a .venv that already has torch, `make clean` first
#   VIDGEN_CPU_VARIANTS=all   build every variant of the CPU kernels, not just this CPU's best
#   VIDGEN_CUDA=0|1           forbid or force the CUDA build; VIDGEN_CUDA_ARCHS names the GPUs
set -euo pipefail
cd "$(dirname "$0")/.."

refuse() {
    echo "setup: $1" >&2
    exit 1
}

# One hash of some words and of every file under some paths.
fingerprint() {
    local words=$1
    shift
    {
        echo "$PWD $words"
        for path in "$@"; do
            [ ! -e "$path" ] || find "$path" -type f -exec cksum {} +
        done
    } | sort | cksum
}

fresh() { [ "$(cat "$stamps/$1" 2>/dev/null)" = "$2" ]; }

ticker=
stop_ticker() {
    [ -z "$ticker" ] || { kill "$ticker" && wait "$ticker"; } 2>/dev/null || true
    ticker=
}
trap stop_ticker EXIT
trap 'echo; echo "setup: interrupted; run make again to go on" >&2; exit 130' INT

# phase <what> <command...>: one line with the seconds it took; the command's output is logged.
phase() {
    local what=$1 start=$SECONDS status=0
    shift
    echo "--- $what: $*" >>"$log"
    if [ -t 1 ]; then
        (while printf '\rsetup: %s ... %d s ' "$what" $((SECONDS - start)); do sleep 1; done) &
        ticker=$!
    else
        echo "setup: $what ..."
    fi
    "$@" >>"$log" 2>&1 </dev/null || status=$?
    [ ! -t 1 ] || printf '\r\033[K'
    stop_ticker
    if [ "$status" -ne 0 ]; then
        tail -n 25 "$log" >&2
        refuse "$what failed after $((SECONDS - start)) s; the whole output is in $log"
    fi
    echo "setup: $what: $((SECONDS - start)) s"
}

usable() { "$1" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; }

find_python() {
    local name found=
    for name in python3 python3.13 python3.12 python3.11; do
        if usable "$name"; then
            echo "$name"
            return
        fi
        found=${found:-$("$name" --version 2>/dev/null || true)}
    done
    refuse "found ${found:-no Python}, expected 3.11 or newer; install python3.11, its venv and dev packages, then run make again"
}

check_python() {
    "$1" -c 'import ensurepip, venv' 2>/dev/null ||
        refuse "$1 cannot make virtual environments; install its venv package (python3-venv), then run make again"
    [ -e "$("$1" -c 'import sysconfig; print(sysconfig.get_path("include"))')/Python.h" ] ||
        refuse "$1 has no C headers (Python.h); install its dev package (python3-dev), then run make again"
}

# CXX may carry a launcher or flags ("ccache g++"), so it is split into words.
# shellcheck disable=SC2086
compiles() { $1 -std=c++17 -x c++ - -o /dev/null 2>/dev/null <<<'int main() {}'; }

check_compiler() {
    if [ -n "${CXX:-}" ]; then
        compiles "$CXX" || refuse "CXX=$CXX does not compile C++17; unset it or name a compiler that does"
    else
        compiles g++ || compiles clang++ ||
            refuse "no C++17 compiler found (tried g++ and clang++); install g++, then run make again"
    fi
}

check_space() {
    local free=$(($(df -Pk . | awk 'NR == 2 { print $4 }') / 1024))
    [ "$free" -ge "$1" ] ||
        refuse "$free MiB free under $PWD, about $1 MiB needed; free some space, then run make again"
}

make_venv() {
    local base
    base=$(find_python)
    check_python "$base"
    check_compiler
    check_space 6000
    echo "setup: making .venv with $("$base" --version)"
    rm -rf .venv
    "$base" -m venv .venv
    mkdir -p "$stamps"
    echo "$PWD" >"$stamps/home" # a .venv does not survive a move
}

pip() { "$python" -m pip --disable-pip-version-check --no-input "$@"; }

# shellcheck disable=SC2086
requirements() { "$python" tools/requirements.py $1; }

install_libraries() {
    local needed=$stamps/requirements.txt
    requirements "$1" >"$needed"
    phase "installing torch" pip install \
        ${VIDGEN_TORCH_INDEX:+--index-url "$VIDGEN_TORCH_INDEX"} "$(grep '^torch\b' "$needed")"
    phase "installing libraries ($1)" pip install -r "$needed"
}

declare -A extras=([run]="video train" [dev]="dev") # dev holds all that run does
wanted=${1:-}
[ -n "${wanted:+${extras[$wanted]:-}}" ] || {
    echo "usage: tools/bootstrap.sh run|dev" >&2
    exit 2
}

if [ -n "${VIDGEN_PYTHON:-}" ]; then
    python=$VIDGEN_PYTHON stamps=build/stamps log=build/bootstrap.log
    usable "$python" || refuse "VIDGEN_PYTHON=$python does not run, or is older than Python 3.11"
    mkdir -p "$stamps"
    install=(pip install --no-deps --no-build-isolation -e .)
else
    python=.venv/bin/python stamps=.venv/stamps log=.venv/bootstrap.log
    [ "$(cat $stamps/home 2>/dev/null)" = "$PWD" ] && usable $python || make_venv
    install=(pip install --no-deps -e .)
    if ! fresh dev "$(requirements "${extras[dev]}")" &&
        ! fresh "$wanted" "$(requirements "${extras[$wanted]}")"; then
        install_libraries "${extras[$wanted]}"
        requirements "${extras[$wanted]}" >"$stamps/$wanted"
    fi
fi

# Of the CPU, what decides which kernels are built.
cpu=$(grep -m 1 ^flags /proc/cpuinfo 2>/dev/null | grep -owE 'avx2|avx512bw|avx512_bf16' | xargs || true)
gpu=$(nvidia-smi -L 2>/dev/null | head -n 1 || true)
sources=$(fingerprint "$python ${CXX:-} $cpu ${VIDGEN_CPU_VARIANTS:-} ${VIDGEN_CUDA:-} ${VIDGEN_CUDA_ARCHS:-} ${CUDA_HOME:-} $(command -v nvcc || true) $gpu" \
    pyproject.toml setup.py CMakeLists.txt csrc)
if ! fresh built "$sources"; then
    check_compiler
    phase "building vidgen" "${install[@]}"
    echo "$sources" >"$stamps/built"
fi
