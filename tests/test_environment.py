"""docs/environment.md lists exactly the VIDGEN_* variables that something reads."""

import re
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
DOCUMENT = ROOT / "docs" / "environment.md"
FOLDERS = ("vidgen", "csrc", "tests", "benchmarks", "tools", "launch")
READS = {
    # A whole string: CMake's options and C macros of such names are none.
    ".py": r"""["'](VIDGEN_[A-Z0-9_]+)["']""",
    ".cpp": r'getenv\("(VIDGEN_[A-Z0-9_]+)"\)',
    ".sh": r"\$\{?(VIDGEN_[A-Z0-9_]+)|^(VIDGEN_[A-Z0-9_]+)=",
    "": r"\$\((?:or \$\()?(VIDGEN_[A-Z0-9_]+)",  # the Makefile
}


def variables(text: str, suffix: str) -> set[str]:
    found = re.findall(READS[suffix], text, flags=re.M)
    return {name for match in found for name in ([match] if isinstance(match, str) else match)} - {
        ""
    }


def sources() -> Iterator[Path]:
    yield from (ROOT / "setup.py", ROOT / "Makefile")
    for folder in FOLDERS:
        yield from (p for p in (ROOT / folder).rglob("*") if p.suffix in READS and p.suffix)


@pytest.mark.parametrize(
    ("text", "suffix", "found"),
    [
        ('os.environ.get("VIDGEN_OPS", "x")', ".py", {"VIDGEN_OPS"}),
        ('cmake("-DVIDGEN_TESTS=ON")', ".py", set()),
        ('std::getenv("VIDGEN_X"); VIDGEN_MACRO(1)', ".cpp", {"VIDGEN_X"}),
        (
            'a=${VIDGEN_A:-1} "$VIDGEN_B"\nVIDGEN_C=all x',
            ".sh",
            {"VIDGEN_A", "VIDGEN_B", "VIDGEN_C"},
        ),
        ("PY := $(or $(VIDGEN_PYTHON),x)", "", {"VIDGEN_PYTHON"}),
    ],
)
def test_a_variable_is_told_from_a_macro(text: str, suffix: str, found: set[str]) -> None:
    assert variables(text, suffix) == found


def test_the_table_lists_what_is_read() -> None:
    read = set().union(
        *(
            variables(path.read_text("utf-8"), path.suffix)
            for path in sources()
            if path != Path(__file__).resolve()
        )
    )
    listed = re.findall(r"^\| `(VIDGEN_[A-Z0-9_]+)` \|", DOCUMENT.read_text("utf-8"), flags=re.M)
    assert len(listed) == len(set(listed)), "a variable has two rows"
    assert read - set(listed) == set(), "read somewhere, not in docs/environment.md"
    assert set(listed) - read == set(), "in docs/environment.md, read nowhere"
