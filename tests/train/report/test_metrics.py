"""The file of a run's metrics survives crashes and stays one history."""

import json
import math
import statistics

import pytest

from vidgen.errors import UserError
from vidgen.train.report.metrics import FILE_NAME, MetricsFile, RunningZScore, read_metrics


def write(run_dir, steps, resume_step=0):
    file = MetricsFile(run_dir, resume_step)
    for step in steps:
        file.append({"step": step, "loss": step / 10})
    file.close()


def test_each_record_is_readable_before_close(tmp_path):
    file = MetricsFile(tmp_path / "run", 0)
    file.append({"step": 1, "loss": 0.5, "bucket": "33f", "phases": {"data": 1.5}})
    assert read_metrics(tmp_path / "run") == [
        {"step": 1, "loss": 0.5, "bucket": "33f", "phases": {"data": 1.5}}
    ]
    file.close()


def test_resume_drops_later_steps(tmp_path):
    write(tmp_path, range(1, 8))
    write(tmp_path, range(5, 7), resume_step=4)
    assert [r["step"] for r in read_metrics(tmp_path)] == [1, 2, 3, 4, 5, 6]
    assert list(tmp_path.iterdir()) == [tmp_path / FILE_NAME]


def test_fresh_start_keeps_nothing(tmp_path):
    write(tmp_path, range(3))
    write(tmp_path, [1])
    assert [r["step"] for r in read_metrics(tmp_path)] == [1]


def test_torn_last_line_is_left_out_and_mended(tmp_path):
    write(tmp_path, [1, 2])
    path = tmp_path / FILE_NAME
    path.write_bytes(path.read_bytes() + '{"step": 3, "bucket": "×'.encode()[:-1])
    assert [r["step"] for r in read_metrics(tmp_path)] == [1, 2]
    write(tmp_path, [3], resume_step=2)
    assert [json.loads(line)["step"] for line in path.read_text().splitlines()] == [1, 2, 3]


def test_last_line_missing_only_its_newline_is_kept(tmp_path):
    write(tmp_path, [1, 2])
    path = tmp_path / FILE_NAME
    path.write_bytes(path.read_bytes()[:-1])
    write(tmp_path, [3], resume_step=2)
    assert [r["step"] for r in read_metrics(tmp_path)] == [1, 2, 3]


@pytest.mark.parametrize("bad", ["{torn", "[1]", '{"loss": 1}', ""])
def test_damage_elsewhere_is_named(tmp_path, bad):
    write(tmp_path, [1])
    path = tmp_path / FILE_NAME
    path.write_text(path.read_text() + bad + "\n" + '{"step": 3}\n')
    with pytest.raises(UserError, match="line 2") as error:
        read_metrics(tmp_path)
    assert "\n" not in str(error.value)


def test_non_finite_values_are_strict_json_and_come_back(tmp_path):
    file = MetricsFile(tmp_path, 0)
    file.append({"step": 1, "loss": math.nan, "phases": {"data": math.inf}})
    file.close()

    def refuse(name):
        raise AssertionError(f"{name} is not JSON")

    json.loads((tmp_path / FILE_NAME).read_text(), parse_constant=refuse)
    (record,) = read_metrics(tmp_path)
    assert math.isnan(record["loss"])
    assert record["phases"]["data"] == math.inf


def test_not_a_run_directory(tmp_path):
    with pytest.raises(UserError, match=FILE_NAME):
        read_metrics(tmp_path)


def test_zscore_is_against_the_window_before():
    score = RunningZScore(window=4, at_least=3)
    assert [score.update(v) for v in (1.0, 2.0, 4.0)] == [None, None, None]
    before = [1.0, 2.0, 4.0]
    assert score.update(9.0) == pytest.approx(
        (9 - statistics.mean(before)) / statistics.pstdev(before)
    )
    before = [1.0, 2.0, 4.0, 9.0]
    expected = (3 - statistics.mean(before)) / statistics.pstdev(before)
    assert score.update(3.0) == pytest.approx(expected)
    before = [2.0, 4.0, 9.0, 3.0]
    expected = (5 - statistics.mean(before)) / statistics.pstdev(before)
    assert score.update(5.0) == pytest.approx(expected)


def test_nan_does_not_poison_the_window():
    score = RunningZScore(window=8, at_least=2)
    score.extend([1.0, math.nan, 3.0])
    assert math.isnan(score.update(math.nan))
    assert score.update(3.0) == pytest.approx(1.0)


def test_no_spread_no_score():
    score = RunningZScore(at_least=2)
    score.extend([0.3] * 5)
    assert score.update(5.0) is None
