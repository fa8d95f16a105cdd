"""RunLog says the same thing on the console, in metrics.jsonl and in TensorBoard."""

import io
import math
import re
import sys

import pytest
import torch

from vidgen.errors import UserError
from vidgen.train.report.log import RunLog, read_metrics


class Terminal(io.StringIO):
    def isatty(self):
        return True


def open_log(run_dir, total=10, **options):
    options.setdefault("tensorboard", False)
    options.setdefault("stream", io.StringIO())
    return RunLog(run_dir, total, **options)


FULL = {
    "loss": torch.tensor(0.25),
    "grad_norm": 0.5,
    "lr": 2e-3,
    "ms": 812.4,
    "tokens_per_s": 12_345.0,
    "videos_per_s": 39.4,
    "mfu": 0.123,
    "hfu": 0.141,
    "data_ms": 2.2,
    "memory_gb": 1.234,
    "bucket": "33f 64x64 b16",
    "phases": {"data": 2.2, "forward": torch.tensor(300.0)},
}


def test_console_line_and_record(tmp_path):
    out = io.StringIO()
    with open_log(tmp_path, stream=out) as log:
        log.step(1, **FULL, custom=7)
    assert out.getvalue().startswith(
        "step  1/10 | loss 0.2500 | norm 0.5 | lr 2.00e-03 | 812 ms | 12.3k tok/s | "
        "39.4 videos/s | MFU 12.3% | HFU 14.1% | data 2 ms | 1.23 GB | 33f 64x64 b16 | left "
    )
    assert out.getvalue().count("\n") == 1
    (record,) = read_metrics(tmp_path)
    assert record["loss"] == 0.25
    assert record["custom"] == 7
    assert record["phases"] == {"data": 2.2, "forward": 300.0}


def test_absent_metrics_are_left_out(tmp_path):
    out = io.StringIO()
    with open_log(tmp_path, stream=out) as log:
        log.step(1, loss=1.0, mfu=None)
    assert "MFU" not in out.getvalue()
    assert "mfu" not in read_metrics(tmp_path)[0]


def test_spike_shows_in_the_score(tmp_path):
    out = io.StringIO()
    with open_log(tmp_path, total=21, stream=out) as log:
        for step in range(1, 21):
            log.step(step, loss=1 + 0.1 * (step % 2))
        log.step(21, loss=2.0)
    record = read_metrics(tmp_path)[-1]
    assert record["loss_z"] == pytest.approx((2 - 1.05) / 0.05)
    assert "(+19.00z)" in out.getvalue().splitlines()[-1]


def test_nan_loss_is_shown_and_recorded(tmp_path):
    out = io.StringIO()
    with open_log(tmp_path, stream=out) as log:
        log.step(1, loss=math.nan)
    assert "loss nan" in out.getvalue()
    assert math.isnan(read_metrics(tmp_path)[0]["loss"])


def test_resume_continues_history_and_score(tmp_path):
    def loss(step):
        return 1 + 0.1 * math.sin(step)

    with open_log(tmp_path / "whole", total=40) as log:
        for step in range(1, 41):
            log.step(step, loss=loss(step))
    with open_log(tmp_path / "halves", total=40) as log:
        for step in range(1, 30):
            log.step(step, loss=loss(step))
    out = io.StringIO()
    with open_log(tmp_path / "halves", total=40, resume_step=25, stream=out) as log:
        for step in range(26, 41):
            log.step(step, loss=loss(step))
    assert "dropped 4 lines" in out.getvalue().splitlines()[0]

    def history(name):
        records = read_metrics(tmp_path / name)
        return [{k: v for k, v in record.items() if k != "time"} for record in records]

    assert history("halves") == history("whole")


def test_steps_must_increase(tmp_path):
    with open_log(tmp_path, resume_step=3) as log:
        with pytest.raises(ValueError, match="step 3 after step 3"):
            log.step(3, loss=1.0)
        log.step(4, loss=1.0)
    assert [r["step"] for r in read_metrics(tmp_path)] == [4]


def test_log_every_thins_lines_not_records(tmp_path):
    out = io.StringIO()
    with open_log(tmp_path, total=10, log_every=4, stream=out) as log:
        for step in range(1, 11):
            log.step(step, loss=1.0)
    shown = [int(n) for n in re.findall(r"step +(\d+)/10", out.getvalue())]
    assert shown == [4, 8, 10]
    assert len(read_metrics(tmp_path)) == 10


def test_terminal_gets_a_bar_and_lines(tmp_path):
    out = Terminal()
    with open_log(tmp_path, stream=out, resume_step=5) as log:
        log.line("training")
        for step in range(6, 11):
            log.step(step, loss=1.0)
    text = out.getvalue()
    assert "training\n" in text
    assert "5/10" in text  # the bar starts where the run resumes
    assert "step/s" in text or "s/step" in text or "?step" in text
    assert "step 10/10 | loss 1.0000\n" in text  # no second remaining time beside the bar's


def test_a_pipe_gets_no_control_characters(tmp_path):
    out = io.StringIO()
    with open_log(tmp_path, stream=out) as log:
        log.line("training")
        log.step(1, loss=1.0)
    assert "\r" not in out.getvalue()
    assert "\x1b" not in out.getvalue()


def test_close_twice_then_refuse_steps(tmp_path):
    out = io.StringIO()
    log = open_log(tmp_path, stream=out)
    log.close()
    log.close()
    log.line("sampling")
    assert out.getvalue() == "sampling\n"
    with pytest.raises(ValueError, match="closed"):
        log.step(1, loss=1.0)


def test_other_ranks_write_nothing(tmp_path):
    out = io.StringIO()
    with RunLog(tmp_path / "run", 10, enabled=False, stream=out) as log:
        log.line("training")
        log.step(1, loss=1.0)
    assert out.getvalue() == ""
    assert not (tmp_path / "run").exists()


def test_tensorboard_holds_the_same_numbers(tmp_path):
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    with open_log(tmp_path, tensorboard=True) as log:
        log.step(1, **FULL)
        log.step(2, **FULL)
    with open_log(tmp_path, tensorboard=True, resume_step=1) as log:
        log.step(2, **{**FULL, "loss": 0.125})
    events = EventAccumulator(str(tmp_path / "tensorboard"))
    events.Reload()
    assert [(e.step, e.value) for e in events.Scalars("train/loss")] == [(1, 0.25), (2, 0.125)]
    assert events.Scalars("phases/forward")[0].value == 300.0


def test_missing_tensorboard_names_the_extra(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "tensorboard", None)
    with pytest.raises(UserError, match=r"vidgen\[train\]"):
        RunLog(tmp_path / "run", 10, stream=io.StringIO())
    assert not (tmp_path / "run").exists()
