import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from vidgen.plan.encoders import Encoders, hunyuan_encode_flops


@pytest.mark.parametrize(("frames", "side"), [(1, 64), (5, 64), (9, 128)])
def test_hunyuan_flops_against_a_count(frames: int, side: int) -> None:
    """The published encoder's shapes as an independent implementation builds them."""
    diffusers = pytest.importorskip("diffusers")
    with torch.device("meta"):
        vae = diffusers.AutoencoderKLHunyuanVideo().eval()
        video = torch.empty(1, 3, frames, side, side)
        with FlopCounterMode(display=False) as counter, torch.no_grad():
            vae.encoder(video)
    assert hunyuan_encode_flops(frames, side, side) == pytest.approx(
        counter.get_total_flops(), rel=0.03
    )


def test_t5_against_its_published_size() -> None:
    text_only = Encoders("block_dct", "t5_clip", 512)
    assert text_only.flops(129, 256) == pytest.approx(2 * 512 * 4.6e9, rel=0.05)
    assert text_only.weight_bytes() == pytest.approx(2 * (4.76e9 + 0.12e9), rel=0.02)


def test_built_in_encoders_cost_nothing() -> None:
    builtin = Encoders("block_dct", "builtin", 16)
    assert builtin.flops(33, 64) == 0
    assert builtin.weight_bytes() == 0
    assert builtin.workspace_bytes(33, 64) == 0
