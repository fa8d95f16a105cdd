"""Gradients with blocks' activations sent away are bit for bit those without."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn

from vidgen.models.mmdit import MMDiT, MMDiTConfig, Seams
from vidgen.models.mmdit.model import Context, Stream, call_block
from vidgen.models.mmdit.parallel import blocks
from vidgen.runtime.memory import Arena, Lane, SimulatedEngine
from vidgen.runtime.memory.block_memory import BlockMemory, run_block
from vidgen.runtime.memory.offload import Offloader

CONFIG = MMDiTConfig(
    in_channels=8,
    hidden_size=48,
    num_heads=2,
    depth=3,
    depth_single_blocks=4,
    axes_dim=(4, 10, 10),
    vec_in_dim=12,
    context_in_dim=16,
    cond_embed=False,
)
GRID = (2, 3, 3)
OFFLOADING = [how for how in BlockMemory if how.offloads]


class Rig:
    """An offloader on lanes that complete in an order the seed decides."""

    def __init__(
        self, seed: int = 0, nbytes: int = 8 << 20, latency_s: float = 1e-5, **options: Any
    ) -> None:
        engine = SimulatedEngine(seed, latency_s)
        self.arena = Arena(nbytes, pinned=False)
        out, back = Lane("cpu", engine=engine), Lane("cpu", engine=engine)
        self.offloader = Offloader(self.arena, out, back, **{"smallest": 1, **options})

    def close(self) -> None:
        self.offloader.close()
        assert self.arena.stats().held == 0
        self.arena.close()  # raises if a lease was lost


def seams(how: Callable[[int], BlockMemory], offloader: Offloader | None, **more: Any) -> Seams:
    def run(index: int, block: nn.Module, stream: Stream, context: Context) -> Stream:
        def call(*tensors: Tensor) -> Stream:
            return call_block(index, block, tensors, context)

        result: Stream = run_block(how(index), offloader, block, call, *stream)
        return result

    return Seams(run_block=run, **more)


def model() -> MMDiT:
    torch.manual_seed(0)
    net = MMDiT(CONFIG)
    with torch.no_grad():
        for p in net.parameters():
            p.normal_(std=0.1)
    return net


def inputs(seed: int = 1, tokens: int = 18) -> dict[str, Any]:
    torch.manual_seed(seed)
    return {
        "x_BVD": torch.randn(2, tokens, 8),
        "txt": torch.randn(2, 5, 16),
        "vec": torch.randn(2, 12),
        "t": torch.rand(2),
    }


def gradients(net: MMDiT, given: dict[str, Any], seams: Seams) -> list[Tensor]:
    net.zero_grad()
    x = given["x_BVD"].clone().requires_grad_()
    rest = {name: value for name, value in given.items() if name != "x_BVD"}
    out = net(x, grid=GRID, seams=seams, **rest)
    (out.float() * torch.linspace(-1, 1, out.numel()).view(out.shape)).sum().backward()
    assert x.grad is not None
    found = [out.detach(), x.grad, *(p.grad for p in net.parameters())]
    return [tensor.clone() for tensor in found if tensor is not None]


def same(found: list[Tensor], expected: list[Tensor]) -> bool:
    return all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))


@pytest.mark.parametrize("autocast", [False, True])
@pytest.mark.parametrize("how", list(BlockMemory))
def test_gradients_are_the_same_bits(how: BlockMemory, autocast: bool) -> None:
    net, given = model(), inputs()
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=autocast):
        expected = gradients(net, given, Seams())
        for seed in range(4 if how.offloads and not autocast else 1):
            rig = Rig(seed)
            for _ in range(2):  # the second step runs on what the first one gave back
                assert same(gradients(net, given, seams(lambda _: how, rig.offloader)), expected)
            stats = rig.offloader.stats
            assert (stats.fetched > 0) == how.offloads
            assert stats.late == 0
            rig.close()


def test_every_block_otherwise() -> None:
    net, given = model(), inputs()
    expected = gradients(net, given, Seams())
    hows = list(BlockMemory)
    for shift in range(len(hows)):
        rig = Rig(shift)
        mixed = seams(lambda i, shift=shift: hows[(i + shift) % len(hows)], rig.offloader)
        assert same(gradients(net, given, mixed), expected)
        rig.close()


@pytest.mark.parametrize(("window", "ahead"), [(1, 1), (1, 9), (5, 1), (2, 3)])
def test_windows(window: int, ahead: int) -> None:
    net, given = model(), inputs()
    expected = gradients(net, given, Seams())
    rig = Rig(window * ahead, window=window, ahead=ahead)
    assert same(
        gradients(net, given, seams(lambda _: BlockMemory.OFFLOAD, rig.offloader)), expected
    )
    rig.close()


@pytest.mark.parametrize("how", OFFLOADING)
@pytest.mark.parametrize("room", [256, 20_000, 100_000])
def test_a_full_arena_keeps_the_rest_on_the_device(how: BlockMemory, room: int) -> None:
    net, given = model(), inputs()
    expected = gradients(net, given, Seams())
    for limits in ({"nbytes": room}, {"limit": room}):
        rig = Rig(3, **limits)
        for _ in range(2):
            assert same(gradients(net, given, seams(lambda _: how, rig.offloader)), expected)
        stats = rig.offloader.stats
        assert stats.kept_full > 0 or how is BlockMemory.OFFLOAD_INPUTS
        assert stats.high_water <= room
        rig.close()


def test_room_that_is_on_its_way_is_waited_for() -> None:
    rig = Rig(limit=256, latency_s=0.01)
    block = rig.offloader.begin(nn.Identity())
    first = rig.offloader.pack(block, torch.ones(64))
    full = rig.offloader.pack(block, torch.full((64,), 2.0))
    assert isinstance(full, Tensor)  # nothing is on its way: waiting would be for ever
    del first  # its copy is still under way
    second = rig.offloader.pack(block, torch.full((64,), 3.0))
    stats = rig.offloader.stats
    assert (stats.waits, stats.kept_full, stats.moved) == (1, 1, 2)
    rig.offloader.begin(nn.Identity())
    rig.offloader.begin(nn.Identity())  # two blocks on: it is let go
    assert (rig.offloader.unpack(second) == 3).all()
    assert stats.fetched == 1
    del second
    rig.close()


def test_micro_steps_and_graphs_that_are_dropped() -> None:
    net, given = model(), inputs()
    rig = Rig(5)
    run = seams(lambda _: BlockMemory.OFFLOAD, rig.offloader)
    expected = gradients(net, given, Seams())
    rest = {name: value for name, value in given.items() if name != "x_BVD"}
    net(given["x_BVD"], grid=GRID, seams=run, **rest)  # its graph goes at once
    with torch.no_grad():
        net(given["x_BVD"], grid=GRID, seams=run, **rest)
    first = net(given["x_BVD"].requires_grad_(False), grid=GRID, seams=run, **rest)
    second = net(given["x_BVD"], grid=GRID, seams=run, **rest)  # two graphs at a time
    for out in (first, second):
        net.zero_grad()
        (out * torch.linspace(-1, 1, out.numel()).view(out.shape)).sum().backward()
        found = [p.grad.clone() for p in net.parameters() if p.grad is not None]
        assert same(found, expected[2:])
    del out, first, second
    rig.close()


class Shared(nn.Module):
    """Saves one storage many times, whole and in views, and its parameter."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(16, 16))

    def forward(self, x: Tensor) -> Tensor:
        y = x @ self.weight
        a, b = y[:, :8], y[:, 8:]
        return (a * b + y.view(-1, 2, 8)[:, 1] * a.sin()) @ self.weight[:8]


