"""A trace covers the requested steps, is written once, and stops recording."""

import gzip
import json

import pytest
import torch

from vidgen.errors import UserError
from vidgen.runtime.observe.ranges import span
from vidgen.runtime.observe.trace import StepTrace, parse_steps


def run(directory, first, last, steps):
    trace = StepTrace(directory, first=first, last=last, device="cpu")
    with trace:
        for step in range(1, steps + 1):
            with trace.step(step), span(f"work {step}"):
                torch.randn(8, 8) @ torch.randn(8, 8)
    return trace


def names(path):
    with gzip.open(path) as file:
        return {event["name"] for event in json.load(file)["traceEvents"] if "name" in event}


def test_only_the_steps_asked_for(tmp_path):
    trace = run(tmp_path / "profile", 2, 3, steps=5)
    (path,) = trace.written
    assert path == tmp_path / "profile" / "trace-rank0.json.gz"
    found = names(path)
    assert {"step 2", "step 3", "work 2", "work 3", "aten::mm"} <= found
    assert not {"step 1", "step 4", "work 1", "work 4"} & found
    assert span("a") is span("b")


def test_a_run_that_ends_early_still_writes(tmp_path):
    trace = run(tmp_path, 2, 30, steps=3)
    assert {"step 2", "step 3"} <= names(trace.written[0])


def test_a_step_that_fails_still_writes(tmp_path):
    trace = StepTrace(tmp_path, first=1, last=5, device="cpu", rank=3)
    with pytest.raises(RuntimeError), trace, trace.step(1):
        raise RuntimeError
    assert [path.name for path in trace.written] == ["trace-rank3.json.gz"]
    assert span("a") is span("b")


def test_steps_never_reached_write_nothing(tmp_path):
    assert run(tmp_path / "profile", 10, 12, steps=2).written == []
    assert not (tmp_path / "profile").exists()


def test_parse_steps():
    assert parse_steps("10-12") == (10, 12)
    assert parse_steps("7") == (7, 7)


@pytest.mark.parametrize("text", ["", "12-10", "0", "a-b", "1-2-3", "-3"])
def test_parse_steps_refuses(text):
    with pytest.raises(UserError, match="10-12"):
        parse_steps(text)
