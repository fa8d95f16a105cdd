import pytest
import torch
from torch import Tensor, nn

from vidgen.runtime.memory.recompute import recompute


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.lin = nn.Linear(16, 16)
        self.calls = 0

    def forward(self, x: Tensor, scale: float) -> tuple[Tensor, Tensor]:
        self.calls += 1
        y = torch.tanh(self.lin(x)) * scale
        return y, y.sin()


def gradients(again: bool, dtype: torch.dtype | None = None) -> tuple[list[Tensor], int]:
    torch.manual_seed(0)
    block = Block()
    x = torch.randn(3, 16, requires_grad=True)
    with torch.autocast("cpu", dtype=dtype, enabled=dtype is not None):
        a, b = recompute(block, x, 1.5) if again else block(x, 1.5)
    (a.float().square().mean() + b.float().mean()).backward()
    found = [a.detach(), b.detach(), x.grad, *(p.grad for p in block.parameters())]
    assert all(tensor is not None for tensor in found)
    return [tensor for tensor in found if tensor is not None], block.calls


@pytest.mark.parametrize("dtype", [None, torch.bfloat16])
def test_the_same_bits_from_running_twice(dtype: torch.dtype | None) -> None:
    expected, once = gradients(False, dtype)
    found, twice = gradients(True, dtype)
    assert (once, twice) == (1, 2)
    assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))


def test_only_the_inputs_are_kept() -> None:
    kept: list[int] = []

    def pack(tensor: Tensor) -> Tensor:
        kept.append(tensor.numel())
        return tensor

    def run(again: bool) -> int:
        kept.clear()
        block, x = Block(), torch.randn(64, 16, requires_grad=True)
        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            recompute(block, x, 2.0) if again else block(x, 2.0)
        return sum(kept)

    assert run(False) > 0
    assert run(True) < run(False) / 2


def test_an_error_inside_is_the_users_to_see() -> None:
    def broken(x: Tensor) -> Tensor:
        raise RuntimeError("shapes differ")

    with pytest.raises(RuntimeError, match="shapes differ"):
        recompute(broken, torch.zeros(1))
