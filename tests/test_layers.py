"""The layers of the design hold: nothing imports upwards, no torch in csrc, no shell-outs."""

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = ROOT / "vidgen"

# For each folder of the package, what else it may import. "base" is the modules in no folder, which
# lie below everything.
RUNTIME = {"demo", "metrics", "page", "runtime", "base"}
MODELS = {"models", "diffusion"} | RUNTIME
RECIPE = {"recipe", "accelerate", "data"} | MODELS
MAY_IMPORT = {
    "cli": {"serve", "train", "sample", "curate", "evaluate", "plan", "bench"} | RECIPE,
    "serve": {"sample", "evaluate", "plan"} | RECIPE,
    "bench": {"train", "sample", "plan"} | RECIPE,
    "train": {"sample", "plan"} | RECIPE,
    "evaluate": {"sample"} | RECIPE,
    "curate": RECIPE,
    "sample": RECIPE,
    "plan": RECIPE,
    "recipe": RECIPE,
    "accelerate": MODELS,
    "data": MODELS,
    "models": RUNTIME,
    "diffusion": RUNTIME,
    "metrics": {"runtime", "base"},
    "page": {"metrics", "runtime", "base"},
    "runtime": {"base"},
    "demo": {"base"},
    "base": set(),
}
# Protocols without an implementation: diffusion works with any autoencoder and imports none. And
# the sizes of an autoencoder's latents, which need no model.
INTERFACES = {
    "vidgen.models.autoencoder",
    "vidgen.models.geometry",
    "vidgen.models.text.encoder",
}

# Files that may start another program, and why no library call does.
SHELL_OUTS: dict[str, str] = {
    "vidgen/runtime/loader/processes.py": "workers without torch, or the locks a fork would copy",
    "vidgen/cli/quickstart.py": "kills a training process and starts it again, as a crash would",
    "vidgen/train/supervise/supervision.py": "the watchdog must outlive the ranks it ends",
}
STARTERS = {"os.system", "os.popen", "os.fork", "pty.spawn"}
STARTER_PREFIXES = ("subprocess", "os.exec", "os.spawn", "os.posix_spawn", "pty")

SOURCE_LINES = 450  # a file that cannot be taken in at one sitting is two files
SOURCES = {".py", ".h", ".cpp", ".cu", ".cuh", ".sh"}
SOURCE_FOLDERS = ("vidgen", "csrc", "tests", "benchmarks", "tools")


def modules() -> list[Path]:
    return sorted(PACKAGE.rglob("*.py"))


def part_of(module: str) -> str:
    """`vidgen.recipe.schema` is of "train"; `vidgen.errors` is of "base"."""
    part = module.split(".")[1] if "." in module else ""
    if part == "__main__":
        return "cli"
    return part if part in MAY_IMPORT else "base"


