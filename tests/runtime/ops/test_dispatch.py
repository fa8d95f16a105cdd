import pytest
import torch

from vidgen.errors import UserError
from vidgen.runtime import native, ops
from vidgen.runtime.ops import dispatch
from vidgen.runtime.ops.catalogue import OPS, Op

X = torch.randn(1, 2, 4)
V = torch.randn(1, 4)


@pytest.fixture(autouse=True)
def fresh(monkeypatch):
    monkeypatch.delenv("VIDGEN_OPS", raising=False)
    dispatch._chosen.clear()
    yield
    dispatch._chosen.clear()


def test_auto_takes_the_compiled_kernel_where_there_is_one():
    expected = "compiled" if native.load() else "reference"
    assert dispatch.choose("modulate", X) == expected
    assert dispatch.choose("modulate", X.double()) == "reference"
    assert dispatch.choose("modulate", X.to("meta")) == "reference"


def test_environment_is_obeyed(monkeypatch):
    monkeypatch.setenv("VIDGEN_OPS", "reference")
    assert dispatch.choose("modulate", X) == "reference"


def test_a_wish_that_cannot_be_met_raises(monkeypatch):
    monkeypatch.setenv("VIDGEN_OPS", "compiled")
    with pytest.raises(UserError, match="no kernel for float64"):
        ops.modulate(X.double(), V.double(), V.double())
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    monkeypatch.setenv("VIDGEN_OPS", "triton")
    with pytest.raises(UserError, match="triton"):
        ops.gelu_tanh(X)


def test_unknown_wish_is_refused(monkeypatch):
    monkeypatch.setenv("VIDGEN_OPS", "fast")
    with pytest.raises(UserError, match="'fast', expected auto, reference, compiled or triton"):
        ops.gelu_tanh(X)


def test_without_the_extension_the_reference_runs(monkeypatch):
    monkeypatch.setattr(native, "_attempt", lambda: (None, "not built"))
    dispatch._why_not_compiled.cache_clear()
    try:
        assert dispatch.choose("modulate", X) == "reference"
        assert ops.modulate(X, V, V).shape == X.shape
        with ops.use("compiled"), pytest.raises(UserError, match="not built"):
            ops.modulate(X, V, V)
    finally:
        dispatch._why_not_compiled.cache_clear()


def test_an_op_without_a_triton_version_says_so(monkeypatch):
    monkeypatch.setitem(OPS, "modulate", Op(triton=False))
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    assert dispatch.why_not("modulate", "triton", "cpu", torch.float32) == (
        "it has no Triton version"
    )


def test_table_has_one_choice_for_every_op():
    rows = ops.table()
    for op in OPS:
        mine = [row for row in rows if row.op == op and row.device == "cpu"]
        assert [row.implementation for row in mine] == ["reference", "compiled", "triton"]
        assert sum(row.chosen for row in mine) == 1
        assert all(row.available or row.reason for row in mine)
