"""Benchmark results can be read back and describe what was run."""

import json
from pathlib import Path

import pytest

from vidgen.runtime.observe import results


def test_a_kept_file_says_how_to_repeat_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    path = results.write("things", [{"what": "copy", "gb_per_s": 12.5}], settings={"rounds": 3})
    assert path == Path("profiles/results") / results.machine_name() / "things.json"
    kept = json.loads(path.read_text())
    assert kept["rows"] == [{"what": "copy", "gb_per_s": 12.5}]
    assert kept["settings"] == {"rounds": 3}
    assert kept["command"].startswith("python ")
    assert not any(word.startswith("/") for word in kept["command"].split())
    assert {"versions", "machine", "date", "threads"} <= kept.keys()
    assert [file.name for file in path.parent.iterdir()] == ["things.json"]  # nothing half-written


def test_a_file_can_be_put_elsewhere(tmp_path: Path) -> None:
    assert results.write("things", [], out=tmp_path / "here" / "a.json").is_file()


def test_machine_names_are_folders() -> None:
    assert results.machine_name() == results.machine_name().lower()
    assert not set(results.machine_name()) & set(" /()@")


def test_a_table_lines_up_and_marks_what_is_missing() -> None:
    lines = results.table([{"op": "a", "ms": 1.23456}, {"op": "long name", "peer": None}])
    assert lines.splitlines() == ["op         ms    peer", "a          1.23", "long name        -"]
