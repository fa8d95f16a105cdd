"""FLOPs and parameters against torch's own counter and the published sizes."""

from dataclasses import replace

import pytest
import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.functional import scaled_dot_product_attention
from torch.utils.flop_counter import FlopCounterMode

from vidgen.models.mmdit import PRESETS, MMDiT, MMDiTConfig, Seams
from vidgen.models.mmdit.flops import flops, parameters
from vidgen.models.mmdit.parallel import blocks

TINY = replace(PRESETS["tiny"], in_channels=16, vec_in_dim=12, context_in_dim=24)
CONFIGS = [
    TINY,
    replace(TINY, cond_embed=False, guidance_embed=True, depth=2),
    replace(TINY, in_channels=8, patch_size=1, mlp_ratio=2.5, depth_single_blocks=1),
]


def counted_attention(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Plain products: torch's counter takes a fused kernel's recompute for FLOPs of the model."""
    q, k, v = (x.transpose(1, 2) for x in (q, k, v))
    with sdpa_kernel(SDPBackend.MATH):
        return scaled_dot_product_attention(q, k, v).transpose(1, 2)


@pytest.mark.parametrize("grid", [(1, 2, 3), (3, 4, 5)])
@pytest.mark.parametrize("text_len", [1, 7])
@pytest.mark.parametrize("config", CONFIGS)
def test_flops_are_what_torch_counts(
    config: MMDiTConfig, grid: tuple[int, int, int], text_len: int
) -> None:
    video = grid[0] * grid[1] * grid[2]

    def given(*shape: int) -> Tensor:
        # Gradients flow to the inputs too: the convention counts every product's backward twice.
        return torch.rand(*shape, requires_grad=True)

    # A batch of two: FLOPs are per sample, and nothing is shared between samples.
    inputs = {
        "txt": given(2, text_len, config.context_in_dim),
        "vec": given(2, config.vec_in_dim),
        "t": given(2),
        "cond": given(2, video, config.cond_channels) if config.cond_embed else None,
        "guidance": given(2) if config.guidance_embed else None,
    }
    model = MMDiT(config)
    expected = flops(config, grid, text_len)
    with FlopCounterMode(display=False) as counter:
        x = given(2, video, config.in_channels)
        out = model(x, grid=grid, **inputs, seams=Seams(attention=counted_attention))
        assert counter.get_total_flops() == 2 * expected.forward
        out.sum().backward()
    assert counter.get_total_flops() == 2 * expected.training


@pytest.mark.parametrize(
    ("preset", "count"),
    [
        ("opensora_v2", 11_891_390_528),
        ("opensora_v2_dcae", 11_891_971_200),
        ("flux_dev", 11_901_408_320),
    ],
)
def test_parameters_of_the_published_models(preset: str, count: int) -> None:
    assert parameters(PRESETS[preset]) == count


def test_the_cost_of_the_report_s_largest_clip() -> None:
    # 129 frames at 576 x 1024: 33 x 36 x 64 tokens and 512 of text.
    cost = flops(PRESETS["opensora_v2"], (33, 36, 64), 512)
    assert cost.forward == pytest.approx(5.1e15, rel=0.02)
    assert cost.attention / cost.forward == pytest.approx(0.81, abs=0.01)


def test_blocks_are_all_there_in_the_order_they_run() -> None:
    model = MMDiT(replace(TINY, depth=2))
    ran = []

    def record(index, block, stream, context):  # type: ignore[no-untyped-def]
        ran.append(block)
        return block(*stream, context)

    with torch.no_grad():
        model(
            torch.rand(1, 4, 16),
            grid=(1, 2, 2),
            txt=torch.rand(1, 3, 24),
            vec=torch.rand(1, 12),
            t=torch.rand(1),
            cond=torch.rand(1, 4, 20),
            seams=Seams(run_block=record),
        )
    assert ran == blocks(model)
