#!/usr/bin/env bash
# Repeats the tests of copies, checkpoints, loader processes, crashes, recovery and damaged files, each round with
# another seed, until SOAK_SECONDS (3600) are over. The first failure ends it and names the seed.
# Arguments go to pytest; PY names the interpreter to use.
set -euo pipefail
cd "$(dirname "$0")/.."

tests=(
    tests/runtime/memory tests/runtime/checkpoint tests/runtime/loader tests/runtime/parallel
    tests/robustness tests/train/supervise tests/train/test_resume.py tests/train/test_trainer_signals.py
)
seed=${VIDGEN_TEST_SEED:-$RANDOM} rounds=0
while [ "$SECONDS" -lt "${SOAK_SECONDS:-3600}" ]; do
    echo "=== round $((rounds + 1)), seed $seed"
    OMP_NUM_THREADS=1 VIDGEN_TEST_SEED=$seed VIDGEN_TRIALS=20 "${PY:-.venv/bin/python}" -m pytest -x -n auto \
        --maxprocesses 8 --dist loadfile -m "not long" --hypothesis-profile=soak \
        --hypothesis-seed="$seed" "$@" "${tests[@]}" || {
        echo "soak: round $((rounds + 1)) failed; to repeat it: VIDGEN_TEST_SEED=$seed make soak" >&2
        exit 1
    }
    seed=$((seed + 1)) rounds=$((rounds + 1))
done
echo "=== $rounds rounds passed in $SECONDS s"
