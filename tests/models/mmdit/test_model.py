"""The transformer's shapes, seams and refusals; its numbers are in test_golden.py."""

import math
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from vidgen.models.mmdit import MMDiT, MMDiTConfig, Seams, patchify, unpatchify
from vidgen.models.mmdit.model import Context, Stream, call_block, sincos_embedding
from vidgen.models.mmdit.parallel import blocks
from vidgen.runtime import ops
from vidgen.runtime.attention import BlockMask, attention

CONFIG = MMDiTConfig(
    in_channels=8,
    hidden_size=32,
    num_heads=2,
    depth=2,
    depth_single_blocks=3,
    axes_dim=(4, 6, 6),
    vec_in_dim=6,
    context_in_dim=10,
    cond_embed=False,
)
GRID = (2, 3, 2)


def model(**changes: Any) -> MMDiT:
    torch.manual_seed(0)
    return MMDiT(replace(CONFIG, **changes))


def given(config: MMDiTConfig = CONFIG, batch: int = 2, text: int = 3) -> dict[str, Any]:
    torch.manual_seed(1)
    tokens = math.prod(GRID)
    inputs = {
        "x_BVD": torch.randn(batch, tokens, config.in_channels),
        "grid": GRID,
        "txt": torch.randn(batch, text, config.context_in_dim),
        "vec": torch.randn(batch, config.vec_in_dim),
        "t": torch.rand(batch),
    }
    if config.cond_embed:
        inputs["cond"] = torch.randn(batch, tokens, config.cond_channels)
    if config.guidance_embed:
        inputs["guidance"] = torch.full((batch,), 4.0)
    return inputs


def run(net: nn.Module, inputs: dict[str, Any], **more: Any) -> Tensor:
    inputs = {**inputs, **more}
    out: Tensor = net(inputs.pop("x_BVD"), **inputs)
    return out


def test_run_block_sees_every_block_in_order_and_changes_nothing() -> None:
    net, inputs = model(), given()
    seen: list[tuple[int, nn.Module, list[int]]] = []

    def watch(index: int, block: nn.Module, stream: Stream, context: Context) -> Stream:
        seen.append((index, block, [x.shape[1] for x in stream]))
        assert context.vec_BD.shape == (2, 32)
        return call_block(index, block, stream, context)

    out = run(net, inputs, seams=Seams(run_block=watch))
    assert torch.equal(out, run(net, inputs))
    assert [index for index, _, _ in seen] == [0, 1, 2, 3, 4]
    assert [block for _, block, _ in seen] == blocks(net)
    assert [lengths for _, _, lengths in seen] == [[3, 12]] * 2 + [[15]] * 3  # text first


def test_a_block_can_be_replaced_and_recomputed() -> None:
    net, inputs = model(), given()

    def without_last(index: int, block: nn.Module, stream: Stream, context: Context) -> Stream:
        return stream if index == 4 else call_block(index, block, stream, context)

    shorter = model(depth_single_blocks=2)
    shorter.load_state_dict(net.state_dict(), strict=False)
    skipped = run(net, inputs, seams=Seams(run_block=without_last))
    assert torch.equal(skipped, run(shorter, inputs))

    def again(index: int, block: nn.Module, stream: Stream, context: Context) -> Stream:
        result: Any = torch.utils.checkpoint.checkpoint(
            block, *stream, context, use_reentrant=False
        )
        return tuple(result)

    gradients = []
    for seams in (Seams(), Seams(run_block=again)):
        net.zero_grad()
        run(net, inputs, seams=seams).square().sum().backward()
        gradients.append([p.grad for p in net.parameters()])
    for one, two in zip(*gradients, strict=True):
        assert one is not None
        assert torch.equal(one, two)


