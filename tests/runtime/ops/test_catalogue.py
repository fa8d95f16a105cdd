"""An op that lacks one of its places fails here, and CONTRIBUTING lists exactly these places."""

import re
from collections.abc import Callable
from pathlib import Path

import pytest

from vidgen.bench.cases import CASES
from vidgen.runtime import native, ops
from vidgen.runtime.ops.catalogue import OPS, kernels

ROOT = Path(__file__).resolve().parents[3]
ATTENTION = {"attention_forward", "attention_backward"}  # it has a table of backends of its own
HEADER = "csrc/include/vidgen/ops.h"


def text(path: str) -> str:
    file = ROOT / path
    return file.read_text("utf-8") if file.is_file() else ""


def listed() -> dict[str, str]:
    """Every kernel of VIDGEN_FOR_EACH_KERNEL with its argument struct."""
    return dict(re.findall(r"^  X\((\w+), (\w+)\)", text(HEADER), re.MULTILINE))


def lists_its_kernels(op: str) -> bool:
    return set(kernels(op)) <= set(listed())


def checks_its_arguments(op: str) -> bool:
    checks = text("csrc/host/check_ops.cpp") + text("csrc/host/check_attention.cpp")
    return all(f"void check(const {listed().get(k)}& " in checks for k in kernels(op))


def is_in_each(*paths: str) -> Callable[[str], bool]:
    """Whether every kernel is called somewhere in these files."""
    return lambda op: all(
        re.search(rf"\b{kernel}\b", "".join(text(path) for path in paths)) for kernel in kernels(op)
    )


def has(path: str, *words: str) -> Callable[[str], bool]:
    def found(op: str) -> bool:
        here = text(path.replace("<op>", op))
        return bool(here) and all(word.replace("<op>", op) in here for word in words)

    return found


# What CONTRIBUTING names, and whether an op has it there.
PLACES: dict[str, Callable[[str], bool]] = {
    "vidgen/runtime/ops/catalogue.py": lambda op: op in OPS,
    "vidgen/runtime/ops/<op>.py": has("vidgen/runtime/ops/<op>.py", "def <op>(", "def reference("),
    "vidgen/runtime/ops/__init__.py": lambda op: op in ops.__all__ and callable(getattr(ops, op)),
    "tests/runtime/ops/test_<op>.py": has("tests/runtime/ops/test_<op>.py", "def test_", "<op>"),
    "vidgen/bench/cases.py": lambda op: op in CASES,
}
# Of an op with kernels of its own.
KERNEL_PLACES: dict[str, Callable[[str], bool]] = {
    HEADER: lists_its_kernels,
    "csrc/host/check_ops.cpp": checks_its_arguments,
    "csrc/cpu/<op>.cpp": has("csrc/cpu/<op>.cpp", "<op>_forward("),
    "csrc/cuda/<op>.cu": has("csrc/cuda/<op>.cu", "<op>_forward("),
    "vidgen/runtime/ops/triton/<op>.py": lambda op: (
        has("vidgen/runtime/ops/triton/<op>.py", "def forward(")(op) == OPS[op].triton
    ),
    "tests/cpp/test_kernels.cpp": is_in_each(
        "tests/cpp/test_kernels.cpp", "tests/cpp/test_attention.cpp"
    ),
    "tests/cuda_emulator/test_ops.py": is_in_each(
        "tests/cuda_emulator/test_ops.py", "tests/cuda_emulator/test_attention.py"
    ),
}


@pytest.mark.parametrize("op", OPS)
def test_an_op_has_all_of_its_places(op: str) -> None:
    places = PLACES if OPS[op].made_of else PLACES | KERNEL_PLACES
    lacking = [place.replace("<op>", op) for place, has_it in places.items() if not has_it(op)]
    assert not lacking, f"{op} lacks its part of {lacking}; CONTRIBUTING says what belongs there"


def test_the_places_are_told_apart() -> None:
    """An op that is nowhere has none of them."""
    OPS["nowhere"] = OPS["modulate"]
    try:
        found = [place for place, has_it in (PLACES | KERNEL_PLACES).items() if has_it("nowhere")]
    finally:
        del OPS["nowhere"]
    assert found == ["vidgen/runtime/ops/catalogue.py"]


def test_every_kernel_belongs_to_an_op() -> None:
    mine = {kernel for op in OPS for kernel in kernels(op)}
    assert mine | ATTENTION == set(listed())


@pytest.mark.skipif(native.load() is None, reason=native.reason())
def test_the_built_module_has_exactly_these_kernels() -> None:
    built = {name for name in dir(native.require().cpu) if not name.startswith("_")}
    assert built == set(listed())


def test_every_case_is_of_an_op() -> None:
    assert set(CASES) == set(OPS)


def test_contributing_lists_exactly_these_places() -> None:
    section = text("CONTRIBUTING.md").partition("## Adding an op\n")[2].partition("\n## ")[0]
    steps = re.findall(r"^- `([^`]+)`", section, re.MULTILINE)
    assert steps == [*PLACES, *KERNEL_PLACES]
