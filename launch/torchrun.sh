#!/usr/bin/env bash
# One machine: one process per GPU, restarted from the newest checkpoint when one is lost.
#
#   launch/torchrun.sh recipes/stage1.yaml data.manifest=clips.parquet
#
# GPUS: number of GPUs (all). RESTARTS: maximum number of restarts (10).
set -euo pipefail
cd "$(dirname "$0")/.."

[ $# -ge 1 ] || {
    echo "launch/torchrun.sh: no recipe; type: launch/torchrun.sh recipes/stage1.yaml" >&2
    exit 2
}
exec torchrun --nproc-per-node "${GPUS:-gpu}" --max-restarts "${RESTARTS:-10}" \
    -m vidgen train "$@"