def test_a_storage_goes_once_and_a_parameter_not_at_all() -> None:
    block = Shared()
    x = torch.randn(32, 16, requires_grad=True)
    expected = torch.autograd.grad(block(x).sum(), [x, block.weight])
    rig = Rig()
    out = rig.offloader.run(block, block, x)
    stats = rig.offloader.stats
    # x, y, sin's result and the sum: the views of y and the weight are none of them.
    assert (stats.moved, stats.moved_bytes) == (4, 4 * (2 * 32 * 16 + 2 * 32 * 8))
    assert stats.repeats >= 3
    assert same(list(torch.autograd.grad(out.sum(), [x, block.weight])), list(expected))
    del out
    rig.close()


def test_small_ones_stay() -> None:
    rig = Rig(smallest=4 * 32 * 16)
    block = Shared()
    rig.offloader.run(block, block, torch.randn(32, 16, requires_grad=True))
    assert rig.offloader.stats.moved == 2
    rig.close()


def test_a_change_in_place_before_it_has_left_is_told() -> None:
    def spoil(x: Tensor) -> Tensor:
        y = x * 2
        z = y.sin()  # saves y
        y.add_(1)
        return z

    rig = Rig()
    out = rig.offloader.run(nn.Identity(), spoil, torch.ones(64, requires_grad=True))
    with pytest.raises(RuntimeError, match="modified in place after it was saved"):
        out.sum().backward()
    del out
    rig.close()


