"""Installs, from a folder of wheels, the packages that this environment lacks. No network.

python tools/gpu_check/wheels.py FOLDER
"""

import importlib.metadata
import subprocess
import sys
from pathlib import Path


def missing(folder: Path) -> list[Path]:
    """What is installed stays as it is: the machine's torch is the one to measure."""
    found = []
    for wheel in sorted(folder.glob("*.whl")):
        try:
            importlib.metadata.version(wheel.name.split("-")[0])
        except importlib.metadata.PackageNotFoundError:
            found.append(wheel)
    return found


def main() -> None:
    folder = Path(sys.argv[1])
    if not any(folder.glob("*.whl")):
        raise SystemExit(
            f"gpu-check: VIDGEN_WHEELS={folder} holds no wheels; fill it on a machine with a "
            "network: pip download -d DIR pydantic pyyaml tqdm safetensors av pyarrow pytest "
            "hypothesis"
        )
    wheels = missing(folder)
    print(f"gpu-check: from {folder}: {', '.join(w.name for w in wheels) or 'nothing is missing'}")
    if wheels:
        pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "--no-input"]
        command = [*pip, "install", "--no-index", "--no-deps", *map(str, wheels)]
        sys.exit(subprocess.run(command).returncode)


if __name__ == "__main__":
    main()