def module_name(path: Path, root: Path = ROOT) -> str:
    parts = path.relative_to(root).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def imported(source: str, module: str, is_package: bool) -> Iterator[str]:
    """Every module a source imports, wherever in the file; relative imports made absolute."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                parents = module.split(".")
                parents = parents[: len(parents) - node.level + is_package]
                base = ".".join([*parents, base]).rstrip(".")
            if base == "vidgen":
                yield from (f"vidgen.{alias.name}" for alias in node.names)
            else:
                yield base


def upward(source: str, module: str, is_package: bool = False) -> list[str]:
    """The imports of a module that its layer does not allow."""
    here = part_of(module)
    return [
        name
        for name in imported(source, module, is_package)
        if name.split(".")[0] == "vidgen"
        and part_of(name) not in MAY_IMPORT[here] | {here}
        and not name.startswith("vidgen.__")
        and not (here == "diffusion" and name in INTERFACES)
    ]


def dotted(node: ast.expr) -> str:
    """`os.path.join` of the expression that says so, "" of any other expression."""
    if isinstance(node, ast.Name):
        return node.id
    if isinstance(node, ast.Attribute) and (base := dotted(node.value)):
        return f"{base}.{node.attr}"
    return ""


def starts_programs(source: str) -> list[str]:
    found = [name for name in imported(source, "", False) if name in {"subprocess", "pty"}]
    for node in ast.walk(ast.parse(source)):
        name = dotted(node) if isinstance(node, ast.Attribute) else ""
        if isinstance(node, ast.ImportFrom) and node.module == "os":
            found += [f"os.{a.name}" for a in node.names if f"os.{a.name}" in STARTERS]
        if name in STARTERS or name.startswith(STARTER_PREFIXES):
            found.append(name)
    return found


@pytest.mark.parametrize("path", modules(), ids=module_name)
def test_nothing_points_up(path: Path) -> None:
    module = module_name(path)
    wrong = upward(path.read_text("utf-8"), module, path.name == "__init__.py")
    allowed = ", ".join(sorted(MAY_IMPORT[part_of(module)]))
    assert not wrong, f"{module} imports {wrong}; its layer may import {allowed or 'nothing'}"


def test_every_folder_has_a_layer() -> None:
    folders = {path.parent.name for path in PACKAGE.glob("*/__init__.py")}
    assert folders <= set(MAY_IMPORT), "give a new folder of vidgen/ its place in MAY_IMPORT"


@pytest.mark.parametrize(
    ("source", "module", "wrong"),
    [
        ("from vidgen.train import Trainer", "vidgen.runtime.ops.modulate", ["vidgen.train"]),
        ("def f():\n    import vidgen.cli.main", "vidgen.train.trainer", ["vidgen.cli.main"]),
        ("from vidgen import sample", "vidgen.data.read.video", ["vidgen.sample"]),
        ("from ...data import video", "vidgen.runtime.loader.ring", ["vidgen.data"]),
        ("from vidgen.models.mmdit import MMDiT", "vidgen.diffusion.flow", ["vidgen.models.mmdit"]),
        ("from vidgen.models.autoencoder import Autoencoder", "vidgen.diffusion.conditions", []),
        (
            "from vidgen.models.autoencoder import Autoencoder",
            "vidgen.runtime.x",
            ["vidgen.models.autoencoder"],
        ),
        ("from vidgen.runtime import ops", "vidgen.errors", ["vidgen.runtime"]),
        ("from vidgen.data import Batch\nfrom vidgen import runtime", "vidgen.train.trainer", []),
        ("from .config import MMDiTConfig", "vidgen.models.mmdit.model", []),
    ],
)
def test_the_rule_tells_up_from_down(source: str, module: str, wrong: list[str]) -> None:
    assert upward(source, module) == wrong


def test_csrc_includes_no_torch_header() -> None:
    torch = re.compile(r'#\s*include\s*[<"](torch|ATen|c10|caffe2)[/"]')
    assert torch.search("#include <torch/extension.h>")
    files = [p for p in (ROOT / "csrc").rglob("*") if p.suffix in SOURCES]
    assert files, "csrc/ has sources"
    wrong = [str(p.relative_to(ROOT)) for p in files if torch.search(p.read_text("utf-8"))]
    assert not wrong, f"csrc takes pointers, sizes and streams, not tensors: {wrong}"


def test_python_headers_stay_in_the_bindings() -> None:
    python = re.compile(r'#\s*include\s*[<"](pybind11/|Python\.h)')
    wrong = [
        str(p.relative_to(ROOT))
        for p in (ROOT / "csrc").rglob("*")
        if p.suffix in SOURCES and "bind" not in p.parts and python.search(p.read_text("utf-8"))
    ]
    assert not wrong, f"only csrc/bind knows Python: {wrong}"


def test_no_other_program_is_started() -> None:
    assert starts_programs("import os\nos.system('ls')") == ["os.system"]
    assert starts_programs("from os import popen") == ["os.popen"]
    assert starts_programs("def f():\n    import subprocess") == ["subprocess"]
    found = {
        str(path.relative_to(ROOT))
        for path in modules()
        if starts_programs(path.read_text("utf-8"))
    }
    assert found - set(SHELL_OUTS) == set(), "call a library, or add the file with its reason"
    assert set(SHELL_OUTS) - found == set(), "these files start no program any more"


def test_no_source_is_longer_than_one_sitting() -> None:
    files = [
        path
        for folder in SOURCE_FOLDERS
        for path in (ROOT / folder).rglob("*")
        if path.suffix in SOURCES
    ]
    lines = {str(p.relative_to(ROOT)): len(p.read_text("utf-8").splitlines()) for p in files}
    long = {name: count for name, count in lines.items() if count > SOURCE_LINES}
    assert not long, f"over {SOURCE_LINES} lines; would two files, one idea each, read better?"
