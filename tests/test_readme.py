"""What the documents tell a reader to type exists: commands, options, recipes, targets, files."""

import ast
import re
import shlex
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest

from vidgen.cli.main import parse
from vidgen.recipe import library, read_any

ROOT = Path(__file__).resolve().parent.parent
DOCUMENTS = [
    ROOT / "README.md",
    ROOT / "CONTRIBUTING.md",
    *sorted((ROOT / "docs").glob("*.md")),
    *sorted(ROOT.glob("*/README.md")),
]
TORCHRUN_ALONE = {"--standalone"}  # every other option of torchrun in a document takes a value


def blocks(document: Path, language: str) -> list[str]:
    found: list[str] = re.findall(
        rf"^```{language}\n(.*?)^```", document.read_text("utf-8"), flags=re.M | re.S
    )
    return found


def commands(document: Path) -> Iterator[list[str]]:
    """The words of each command in a document's shell blocks, without NAME=value before it."""
    for block in blocks(document, "sh"):
        for line in block.replace("\\\n", " ").splitlines():
            words = shlex.split(line, comments=True)
            while words and re.fullmatch(r"[A-Z_]+=.*", words[0]):
                words.pop(0)
            if words:
                yield words


ALL_COMMANDS = [
    pytest.param(words, id=f"{document.name}: {' '.join(words)}")
    for document in DOCUMENTS
    for words in commands(document)
]


def make_targets() -> set[str]:
    return set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text("utf-8"), flags=re.M))


def check_vidgen(arguments: list[str]) -> None:
    """The command line accepts it, and every recipe it names is valid with its overrides."""
    args, _ = parse(arguments[0], arguments[1:])
    recipes = [text for text in arguments[1:] if text.endswith(".yaml")]
    overrides = [text for text in getattr(args, "overrides", None) or arguments if "=" in text]
    overrides = [text for text in overrides if not text.startswith("-")]
    for name in set(arguments[1:]) & set(library.names()):
        read_any(name, overrides)
    for pattern in recipes:
        found = sorted(ROOT.glob(pattern))
        assert found, f"there is no {pattern}"
        for path in found:
            read_any(path, overrides)


def after_module(words: list[str]) -> list[str]:
    """The arguments of `vidgen` in `torchrun --option value ... -m vidgen ...`."""
    words = words[1:]
    while words[0] != "-m":
        assert words[0].startswith("--"), f"torchrun would run {words[0]!r}"
        words = words[1:] if words[0] in TORCHRUN_ALONE else words[2:]
    assert words[1] == "vidgen"
    return words[2:]


def check_pip(arguments: list[str]) -> None:
    assert arguments[0] == "install"
    target = next(a for a in arguments[1:] if not a.startswith("-"))
    extras = re.fullmatch(r"(?:\.|vidgen)\[([\w,-]+)\]", target)
    assert extras, f"{target!r} is not this project with some of its extras"
    project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
    assert set(extras[1].split(",")) <= set(project["optional-dependencies"])


def check_script(script: Path, arguments: list[str]) -> None:
    """The script exists, and it or a module it imports from beside it declares every option."""
    assert script.is_file(), f"there is no {script}"
    texts = [script.read_text("utf-8")]
    for node in ast.walk(ast.parse(texts[0])):
        if isinstance(node, ast.ImportFrom) and node.module:
            relative = Path(*node.module.split(".")).with_suffix(".py")
            found = [root / relative for root in (script.parent, ROOT)]
            texts += [path.read_text("utf-8") for path in found if path.is_file()]
    for flag in (word.partition("=")[0] for word in arguments if word.startswith("--")):
        assert any(f'"{flag}"' in text for text in texts), f"{script.name} takes no {flag}"


def check_pytest(target: str, options: list[str]) -> None:
    """Every option is pytest's, pytest-benchmark's or the suite's own."""
    own = ((ROOT / target) if (ROOT / target).is_dir() else (ROOT / target).parent) / "conftest.py"
    known = subprocess.run(
        [sys.executable, "-m", "pytest", "--help"], capture_output=True, text=True, check=True
    ).stdout + own.read_text("utf-8")
    for option in (word.partition("=")[0] for word in options if word.startswith("--")):
        assert option in known, f"pytest {target} takes no {option}"


@pytest.mark.parametrize("words", ALL_COMMANDS)
def test_a_command_can_be_typed(words: list[str]) -> None:
    match words:
        case ["make", *targets]:
            named = {target for target in targets if "=" not in target}
            assert named <= make_targets()
        case ["vidgen", *arguments]:
            check_vidgen(arguments)
        case ["torchrun", *_]:
            check_vidgen(after_module(words))
        case ["launch/torchrun.sh", *arguments]:
            assert (ROOT / words[0]).exists()
            check_vidgen(["train", *arguments])
        case ["sbatch", "--nodes", _, script, *arguments]:
            assert (ROOT / script).exists()
            check_vidgen(["train", *arguments])
        case ["pip", *arguments]:
            check_pip(arguments)
        case ["python", script, *arguments]:
            check_script(ROOT / script, arguments)
        case ["pytest", target, *options]:
            assert (ROOT / target).exists(), f"there is no {target}"
            check_pytest(target, options)
        case ["pytest-benchmark", "compare", *_]:
            declared = (ROOT / "pyproject.toml").read_text("utf-8")
            assert "pytest-benchmark" in declared, "no extra installs pytest-benchmark"
        case _:
            pytest.fail(f"nothing here knows how to check {words[0]!r}")


def test_the_readme_opens_with_the_two_commands() -> None:
    assert list(commands(ROOT / "README.md"))[:2] == [["make", "quickstart"], ["make", "test"]]


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_links_and_paths_lead_somewhere(document: Path) -> None:
    text = document.read_text("utf-8")
    links = [link for link in re.findall(r"\]\(([^)#]+)", text) if "://" not in link]
    paths = re.findall(r"`((?:vidgen|csrc|tests|recipes|docs|tools|benchmarks)/[\w./-]+)`", text)
    lost = [link for link in links if not (document.parent / link).exists()]
    lost += [path for path in paths if not (ROOT / path).exists()]
    assert not lost


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_python_examples_import_what_exists(document: Path) -> None:
    for block in blocks(document, "python"):
        for node in ast.walk(ast.parse(block)):
            if isinstance(node, ast.ImportFrom):
                module = __import__(node.module or "", fromlist=["_"])
                for alias in node.names:
                    assert hasattr(module, alias.name), f"{node.module} has no {alias.name}"
