import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from vidgen.models.video_dcae import VideoDCAE, VideoDCAEConfig
from vidgen.plan.encoders import Encoders, dcae_encode_flops, hunyuan_encode_flops


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


@pytest.mark.parametrize(("frames", "height", "width"), [(1, 256, 512), (64, 256, 256)])
def test_dcae_flops_are_those_of_its_tiles(frames: int, height: int, width: int) -> None:
    with torch.device("meta"):
        model = VideoDCAE(VideoDCAEConfig())
        with FlopCounterMode(display=False) as counter, torch.no_grad():
            model.encoder(torch.empty(1, 3, frames, height, width))
    assert dcae_encode_flops(frames, height, width) == pytest.approx(
        counter.get_total_flops(), rel=0.01
    )
    encoders = Encoders("video_dcae", "builtin", 16)
    assert encoders.weight_bytes() == 2 * sum(p.numel() for p in model.parameters())


def test_t5_against_its_published_size() -> None:
    text_only = Encoders("block_dct", "t5_clip", 512)
    assert text_only.flops(129, 256) == pytest.approx(2 * 512 * 4.6e9, rel=0.05)
    assert text_only.weight_bytes() == pytest.approx(2 * (4.76e9 + 0.12e9), rel=0.02)


def test_built_in_encoders_cost_nothing() -> None:
    builtin = Encoders("block_dct", "builtin", 16)
    assert builtin.flops(33, 64) == 0
    assert builtin.weight_bytes() == 0
    assert builtin.workspace_bytes(33, 64) == 0
