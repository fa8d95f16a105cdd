#!/usr/bin/env bash
# On a machine with an NVIDIA GPU and nvcc: builds for CUDA, runs the tests marked `gpu`, then the
# benchmarks, whose results go to profiles/results/<machine>/. Each part has a time of its own and all
# of them VIDGEN_GPU_CHECK_SECONDS; what runs out is ended and said to be cut. Then the verdict.
set -euo pipefail
cd "$(dirname "$0")/.."

total=${VIDGEN_GPU_CHECK_SECONDS:-470} # of the whole check, set-up included

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

failed=() cut=() rows=()
# part SECONDS NAME COMMAND...: ended after so long, or when the whole check's time is over.
part() {
    local most=$1 name=$2 start=$SECONDS status=0 verdict=ok
    shift 2
    local left=$((total - SECONDS))
    if ((left < 1)); then
        cut+=("$name")
        rows+=("$name|0|$most|cut: no time was left")
        return
    fi
    ((most <= left)) || most=$left
    echo "=== $name (at most $most s)"
    timeout --signal=INT --kill-after=10 "$most" "$@" </dev/null || status=$?
    if ((status == 124 || status == 137)); then
        verdict="cut after $most s" && cut+=("$name")
    elif ((status)); then
        verdict="FAILED ($status)" && failed+=("$name")
    fi
    rows+=("$name|$((SECONDS - start))|$most|$verdict")
    echo "=== $name: $verdict, $((SECONDS - start)) s"
}

rows+=("set-up and build|$SECONDS||ok")
part 150 "tests that need a GPU" "$python" -m pytest -m gpu -n 0 tests
part 80 "forward and backward of stage 1" "$python" -m vidgen bench mfu recipes/stage1.yaml \
    --bucket "256px x 1" --bucket "256px x 33" --bucket "256px x 129" --repeats 2 \
    --out "$results/mfu_stage1.json"
part 70 "one rank's part of stage 3" "$python" -m vidgen bench mfu recipes/stage3.yaml \
    --bucket "768px x 129" --repeats 1 --out "$results/mfu_stage3.json"
part 20 "what takes the time of a block" "$python" -m vidgen bench step recipes/stage1.yaml \
    --bucket "256px x 129" --out "$results/step_stage1.json"
part 40 "attention on $gpu" "$python" benchmarks/attention/bench_attention.py --short \
    --out "$results/attention.json"
part 45 "the ops beside a copy and their peers" "$python" -m vidgen bench ops \
    --tokens 8960 76544 --peer eager torch.compile --repeats 5 --out "$results/ops.json"
part 15 "an optimizer step" "$python" benchmarks/bench_optim.py --rounds 5
part 40 "activation offload, 6 blocks" "$python" benchmarks/bench_offload.py --short
part 40 "one pass of sampling, and within 24 GB" "$python" benchmarks/bench_sampling.py \
    --shapes 256px --rounds 2
part 60 "encoding and decoding with the Video DC-AE" "$python" benchmarks/bench_dcae.py --short
part 60 "the generator with the Video DC-AE's latents" "$python" -m vidgen bench dcae \
    recipes/stage3.yaml --bucket "768px x 129" --batch 1 --repeats 1 \
    --out "$results/speedup_dcae.json"
part 25 "a ring of simulated ranks beside one kernel" "$python" benchmarks/parallel/bench_ring.py \
    --tokens 76544 --parts 4 --rounds 2 --out "$results/parallel_ring.json"
part 30 "loading 7.6 GB of weights" "$python" benchmarks/bench_load.py \
    --depth 6 --single 12 --rounds 1
part 20 "copies through lanes" "$python" benchmarks/bench_lane.py --rounds 5
part 60 "loading clips" "$python" benchmarks/bench_loader.py --frames 33 --peers vidgen DataLoader
part 25 "filling the latent cache" "$python" benchmarks/bench_encode.py --clips 16
part 30 "checkpoints of 4 GB" "$python" benchmarks/bench_checkpoint.py --gb 4 --rounds 2
part 20 "what this machine is" "$python" -m vidgen doctor

"$python" tools/performance.py "$results" # every table, and README's section on performance

echo
printf '%-46s %6s %6s  %s\n' "part" "s" "of" ""
for row in "${rows[@]}"; do
    IFS='|' read -r name took most verdict <<<"$row"
    printf '%-46s %6s %6s  %s\n' "$name" "$took" "$most" "$verdict"
done
listed() { printf '%s; ' "$@" | sed 's/; $//'; }
[ ${#failed[@]} -eq 0 ] || refuse "failed after $SECONDS s: $(listed "${failed[@]}")"
if [ ${#cut[@]} -gt 0 ]; then
    echo "gpu-check: nothing failed, but these were cut and say nothing: $(listed "${cut[@]}"); with" \
        "more time: VIDGEN_GPU_CHECK_SECONDS=1200 make gpu-check" >&2
    exit 3
fi
echo "gpu-check: all passed in $SECONDS s; results are in $results"
