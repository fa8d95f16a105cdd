"""The stages of `make gpu-check`, then the tables, an archive of everything, and the verdict.

python tools/gpu_check [--dry] [--only smoke,mfu] [--resume] [--elapsed S] [--folder DIR]

Exit status: 0 all passed, 1 something failed, 3 nothing failed but something was cut.
"""

import argparse
import os
import re
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path

from runner import CUT, FAILED, ROOT, Folder, Outcome, Runner, machine
from stages import ARCHITECTURES, STAGES, TOTAL_S, VERDICT_S, named


def main() -> int:
    parser = argparse.ArgumentParser(prog="gpu-check", description=__doc__.splitlines()[0])
    parser.add_argument("--dry", action="store_true", help="small sizes on the CPU")
    parser.add_argument("--only", default="", help="names of stages, with commas or spaces between")
    parser.add_argument("--resume", action="store_true", help="leave out what has passed")
    parser.add_argument("--elapsed", type=float, default=0.0, help="seconds of the set-up")
    parser.add_argument("--folder", type=Path, help="for logs, archive and, when dry, results")
    parser.add_argument("--python", default=sys.executable, help=argparse.SUPPRESS)
    args = parser.parse_args()

    began = time.monotonic() - args.elapsed
    default = 1800 if args.dry else TOTAL_S
    total = float(os.environ.get("VIDGEN_GPU_CHECK_SECONDS") or default)
    about = machine()
    name = "dry" if args.dry else slug(str((about["gpus"] or ["gpu"])[0]).split(",")[0])  # type: ignore[index]
    path = (args.folder or ROOT / "build/gpu-check").resolve() / name
    rows = path / "results" / name if args.dry or args.folder else ROOT / "profiles/results" / name
    folder = Folder(path, rows)
    path.mkdir(parents=True, exist_ok=True)
    rows.mkdir(parents=True, exist_ok=True)
    passed = folder.passed(str(about["commit"])) if args.resume else set()
    folder.note(about)

    for number in (signal.SIGINT, signal.SIGTERM):  # also where the parent ignores SIGINT
        signal.signal(number, signal.default_int_handler)
    chosen = named(re.findall(r"[\w-]+", args.only)) if args.only else STAGES
    runner = Runner(
        folder,
        lambda: total - VERDICT_S - (time.monotonic() - began),
        dry=args.dry,
        python=tuple(shlex.split(args.python)),
    )
    print(architecture(about))
    runner.run(chosen, passed)
    if why := tables(folder, write_readme=rows.is_relative_to(ROOT / "profiles")):
        runner.outcomes.append(Outcome("tables", FAILED, why, 0.0, VERDICT_S, []))
    text = verdict_table(runner.outcomes)
    (path / "verdict.txt").write_text(text + "\n")
    folder.pack()
    print(f"\n{text}\ngpu-check: everything is in {shown(folder.archive)}")
    return verdict(runner, time.monotonic() - began)


def slug(words: str) -> str:
    """As vidgen/runtime/observe/results.py names a machine's folder."""
    return "-".join(re.findall(r"[a-z0-9.]+", words.lower()))


def shown(path: Path) -> str:
    return str(path.relative_to(ROOT)) if path.is_relative_to(ROOT) else str(path)


def architecture(about: dict[str, object]) -> str:
    """Of this machine's GPU: what is known of its architecture."""
    gpus = about["gpus"]
    if not isinstance(gpus, list) or not gpus:
        return "no GPU: small sizes on the CPU"
    capability = gpus[0].split(",")[3].strip().replace(".", "")
    for name, (_, compiled) in ARCHITECTURES.items():
        if name.rstrip("a") == capability:
            known = "compiled" if compiled else "not compiled"
            return f"{gpus[0]}: sm_{name}, {known} by tools/compile_cuda.sh"
    return f"{gpus[0]}: sm_{capability} is in no table of docs/install.md"


def tables(folder: Folder, *, write_readme: bool) -> str:
    """The rows of every suite, and the README's table; why it failed, if it did."""
    program = str(ROOT / "tools/performance.py")
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    said = []
    commands = [[program, "--table", str(folder.rows.parent)]]
    if write_readme:
        commands.append([program, str(folder.rows)])
    for words in commands:
        try:
            done = subprocess.run(
                [sys.executable, *words],
                cwd=ROOT,
                env=environment,
                capture_output=True,
                text=True,
                timeout=60,
            )
        except subprocess.TimeoutExpired:
            return "performance.py took more than 60 s"
        if done.returncode:
            print(done.stderr, file=sys.stderr)
            return f"performance.py: {done.stderr.strip().rpartition(chr(10))[2]}"
        said.append(done.stdout)
        print(done.stdout)
    (folder.path / "table.md").write_text(said[0])
    return ""


def verdict_table(outcomes: list[Outcome]) -> str:
    lines = [f"{'stage':<14} {'s':>6} {'of':>6}"]
    lines += [f"{o.stage:<14} {o.seconds:>6.0f} {o.limit:>6.0f}  {o.said}" for o in outcomes]
    return "\n".join(lines)


def verdict(runner: Runner, seconds: float) -> int:
    failed = [o.stage for o in runner.outcomes if o.verdict == FAILED]
    cut = [o.stage for o in runner.outcomes if o.verdict == CUT]
    if failed:
        print(f"gpu-check: failed after {seconds:.0f} s: {', '.join(failed)}", file=sys.stderr)
        return 1
    if cut:
        print(
            f"gpu-check: nothing failed in {seconds:.0f} s, but these were cut and say nothing: "
            f"{', '.join(cut)}; to go on: make gpu-check RESUME=1",
            file=sys.stderr,
        )
        return 130 if runner.interrupted else 3
    print(f"gpu-check: all passed in {seconds:.0f} s")
    return 0


if __name__ == "__main__":
    sys.exit(main())
