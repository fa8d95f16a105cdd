"""What benchmarks keep can be read again and names what it was."""

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


def test_rows_are_in_the_file_when_they_are_measured(tmp_path: Path) -> None:
    path = tmp_path / "things.json"

    def rows() -> list[dict[str, float]]:
        return json.loads(path.read_text())["rows"]

    kept = results.Kept("things", {"rounds": 1}, path)
    kept.add({"ms": 1.0})
    assert rows() == [{"ms": 1.0}]
    kept.add({"ms": 2.0})
    kept[0]["of_best"] = 0.5
    kept.settings["ruler"] = 3
    kept.save()
    assert rows() == [{"ms": 1.0, "of_best": 0.5}, {"ms": 2.0}]
    assert json.loads(path.read_text())["settings"] == {"rounds": 1, "ruler": 3}
    kept.replace([{"ms": 0.5}])
    assert rows() == [{"ms": 0.5}]


def test_every_benchmark_keeps_its_rows_as_it_measures() -> None:
    folder = Path(__file__).parents[3] / "benchmarks"
    programs = list(folder.rglob("bench_*.py"))
    assert len(programs) > 10
    for program in programs:
        text = program.read_text()
        at_once = "results.Kept(" in text or "kept(" in text or text.count("results.write(") == 2
        assert at_once, f"{program.name} writes its rows at the end alone"
