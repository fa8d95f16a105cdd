import pytest
import torch

from vidgen.runtime import ops


def plain(u8):
    return ((u8.permute(0, 4, 1, 2, 3).float() / 255 - 0.5) / 0.5).bfloat16().contiguous()


def ours(u8):
    return ops.video_to_input(u8, 0.5, 0.5, torch.bfloat16)


@pytest.fixture
def dtype():
    return torch.bfloat16


def test_forward(bench, device):
    u8 = torch.randint(0, 256, (1, 33, 256, 448, 3), dtype=torch.uint8, device=device)
    bench.forward(ours, plain, [u8], 3 * u8.nbytes)
