"""Besides matrix products and attention, a block runs only vidgen's ops, with expected counts."""

from collections import Counter
from functools import partial

import pytest
import torch
from torch.profiler import ProfilerActivity, profile
from torch.utils.checkpoint import checkpoint

from vidgen.models.mmdit import MMDiTConfig
from vidgen.models.mmdit.model import Context, DualStreamBlock, SingleStreamBlock
from vidgen.runtime import ops
from vidgen.runtime.attention import attention
from vidgen.runtime.ops import dispatch

CONFIG = MMDiTConfig(
    in_channels=4,
    vec_in_dim=8,
    context_in_dim=8,
    hidden_size=48,
    num_heads=3,
    depth=1,
    depth_single_blocks=1,
    axes_dim=(4, 6, 6),
)
TEXT, GRID = 5, (2, 2, 3)
VIDEO = 12
BLOCKS = {
    "dual": (DualStreamBlock, (TEXT, VIDEO)),
    "single": (SingleStreamBlock, (TEXT + VIDEO,)),
}
FORWARD = {
    "dual": {
        "vidgen::modulate": 2,
        "vidgen::joint_qkv": 1,
        "vidgen::gated_residual_modulate": 2,
        "vidgen::gelu_tanh": 2,
        "vidgen::gated_residual": 2,
        "aten::addmm": 8 + 2,  # of tokens, and the modulations' vectors
    },
    "single": {
        "vidgen::modulate": 1,
        "vidgen::joint_qkv": 1,
        "vidgen::attention_mlp": 1,
        "vidgen::gated_residual": 1,
        "aten::addmm": 2 + 1,
    },
}
# Where a batch has several samples the streams of attention's output are not contiguous in it.
OF_A_BATCH = {"dual": {"vidgen::split_streams": 1}, "single": {}}
BACKWARD = {
    "dual": {
        "vidgen::modulate_backward": 2,
        "vidgen::joint_qkv_backward": 1,
        "vidgen::join_streams": 1,
        "vidgen::gated_residual_modulate_backward": 2,
        "vidgen::gelu_tanh_backward": 2,
        "vidgen::gated_residual_backward": 2,
        "aten::cat": 2,  # a modulation's vectors: one row a sample, not a token
        "aten::add": 3,  # where a stream's two uses meet, and the modulations' two uses of vec
    },
    "single": {
        "vidgen::modulate_backward": 1,
        "vidgen::joint_qkv_backward": 1,
        "vidgen::gated_residual_backward": 1,
        "aten::cat": 1,
        "aten::add": 1,
    },
}
FREE = {  # of kernels over tokens: views, allocations, and what matrix products are made of
    *("as_strided", "transpose", "empty", "new_empty", "slice", "resolve_conj", "view", "expand"),
    *("linear", "t", "narrow", "alias", "_reshape_alias", "select", "empty_like", "empty_strided"),
    "unflatten",
    *("chunk", "split", "split_with_sizes", "tensor_split", "unbind", "reshape", "to", "detach"),
    *("flatten", "_unsafe_view", "unsqueeze", "squeeze", "mm", "silu", "silu_backward", "sum"),
    *("new_full", "fill_", "zeros", "zero_", "expand_as"),
}


@pytest.fixture(autouse=True)
def compiled():
    if why := dispatch.why_not("modulate", "compiled", "cpu", torch.float32):
        pytest.skip(why)
    with ops.use("compiled"):
        yield


def make(kind, batch):
    torch.manual_seed(0)
    block_type, lengths = BLOCKS[kind]
    streams = [torch.randn(batch, n, CONFIG.hidden_size, requires_grad=True) for n in lengths]
    tables = ops.rope_tables(GRID, CONFIG.axes_dim, 1e4, TEXT)
    vec = torch.randn(batch, CONFIG.hidden_size, requires_grad=True)
    # Named, so that no choosing and checking of backends is counted.
    torch_s_own = partial(attention, backend="sdpa_flash_cpu")
    return block_type(CONFIG), streams, Context(vec, *tables, torch_s_own)


def kernels(run):
    """How often each op ran that is not free, attention's own and matrix products' taken out."""
    with profile(activities=[ProfilerActivity.CPU]) as seen:
        run()
    found: Counter[str] = Counter()
    for event in seen.events():
        inside = event.cpu_parent
        while inside and not inside.name.startswith(("aten::_scaled_dot", "aten::addmm")):
            inside = inside.cpu_parent
        space, _, name = event.name.partition("::")
        if inside is None and (space == "vidgen" or (space == "aten" and name not in FREE)):
            found[event.name.removesuffix("_") if name == "add_" else event.name] += 1
    return {name: n for name, n in found.items() if "_scaled_dot" not in name}


@pytest.mark.parametrize("batch", [1, 2])
@pytest.mark.parametrize("kind", BLOCKS)
def test_a_block_runs_our_ops_and_nothing_else(kind, batch):
    block, streams, context = make(kind, batch)
    outputs: list[torch.Tensor] = []
    forward = kernels(lambda: outputs.extend(block(*streams, context)))
    expected = FORWARD[kind] | (OF_A_BATCH[kind] if batch > 1 else {})
    assert forward == expected
    grads = [torch.ones_like(out) for out in outputs]
    leaves = [*streams, context.vec_BD, *block.parameters()]
    assert kernels(lambda: torch.autograd.grad(outputs, leaves, grads)) == BACKWARD[kind]


def results(block, streams, context, parameters=None):
    outputs = block(*streams, context)
    grads = [torch.ones_like(out) for out in outputs]
    weights = list(block.parameters()) if parameters is None else parameters
    found = torch.autograd.grad(outputs, [*streams, context.vec_BD, *weights], grads)
    return [*outputs, *found]


@pytest.mark.parametrize("batch", [1, 2])
@pytest.mark.parametrize("kind", BLOCKS)
def test_compiled_as_one_graph(kind, batch):
    block, streams, context = make(kind, batch)
    expected = results(block, streams, context)
    torch.compiler.reset()
    whole = torch.compile(block, fullgraph=True, backend="aot_eager")
    for one, two in zip(results(whole, streams, context), expected, strict=True):
        torch.testing.assert_close(one, two, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("kind", BLOCKS)
def test_recompute_gives_the_same_bits(kind):
    block, streams, context = make(kind, 2)
    expected = results(block, streams, context)

    def recomputed(*inputs):
        return checkpoint(block, *inputs, use_reentrant=False)

    found = results(recomputed, streams, context, list(block.parameters()))
    for one, two in zip(found, expected, strict=True):
        assert torch.equal(one, two)


@pytest.mark.parametrize("kind", BLOCKS)
def test_the_reference_agrees(kind):
    block, streams, context = make(kind, 2)
    found = results(block, streams, context)
    with ops.use("reference"):
        expected = results(block, streams, context)
    for one, two in zip(found, expected, strict=True):
        torch.testing.assert_close(one, two, rtol=1e-4, atol=1e-4)