def test_attention_is_called_once_a_block_with_all_tokens() -> None:
    net, inputs = model(), given()
    shapes = []

    def watch(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        shapes.extend(x.shape for x in (q, k, v))
        return attention(q, k, v)

    assert torch.equal(run(net, inputs, seams=Seams(attention=watch)), run(net, inputs))
    assert shapes == [(2, 15, 2, 16)] * 3 * 5

    def first_sample_without_text(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        # Text stands first, so lengths would cut video; turned round they cut text.
        mask = BlockMask.padding(torch.tensor([12, 15]))
        return attention(q, k.flip(1), v.flip(1), mask=mask)

    other = {**inputs, "txt": torch.randn_like(inputs["txt"])}
    masked = [
        run(net, x, seams=Seams(attention=first_sample_without_text)) for x in (inputs, other)
    ]
    torch.testing.assert_close(masked[0][0], masked[1][0])
    assert not torch.allclose(masked[0][1], masked[1][1])


@pytest.mark.parametrize(("cond_embed", "guidance_embed"), [(True, False), (False, True)])
def test_conditions_are_read(cond_embed: bool, guidance_embed: bool) -> None:
    net = model(cond_embed=cond_embed, guidance_embed=guidance_embed)
    inputs = given(net.config)
    out = run(net, inputs)
    assert out.shape == inputs["x_BVD"].shape
    for name in ("txt", "vec", "t", "cond" if cond_embed else "guidance"):
        moved = {**inputs, name: inputs[name] * 1.5}
        assert not torch.allclose(run(net, moved), out, atol=1e-6), name


def test_samples_do_not_see_each_other() -> None:
    net, inputs = model(), given(batch=3)
    alone = {k: v[1:2] if isinstance(v, Tensor) else v for k, v in inputs.items()}
    torch.testing.assert_close(run(net, alone), run(net, inputs)[1:2])


@pytest.mark.slow
def test_an_uncompiled_and_a_compiled_model_agree() -> None:
    with ops.use("reference"):  # the compiled kernels under torch.compile: test_golden.py
        net = model(cond_embed=True, depth=1, depth_single_blocks=1)
        inputs = given(net.config)
        compiled = torch.compile(net, fullgraph=True, backend="aot_eager")
        results = []
        for f in (net, compiled):
            net.zero_grad()
            out = run(f, inputs)
            out.square().sum().backward()
            results.append([out.detach(), *(p.grad for p in net.parameters())])
        for one, two in zip(*results, strict=True):
            torch.testing.assert_close(one, two)


def test_initial_weights_are_the_identity_and_give_zero() -> None:
    net = model(cond_embed=True, guidance_embed=True, qkv_bias=False)
    net.init_weights(torch.Generator().manual_seed(3))
    inputs = given(net.config)
    assert torch.equal(run(net, inputs), torch.zeros_like(inputs["x_BVD"]))
    unchanged = []

    def watch(index: int, block: nn.Module, stream: Stream, context: Context) -> Stream:
        result = call_block(index, block, stream, context)
        unchanged.extend(torch.equal(a, b) for a, b in zip(stream, result, strict=True))
        return result

    run(net, inputs, seams=Seams(run_block=watch))
    assert unchanged == [True] * (2 * 2 + 3)
    again = model(cond_embed=True, guidance_embed=True, qkv_bias=False)
    again.init_weights(torch.Generator().manual_seed(3))
    for one, two in zip(net.parameters(), again.parameters(), strict=True):
        assert torch.equal(one, two)
    # It can learn from there: the last layer's gradient is not zero.
    (run(net, inputs) - 1).square().sum().backward()
    assert net.final_layer.linear.weight.grad is not None
    assert net.final_layer.linear.weight.grad.abs().max() > 0


@pytest.mark.parametrize(
    ("changes", "inputs", "message"),
    [
        (
            {},
            {"grid": (2, 3, 3)},
            r"tokens \(2, 12, 8\): expected \(B, 18, 8\) for grid \(2, 3, 3\)",
        ),
        ({}, {"x_BVD": torch.zeros(2, 12, 7)}, r"expected \(B, 12, 8\)"),
        ({}, {"cond": torch.zeros(2, 12, 12)}, r"does not take `cond` \(cond_embed is False\)"),
        ({}, {"guidance": torch.ones(2)}, r"does not take `guidance`"),
        ({"cond_embed": True}, {"cond": None}, r"needs `cond` \(cond_embed is True\)"),
        ({"guidance_embed": True}, {"guidance": None}, "needs `guidance`"),
        ({"cond_embed": True}, {"cond": torch.zeros(2, 1, 12)}, r"expected \(2, 12, 12\)"),
        ({"cond_embed": True}, {"cond": torch.zeros(1, 12, 12)}, r"expected \(2, 12, 12\)"),
    ],
)
def test_refusals(changes: dict[str, Any], inputs: dict[str, Any], message: str) -> None:
    net = model(**changes)
    with pytest.raises(ValueError, match=message):
        run(net, {**given(net.config), **inputs})


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"num_heads": 3}, "does not divide into num_heads 3"),
        ({"axes_dim": (4, 6, 8)}, "must be even and sum to the head width 16"),
        ({"axes_dim": (5, 5, 6)}, "must be even and sum"),
        ({"in_channels": 6}, r"not a multiple of patch_size\^2 = 4"),
    ],
)
def test_impossible_shapes(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        replace(CONFIG, **changes)


def test_timesteps_are_told_apart_by_cosines_and_sines() -> None:
    found = sincos_embedding(torch.tensor([0.0, 0.25, 1.0]))
    assert found.shape == (3, 256)
    for row, t in zip(found, (0.0, 0.25, 1.0), strict=True):
        for k in (0, 1, 64, 127):
            angle = 1000 * t * math.exp(-math.log(10_000) * k / 128)
            assert float(row[k]) == pytest.approx(math.cos(angle), abs=1e-4)
            assert float(row[128 + k]) == pytest.approx(math.sin(angle), abs=1e-4)


def test_a_timestep_in_bf16_is_rounded_again_as_a_thousandth() -> None:
    """As Open-Sora's public code computes it: bf16(0.1) is 0.1001, and 100.1 is 100 in bf16."""
    found = sincos_embedding(torch.tensor([0.1], dtype=torch.bfloat16))
    assert found.dtype == torch.float32
    assert float(found[0, 0]) == pytest.approx(math.cos(100.0), abs=1e-5)
    exact = sincos_embedding(torch.tensor([0.1001]))
    assert float(exact[0, 0]) == pytest.approx(math.cos(100.1), abs=1e-3)


@pytest.mark.parametrize("patch", [1, 2])
def test_tokens_are_frames_rows_columns_of_patches(patch: int) -> None:
    latent = torch.randn(2, 3, 4, 2 * patch, 5 * patch)
    tokens = patchify(latent, patch)
    assert tokens.shape == (2, 4 * 2 * 5, 3 * patch**2)
    assert torch.equal(unpatchify(tokens, (4, 2, 5), patch), latent)
    frame, row, column, channel = 2, 1, 3, 1
    token = tokens[0, (frame * 2 + row) * 5 + column].view(3, patch, patch)
    area = latent[0, :, frame, row * patch : (row + 1) * patch, column * patch :][..., :patch]
    assert torch.equal(token[channel], area[channel])
