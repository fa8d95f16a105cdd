import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from vidgen.runtime.memory.products import keep_products


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.up, self.down = nn.Linear(8, 32), nn.Linear(32, 8)

    def forward(self, x: Tensor) -> Tensor:
        q = F.layer_norm(x, (8,))[:, None]
        attended = F.scaled_dot_product_attention(q, q.sin(), q)[:, 0]
        return x + self.down(F.gelu(self.up(attended)))


def test_the_same_bits_and_no_product_twice() -> None:
    torch.manual_seed(0)
    block, x = Block(), torch.randn(2, 5, 8, requires_grad=True)
    wanted = torch.autograd.grad(block(x).square().sum(), [x, *block.parameters()])
    packed: list[tuple[int, ...]] = []
    unpacked: list[tuple[int, ...]] = []

    def pack(tensor: Tensor) -> Tensor:
        packed.append(tuple(tensor.shape))
        return tensor

    def unpack(tensor: Tensor) -> Tensor:
        unpacked.append(tuple(tensor.shape))
        return tensor

    out = keep_products(block, x, pack=pack, unpack=unpack)
    assert (10, 32) in packed  # the first product; the second's is nobody's to keep but its
    assert (2, 1, 5, 8) in packed  # attention
    found = torch.autograd.grad(out.square().sum(), [x, *block.parameters()])
    assert all(torch.equal(a, b) for a, b in zip(found, wanted, strict=True))
    assert unpacked == [shape for shape in packed if shape in unpacked]  # in the same order


def test_a_product_changed_in_place_is_refused() -> None:
    def spoil(x: Tensor) -> Tensor:
        return (x @ x).mul_(2).sin()

    with pytest.raises(RuntimeError, match=r"mul_.* changes a product in place"):
        keep_products(spoil, torch.ones(3, 3, requires_grad=True))
