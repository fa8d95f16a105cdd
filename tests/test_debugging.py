"""The snippets of docs/debugging.md run, in order, in one session."""

from pathlib import Path
from typing import Any

import pytest

from tests.test_readme import ROOT, blocks


def test_the_snippets_run(
    recipe_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    (tmp_path / "recipes").mkdir(exist_ok=True)
    # The tiny recipe in place of quickstart's, whose clips take minutes to make
    (tmp_path / "recipes" / "quickstart.yaml").write_text(recipe_file.read_text())
    monkeypatch.chdir(tmp_path)
    session: dict[str, Any] = {}
    shown = []
    for block in blocks(ROOT / "docs" / "debugging.md", "python"):
        exec(compile(block, "docs/debugging.md", "exec"), session)
        shown.append(capsys.readouterr().out)
    dump, step, whole, one_block, backends = shown
    batch = session["batch"]
    assert all(f"manifest row {row}: " in dump for row in batch.keys)
    assert all((tmp_path / f"row-{row}.png").is_file() for row in batch.keys)
    assert session["largest"] in step
    assert session["trainer"].step == 1
    assert f"{session['metrics']['loss']}" in whole
    assert "Block" in one_block
    assert "chosen" in backends
    assert session["loss_B"].shape == (len(batch.keys),)