def test_a_change_of_contents_is_another_storage() -> None:
    def twice(x: Tensor) -> Tensor:
        y = torch.zeros(64)
        total = x * 0
        for value in (2.0, 3.0):
            y.fill_(value)
            total = total + x * y.clone()
        return total

    x = torch.ones(64, requires_grad=True)
    rig = Rig()
    rig.offloader.run(nn.Identity(), twice, x).sum().backward()
    assert x.grad is not None
    assert (x.grad == 5).all()
    rig.close()


@pytest.mark.parametrize("backend", ["aot_eager", pytest.param("inductor", marks=pytest.mark.slow)])
@pytest.mark.parametrize("how", [BlockMemory.OFFLOAD, BlockMemory.OFFLOAD_INPUTS])
def test_compiled_blocks(how: BlockMemory, backend: str) -> None:
    net, given = model(), inputs()
    net.double_blocks = net.double_blocks[:1]
    net.single_blocks = net.single_blocks[:2]  # three blocks: one leaves in full
    for block in blocks(net):
        block.compile(backend=backend)
    try:
        expected = gradients(net, given, Seams())
        rig = Rig(2)
        assert same(gradients(net, given, seams(lambda _: how, rig.offloader)), expected)
        assert rig.offloader.stats.fetched > 0
        rig.close()
    finally:
        torch.compiler.reset()


def join(rank: int, world: int, folder: Path) -> None:
    store = dist.FileStore(str(folder / "store"), world)
    dist.init_process_group("gloo", store=store, rank=rank, world_size=world)


def sharded(rank: int, world: int, folder: Path) -> bool:
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.tensor import DTensor

    from vidgen.runtime.parallel import shard

    join(rank, world, folder)
    equal = True
    for zero, dtype in ((2, None), (3, None), (3, torch.bfloat16)):
        net = model()
        shard(net, blocks(net), init_device_mesh("cpu", (world,)), zero=zero, param_dtype=dtype)
        given = inputs(seed=rank)
        if dtype is not None:
            given |= {name: given[name].to(dtype) for name in ("x_BVD", "txt", "vec")}

        def local(found: list[Tensor]) -> list[Tensor]:
            return [t.to_local() if isinstance(t, DTensor) else t for t in found]

        expected = local(gradients(net, given, Seams()))
        for how in OFFLOADING:
            rig = Rig(rank)
            for _ in range(2):
                found = gradients(net, given, seams(lambda _, how=how: how, rig.offloader))
                equal &= same(local(found), expected)
            equal &= rig.offloader.stats.fetched > 0
            rig.close()
    dist.destroy_process_group()
    return equal


def test_fsdp(ranks: Any) -> None:
    assert ranks(sharded, 2) == [True, True]


def context_parallel(rank: int, world: int, folder: Path) -> bool:
    from vidgen.runtime.parallel import ring_attention

    join(rank, world, folder)
    lengths = [11, 7]  # of the video; the text is on rank 0 and 1 by 3 and 2
    net, given = model(), inputs()
    begin = sum(lengths[:rank])
    x = given["x_BVD"][:, begin : begin + lengths[rank]]
    text = given["txt"][:, :3] if rank == 0 else given["txt"][:, 3:]

    def attention(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return ring_attention(q, k, v)

    def step(run: Seams) -> list[Tensor]:
        net.zero_grad()
        stream: Stream = (net.txt_in(text), net.img_in(x))
        length = sum(part.shape[1] for part in stream)
        torch.manual_seed(rank)
        angles = torch.rand(length, CONFIG.head_dim // 2)
        context = Context(net.vector_in(given["vec"]), angles.cos(), angles.sin(), attention)
        for index, block in enumerate(net.double_blocks):
            stream = run.run_block(index, block, stream, context)
        stream = (torch.cat(stream, dim=1),)
        for index, block in enumerate(net.single_blocks, start=3):
            stream = run.run_block(index, block, stream, context)
        stream[0].square().sum().backward()
        found = [stream[0].detach(), *(p.grad for p in net.parameters())]
        return [t.clone() for t in found if t is not None]

    expected = step(Seams())
    equal = True
    for how in OFFLOADING:
        rig = Rig(rank)
        equal &= same(step(seams(lambda _, how=how: how, rig.offloader)), expected)
        equal &= rig.offloader.stats.fetched > 0
        rig.close()
    dist.destroy_process_group()
    return equal


def test_context_parallel(ranks: Any) -> None:
    assert ranks(context_parallel, 2) == [True, True]


def test_options() -> None:
    arena = Arena(256, pinned=False)
    with pytest.raises(ValueError, match="at least one block"):
        Offloader(arena, Lane("cpu"), Lane("cpu"), window=0)
    with pytest.raises(ValueError, match="needs an offloader"):
        run_block(BlockMemory.OFFLOAD, None, nn.Identity(), nn.Identity(), torch.ones(1))
