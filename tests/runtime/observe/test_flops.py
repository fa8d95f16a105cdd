"""The convention agrees with what torch counts for the products it is about."""

import pytest
import torch
import torch.nn.functional as F
from torch.utils.flop_counter import FlopCounterMode

from vidgen.runtime.observe.flops import (
    attention_flops,
    linear_flops,
    training_flops,
)

BATCH, LENGTH, WIDTH, HEADS, HIDDEN = 2, 24, 32, 4, 80


def counted(work):
    with FlopCounterMode(display=False) as counter:
        work()
    return counter.get_total_flops()


def heads(x):
    return x.unflatten(-1, (HEADS, -1)).transpose(1, 2)


def attention(q, k, v):
    scores = heads(q) @ heads(k).transpose(-1, -2)
    return (scores.softmax(-1) @ heads(v)).transpose(1, 2).flatten(-2)


class Block(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.qkv = torch.nn.Linear(WIDTH, 3 * WIDTH)
        self.up = torch.nn.Linear(WIDTH, HIDDEN)
        self.down = torch.nn.Linear(HIDDEN, WIDTH)

    def forward(self, x_BLD):
        x_BLD = x_BLD + attention(*self.qkv(x_BLD).chunk(3, dim=-1))
        return self.down(F.gelu(self.up(x_BLD)))


TOKENS = BATCH * LENGTH
ATTENTION = BATCH * attention_flops(LENGTH, LENGTH, WIDTH)
FORWARD = (
    linear_flops(TOKENS, WIDTH, 3 * WIDTH)
    + linear_flops(TOKENS, WIDTH, HIDDEN)
    + linear_flops(TOKENS, HIDDEN, WIDTH)
    + ATTENTION
)


@pytest.fixture
def x():
    return torch.randn(BATCH, LENGTH, WIDTH, requires_grad=True)


def test_forward(x):
    assert counted(lambda: Block()(x)) == FORWARD


def test_forward_and_backward(x):
    block = Block()
    assert counted(lambda: block(x).sum().backward()) == training_flops(FORWARD)


def test_uneven_attention():
    q = torch.randn(1, 5, WIDTH)
    kv = torch.randn(1, 17, WIDTH)
    assert counted(lambda: attention(q, kv, kv)) == attention_flops(5, 17, WIDTH)
