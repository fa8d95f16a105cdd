"""The changelog's newest release is the version that the package says it is."""

import re
from pathlib import Path

from vidgen.version import __version__

CHANGELOG = Path(__file__).resolve().parent.parent / "CHANGELOG.md"


def test_the_newest_release_is_the_packages_version() -> None:
    headings = re.findall(r"^## (.+)$", CHANGELOG.read_text("utf-8"), flags=re.M)
    assert headings[0] == "Unreleased"
    released = [re.fullmatch(r"(\d+\.\d+\.\d+) - (\d{4}-\d\d-\d\d)", h) for h in headings[1:]]
    assert all(released), f"not `version - date`: {headings[1:]}"
    versions = [tuple(map(int, match[1].split("."))) for match in released if match]
    assert ".".join(map(str, versions[0])) == __version__
    assert versions == sorted(set(versions), reverse=True)
