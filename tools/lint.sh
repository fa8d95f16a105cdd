#!/usr/bin/env bash
# Checks the style of every file (`check`), or rewrites what a tool can rewrite (`fix`). All checks
# run even when one fails, so one call shows everything. PY names the interpreter to use.
set -uo pipefail
cd "$(dirname "$0")/.."
PY=${PY:-.venv/bin/python}
PATH=$(dirname "$(command -v "$PY")"):$PATH # clang-format lives beside the interpreter

failed=()
run() {
    local name=$1
    shift
    echo "lint: $name"
    "$@" || failed+=("$name")
}

sources=()
for folder in csrc tests/cpp tests/cuda_emulator; do
    [ ! -d "$folder" ] || while IFS= read -r file; do sources+=("$file"); done < <(
        find "$folder" -name '*.h' -o -name '*.cpp' -o -name '*.cu' -o -name '*.cuh'
    )
done

case "${1:-}" in
    check)
        run "ruff check" "$PY" -m ruff check .
        run "ruff format" "$PY" -m ruff format --check .
        run "mypy" "$PY" -m mypy
        [ ${#sources[@]} -eq 0 ] || run "clang-format" clang-format --dry-run -Werror "${sources[@]}"
        ;;
    fix)
        run "ruff check" "$PY" -m ruff check --fix .
        run "ruff format" "$PY" -m ruff format .
        [ ${#sources[@]} -eq 0 ] || run "clang-format" clang-format -i "${sources[@]}"
        ;;
    *)
        echo "usage: tools/lint.sh check|fix" >&2
        exit 2
        ;;
esac

if [ ${#failed[@]} -gt 0 ]; then
    printf 'lint: failed: %s\n' "${failed[@]}" >&2
    exit 1
fi
