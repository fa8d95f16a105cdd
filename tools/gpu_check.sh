#!/usr/bin/env bash
# On a machine with an NVIDIA GPU and nvcc: builds for CUDA, runs the tests marked `gpu`, then the
# benchmarks, whose results go to profiles/results/<machine>/. Every part runs, then the verdict.
set -euo pipefail
cd "$(dirname "$0")/.."

refuse() {
    echo "gpu-check: $1" >&2
    exit 1
}

gpu=$(nvidia-smi --query-gpu=name --format=csv,noheader 2>/dev/null | head -n 1) || true
[ -n "$gpu" ] || refuse "no NVIDIA GPU is visible here (nvidia-smi names none), so nothing was checked"
command -v nvcc "${CUDA_HOME:-/usr/local/cuda}/bin/nvcc" >/dev/null ||
    refuse "found $gpu but no nvcc; install the CUDA toolkit or set CUDA_HOME, then run make gpu-check again"

export VIDGEN_CUDA=1 # a build without CUDA would pass for the wrong reason
tools/bootstrap.sh dev
python=${VIDGEN_PYTHON:-.venv/bin/python}
"$python" -c 'import sys, torch; sys.exit(not torch.cuda.is_available())' ||
    refuse "$gpu is there but torch does not see it; install a CUDA build (VIDGEN_TORCH_INDEX names an index that has one)"

machine=$(tr '[:upper:] ' '[:lower:]-' <<<"$gpu")
results=profiles/results/$machine
mkdir -p "$results"

failed=()
part() {
    local name=$1 start=$SECONDS verdict=ok
    shift
    echo "=== $name"
    "$@" </dev/null || { verdict=FAILED && failed+=("$name"); }
    echo "=== $name: $verdict, $((SECONDS - start)) s"
}

part "tests that need a GPU" "$python" -m pytest -m gpu -n 0 tests
part "the ops beside a copy and their peers" "$python" benchmarks/bench_ops.py \
    --tokens 8960 76544 --dtype bfloat16 --rounds 5 --choose
part "loading 7.6 GB of weights" "$python" benchmarks/bench_load.py --depth 6 --single 12 --rounds 1
part "copies through lanes" "$python" benchmarks/bench_lane.py --rounds 5
part "activation offload, 6 blocks" "$python" benchmarks/bench_offload.py --short
part "loading clips" "$python" benchmarks/bench_loader.py
part "checkpoints of 4 GB" "$python" benchmarks/bench_checkpoint.py --gb 4 --rounds 2
part "forward and backward of stage 1" "$python" -m vidgen bench mfu recipes/stage1.yaml \
    --bucket "256px x 1" --bucket "256px x 33" --bucket "256px x 129" --repeats 2 \
    --out "$results/mfu_stage1.json"
part "one rank's part of stage 3" "$python" -m vidgen bench mfu recipes/stage3.yaml \
    --bucket "768px x 129" --repeats 1 --out "$results/mfu_stage3.json"
part "what takes the time of a block" "$python" -m vidgen bench step recipes/stage1.yaml \
    --bucket "256px x 129" --out "$results/step_stage1.json"
part "attention on $gpu" "$python" benchmarks/attention/bench_attention.py --short \
    --out "$results/attention.json"
part "one pass of sampling, and within 24 GB" "$python" benchmarks/bench_sampling.py \
    --shapes 256px --rounds 2
part "encoding and decoding with the Video DC-AE" "$python" benchmarks/bench_dcae.py --short
part "the generator with the Video DC-AE's latents" "$python" -m vidgen bench dcae \
    recipes/stage3.yaml --bucket "768px x 129" --batch 1 --repeats 1 \
    --out "$results/speedup_dcae.json"
part "a ring of simulated ranks beside one kernel" "$python" benchmarks/parallel/bench_ring.py \
    --tokens 76544 --parts 4 --rounds 2 --out "$results/parallel_ring.json"
part "what this machine is" "$python" -m vidgen doctor

"$python" tools/performance.py "$results" # every table, and README's section on performance

[ ${#failed[@]} -eq 0 ] || refuse "failed after $SECONDS s: ${failed[*]}"
echo "gpu-check: all passed in $SECONDS s; results are in $results"
