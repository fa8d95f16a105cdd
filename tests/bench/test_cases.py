"""The peers compute what ours do, so that their times may be compared."""

import pytest
import torch
from torch import Tensor

from vidgen.bench.cases import CASES, Inputs, Size

SIZE = Size(tokens=24, width=64, heads=2)


@pytest.fixture
def inputs() -> Inputs:
    return Inputs(SIZE, torch.device("cpu"), torch.float32)


@pytest.mark.parametrize("name", CASES)
def test_ours_and_the_peer_agree(name: str, inputs: Inputs) -> None:
    case = CASES[name](inputs)
    found = []
    for function in (case.op, case.plain):
        given = [t.detach().clone().requires_grad_(t.requires_grad) for t in case.inputs]
        in_place = not any(t.requires_grad for t in given)
        result = function(*given)
        outputs = list(result) if isinstance(result, tuple) else [result]
        if in_place:  # what was written to counts as well
            outputs += given
        outputs = [t for t in outputs if isinstance(t, Tensor)]
        if case.backward_bytes is not None:
            leaves = [t for t in given if t.requires_grad]
            total = sum(t.sum() for t in outputs if t.requires_grad)
            outputs += torch.autograd.grad(total, leaves)
        found.append([t for t in outputs if name != "copy_rows" or t.dtype.is_floating_point])
    ours, plain = found
    if name in ("copy_rows", "adamw"):  # plain returns nothing, or what it wrote to
        ours, plain = ours[-len(case.inputs) :], plain[-len(case.inputs) :]
    for one, two in zip(ours, plain, strict=True):
        torch.testing.assert_close(one, two, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", CASES)
def test_bytes_are_no_less_than_the_inputs_read_and_the_outputs_written(
    name: str, inputs: Inputs
) -> None:
    case = CASES[name](inputs)
    result = case.op(*case.inputs)
    outputs = result if isinstance(result, tuple) else (result,)
    written = sum(t.nbytes for t in outputs if isinstance(t, Tensor))
    assert case.forward_bytes >= written
    if name in ("modulate", "gated_residual", "gelu_tanh", "merge"):
        read = sum(t.nbytes for t in case.inputs if t.dim() >= 3 and t.shape[-1] != SIZE.tokens)
        outs = sum(t.nbytes for t in outputs if t.shape[-1] != SIZE.tokens)
        assert case.forward_bytes == read + outs
