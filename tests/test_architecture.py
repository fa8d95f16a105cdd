"""The walks in docs/architecture.md name functions that exist, and step.py reads in order."""

import ast
import re

import pytest

from tests.test_readme import ROOT

ARCHITECTURE = (ROOT / "docs" / "architecture.md").read_text("utf-8")
WALKS = re.findall(r"^### ([^\n]+): (\d+) hops\n(.*?)(?=^##|^To follow)", ARCHITECTURE, re.M | re.S)
HOPS = re.findall(r"`(vidgen/[\w/]+\.py):([\w.]+)`", ARCHITECTURE)


def defined(source: str, dotted: str) -> bool:
    """Whether a module defines a function or class, or a class one of its methods."""
    body: list[ast.stmt] = ast.parse(source).body
    for name in dotted.split("."):
        found = [
            node
            for node in body
            if isinstance(node, ast.FunctionDef | ast.ClassDef) and node.name == name
        ]
        if not found:
            return False
        body = found[-1].body
    return True


def test_what_is_not_defined_is_told() -> None:
    source = "class A:\n    def f(self): ...\n"
    assert defined(source, "A.f")
    assert not defined(source, "A.g")
    assert not defined(source, "f")


@pytest.mark.parametrize(("path", "function"), HOPS)
def test_a_hop_exists(path: str, function: str) -> None:
    assert defined((ROOT / path).read_text("utf-8"), function)


def test_the_walks_are_counted_right() -> None:
    assert [name for name, _, _ in WALKS] == ["Clip to loss", "Loss to disk", "Prompt to video"]
    for name, count, text in WALKS:
        numbers = [int(number) for number in re.findall(r"^(\d+)\. `", text, re.M)]
        assert numbers == list(range(1, int(count) + 1)), name


def test_a_training_step_reads_straight_down() -> None:
    """From batch to gradients, nothing of it stands above what it follows."""
    source = (ROOT / "vidgen" / "train" / "step.py").read_text("utf-8")
    order = [
        "ops.video_to_input(",
        "encode.video(",
        "encode.captions(",
        "flow.corrupt(",
        "encode.drop_text(",
        "encode.conditions(",
        " model(",
        "flow.loss_per_sample(",
        ".backward()",
    ]
    places = [source.index(call) for call in order]
    assert places == sorted(places)


def test_a_step_on_one_screen_shows_what_ends_the_run_and_the_ema() -> None:
    tree = ast.parse((ROOT / "vidgen" / "train" / "loop.py").read_text("utf-8"))
    (step,) = (
        node
        for node in ast.walk(tree)
        if isinstance(node, ast.FunctionDef) and node.name == "train_step"
    )
    assert step.end_lineno is not None
    assert step.end_lineno - step.lineno < 50
    source = ast.unparse(step)
    calls = [
        "next(self.loader)",
        "self.forward_backward(",
        "clip_grad_norm(",
        "loss_monitor.check(",
    ]
    calls += ["self._end_run_on_bad_loss(", "update_weights_and_ema("]
    places = [source.index(call) for call in calls]
    assert places == sorted(places)
