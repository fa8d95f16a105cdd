"""`vidgen prove` on the shipped model: a table, JSON, a page, and results that are kept."""

import json

import pytest

from vidgen.cli.main import main

pytest.importorskip("av")


def test_a_small_proof_is_printed_kept_and_continued(tmp_path, capsys):
    out = tmp_path / "proof"
    words = ["prove", "demo", "--device", "cpu", "--prompts", "4", "--out", str(out)]
    assert not main([*words, "--methods", "euler:4", "euler:1"])
    first = capsys.readouterr()
    assert "euler:4: cached 0 / computed 4" in first.err
    summary = json.loads((out / "prove.json").read_text())
    assert list(summary["methods"]) == ["euler:4", "euler:1"]
    assert summary["methods"]["euler:4"]["passes"] == 8
    assert summary["methods"]["euler:1"]["passes"] == 2
    assert summary["real"]["colour"][0] > 0.9
    same = summary["methods"]["euler:4"]["difference"]["all"]
    assert same == [0, 0, 0]  # the first method is the reference
    assert "<video" in (out / "prove.html").read_text()

    assert not main([*words, "--methods", "euler:4"])
    again = capsys.readouterr()
    assert "euler:4: cached 4 / computed 0" in again.err
