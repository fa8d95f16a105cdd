import json

import pytest
import torch

from vidgen.runtime import ops
from vidgen.runtime.observe import results
from vidgen.runtime.ops import dispatch, faster


@pytest.fixture
def kept(tmp_path, monkeypatch):
    """An empty file of choices, on a machine that has a GPU and both kinds of kernel."""
    path = tmp_path / "faster.json"
    path.write_text("{}")
    monkeypatch.setattr(faster, "PATH", path)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(results, "machine_name", lambda: "some-gpu")
    monkeypatch.setattr(dispatch, "why_not", lambda *_: "")
    monkeypatch.delenv("VIDGEN_OPS", raising=False)
    faster._measured.cache_clear()
    yield path
    faster._measured.cache_clear()


def row(op, implementation, ms):
    return {"op": op, "implementation": implementation, "ms": ms}


def test_the_faster_in_all_is_chosen():
    rows = [
        *(row("modulate", "compiled", 2.0), row("modulate", "triton", 1.0)),
        *(row("modulate", "compiled", 2.0), row("modulate", "triton", 4.0)),
        *(row("gelu_tanh", "compiled", 2.0), row("gelu_tanh", "triton", 1.0)),
        *(row("gelu_tanh", "eager", 0.1), row("qk_norm_rope", "compiled", 1.0)),
    ]
    assert faster.of_rows(rows) == {"modulate": "compiled", "gelu_tanh": "triton"}


def test_what_was_measured_is_the_default_and_shown(kept):
    faster.keep("some-gpu", {"gelu_tanh": "triton", "modulate": "compiled"})
    chosen = {r.op: r for r in ops.table() if r.device == "cuda" and r.chosen}
    assert chosen["gelu_tanh"].implementation == "triton"
    assert chosen["gelu_tanh"].reason == "measured to be the faster one on this GPU"
    assert chosen["modulate"].implementation == "compiled"
    assert chosen["qk_norm_rope"].implementation == "compiled"
    assert chosen["qk_norm_rope"].reason == "not measured beside Triton on this GPU"
    assert {r.implementation for r in ops.table() if r.device == "cpu" and r.chosen} == {"compiled"}


def test_a_triton_that_cannot_run_is_not_taken(kept, monkeypatch):
    faster.keep("some-gpu", {"gelu_tanh": "triton"})
    monkeypatch.setattr(
        dispatch, "why_not", lambda _, name, *rest: "no" if name == "triton" else ""
    )
    assert dispatch._automatic("gelu_tanh", "cuda", torch.bfloat16)[0] == "compiled"


def test_other_machines_stay(kept):
    faster.keep("another", {"gelu_tanh": "triton"})
    faster.keep("some-gpu", {"modulate": "triton"})
    assert set(json.loads(kept.read_text())) == {"another", "some-gpu"}


def test_the_kept_file_names_ops_and_implementations():
    for choices in json.loads(faster.PATH.read_text()).values():
        assert set(choices) <= set(dispatch.OPS)
        assert set(choices.values()) <= {"compiled", "triton"}
