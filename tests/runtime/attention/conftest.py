"""Isolates the selection of backends from the environment and from other tests."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from vidgen.runtime.attention import choice, measured


@pytest.fixture(autouse=True)
def _fresh_choice(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[None]:
    monkeypatch.delenv("VIDGEN_ATTENTION", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    choice.reset()
    measured._here.cache_clear()
    yield
    choice.reset()
    measured._here.cache_clear()
