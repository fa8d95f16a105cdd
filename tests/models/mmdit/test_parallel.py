"""A whole model over a context group against one process in fp64, whatever the split."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from vidgen.models.mmdit import MMDiT, MMDiTConfig, Seams
from vidgen.models.mmdit.parallel import split_over
from vidgen.runtime.parallel import World
from vidgen.runtime.parallel.context import ContextGroup

MOST = 8
# Three heads, on up to eight ranks; the last sample is shorter than the larger groups.
CONFIG = MMDiTConfig(
    in_channels=8,
    hidden_size=36,
    num_heads=3,
    depth=1,
    depth_single_blocks=1,
    axes_dim=(4, 4, 4),
    vec_in_dim=6,
    context_in_dim=10,
)
SAMPLES = [(5, (2, 2, 3), 2), (2, (1, 1, 3), 1)]  # text tokens, grid, batch


def inputs(text: int, grid: tuple[int, int, int], batch: int) -> dict[str, Any]:
    made = torch.Generator().manual_seed(text)

    def normal(*shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=made, dtype=torch.float64)

    video = grid[0] * grid[1] * grid[2]
    return {
        "x_BVD": normal(batch, video, CONFIG.in_channels),
        "grid": grid,
        "txt": normal(batch, text, CONFIG.context_in_dim),
        "vec": normal(batch, CONFIG.vec_in_dim),
        "t": torch.rand(batch, generator=made, dtype=torch.float64),
        "cond": normal(batch, video, CONFIG.cond_channels),
    }


def model() -> MMDiT:
    torch.manual_seed(0)
    net = MMDiT(CONFIG).double()
    with torch.no_grad():
        for p in net.parameters():
            p.copy_(torch.randn(p.shape) * 0.2)
    return net


def run(net: MMDiT, given: dict[str, Any], seams: Seams) -> tuple[torch.Tensor, torch.Tensor]:
    """The velocity, and all parameters' gradients of a loss over all tokens, in one vector."""
    net.zero_grad()
    x = given.pop("x_BVD")
    out = net(x, **given, seams=seams)
    given["x_BVD"] = x
    (out - x).square().mean().backward()
    return out.detach(), torch.cat([p.grad.reshape(-1) for p in net.parameters()])


def arrangements(world: World, size: int) -> Iterator[tuple[ContextGroup, int]]:
    """The groups of the first ranks, with every number of neighbours that exchange heads."""
    here = World(world.rank, size, 0, world.device)
    group = here.context_group(size)
    for degree in group.degrees:
        yield group, degree


def compare(rank: int, world: int, folder: Path) -> dict[str, float]:
    """The largest difference of outputs and of gradients, by arrangement."""
    differences: dict[str, float] = {}
    for size in (1, 2, 3, 4, MOST):
        if rank >= size:
            continue
        store = dist.FileStore(str(folder / f"store-{size}"), size)
        dist.init_process_group("gloo", store=store, rank=rank, world_size=size)
        net = model()
        for text, grid, batch in SAMPLES:
            given = inputs(text, grid, batch)
            wanted = run(net, given, Seams())
            for group, degree in arrangements(World(rank, size, 0, torch.device("cpu")), size):
                for plan in ("sharded", "replicated"):
                    seams = Seams(split=split_over(group, lambda _, d=degree: d, plan))
                    out, gradients = run(net, given, seams)
                    dist.all_reduce(gradients)  # FSDP's average over ranks
                    found = out, gradients / size
                    worst = max(
                        ((a - b).abs().max() / b.abs().max()).item()
                        for a, b in zip(found, wanted, strict=True)
                    )
                    name = f"{size} ranks, {degree} exchange heads, {text}+{grid}, text {plan}"
                    differences[name] = worst
        dist.barrier()
        dist.destroy_process_group()
    return differences


def test_outputs_and_all_gradients_are_those_of_one_process(ranks: Any) -> None:
    results = ranks(compare, MOST, timeout=150)
    assert len(results[0]) == 2 * 2 * (1 + 2 + 2 + 3 + 4)
    for found in results:
        for name, difference in found.items():
            assert difference < 1e-12, name
