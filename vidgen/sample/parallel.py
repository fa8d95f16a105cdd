"""Several ranks and one video: its tokens, or its guidance branches, shared out.

B batch, T text tokens, V video tokens, D width; a small letter is this rank's part.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from itertools import pairwise

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh

from vidgen.errors import UserError
from vidgen.models.mmdit.model import Context, Stream
from vidgen.runtime.parallel import World, ring_attention
from vidgen.sample.hooks import RunBlock

Group = dist.ProcessGroup


@dataclass(frozen=True)
class Team:
    """The ranks that make a video together; other teams make other videos meanwhile."""

    index: int = 0
    count: int = 1
    leads: bool = True  # this rank writes the team's videos
    leaders: Group | None = None  # the ranks that lead a team, where there are several
    branch: Group | None = None
    context: Group | None = None


ALONE = Team()


def make_team(
    world: World, videos: int, *, context: int | None = None, branch: int | None = None
) -> Team:
    """`context` ranks share the tokens of a video and `branch` of those its guidance branches.

    Without a choice: a video a rank where there are enough videos, else all ranks on each video.
    """
    if context is None and branch is None and videos < world.world:
        context = world.world
    context, branch = context or 1, branch or 1
    if world.world % (context * branch):
        raise UserError(
            f"{world.world} ranks cannot be split into teams of {context * branch} "
            f"(--context {context} times --branch {branch}); start a multiple of that"
        )
    if world.world == 1:
        return ALONE
    shape = (world.world // (context * branch), branch, context)
    mesh = init_device_mesh(world.device.type, shape, mesh_dim_names=("team", "branch", "context"))
    leads = mesh.get_local_rank("branch") == mesh.get_local_rank("context") == 0
    return Team(
        index=mesh.get_local_rank("team"),
        count=shape[0],
        leads=leads,
        leaders=mesh.get_group("team") if leads and shape[0] > 1 else None,
        branch=mesh.get_group("branch") if branch > 1 else None,
        context=mesh.get_group("context") if context > 1 else None,
    )


def share_branches(
    group: Group | None, names: tuple[str, ...], evaluate: Callable[[str], Tensor], like: Tensor
) -> Mapping[str, Tensor]:
    """Each rank evaluates its share of the branches; all get all of them, bit for bit."""
    if group is None:
        return {name: evaluate(name) for name in names}
    rank, size = dist.get_rank(group), dist.get_world_size(group)
    mine = {name: evaluate(name).contiguous() for name in names[rank::size]}
    found = {}
    for number, name in enumerate(names):
        velocity = mine[name] if name in mine else torch.empty_like(like)
        dist.broadcast(_bytes(velocity), group=group, group_src=number % size)
        found[name] = velocity
    return found


def bounds(length: int, size: int) -> list[int]:
    """Where each rank's part of `length` tokens starts, and the end of the last."""
    return [length * rank // size for rank in range(size + 1)]


def split_tokens(
    group: Group, run: RunBlock, blocks: int, text_length: int, video_length: int
) -> RunBlock:
    """`run` over this rank's part of text and video; any lengths. Whole streams go in and out."""
    rank, size = dist.get_rank(group), dist.get_world_size(group)
    text, video = bounds(text_length, size), bounds(video_length, size)
    lengths = [text[r + 1] - text[r] + video[r + 1] - video[r] for r in range(size)]
    mine_text, mine_video = (slice(b[rank], b[rank + 1]) for b in (text, video))
    attend = partial(ring_attention, group=group, lengths=lengths)

    def part(table_LP: Tensor) -> Tensor:
        return torch.cat([table_LP[:text_length][mine_text], table_LP[text_length:][mine_video]])

    local: list[Context] = []

    def run_block(index: int, block: nn.Module, stream: Stream, context: Context) -> Stream:
        if index == 0:
            stream = (stream[0][:, mine_text], stream[1][:, mine_video])
            cos, sin = part(context.cos_LP), part(context.sin_LP)
            local[:] = [replace(context, cos_LP=cos, sin_LP=sin, attention=attend)]
        stream = run(index, block, stream, local[0])
        if index < blocks - 1:
            return stream
        here = text[rank + 1] - text[rank]
        video_BVD = _gather(group, stream[0][:, here:], video)
        # Nothing reads the text any more.
        return (
            torch.cat(
                [video_BVD.new_zeros(len(video_BVD), text_length, video_BVD.shape[2]), video_BVD],
                dim=1,
            ),
        )

    return run_block


def _gather(group: Group, part_BvD: Tensor, starts: list[int]) -> Tensor:
    """The parts of all ranks, one after another."""
    sizes = [end - start for start, end in pairwise(starts)]
    room = part_BvD.new_zeros(len(part_BvD), max(sizes), part_BvD.shape[2])
    room[:, : part_BvD.shape[1]] = part_BvD
    parts = [torch.empty_like(room) for _ in sizes]
    dist.all_gather([_bytes(p) for p in parts], _bytes(room), group=group)
    return torch.cat([p[:, :size] for p, size in zip(parts, sizes, strict=True)], dim=1)


def _bytes(tensor: Tensor) -> Tensor:
    """The same storage as bytes: not every transport knows every dtype."""
    return tensor.view(-1).view(torch.uint8)
