"""Several ranks and one video: its tokens, or its guidance branches, are shared out."""

from dataclasses import dataclass, replace

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.device_mesh import init_device_mesh

from vidgen.errors import UserError
from vidgen.models.mmdit import MMDiT, Seams
from vidgen.models.mmdit.parallel import split_over
from vidgen.runtime.parallel import ContextGroup, World, split_tokens
from vidgen.runtime.parallel.arrangement import Arrangement, Shape
from vidgen.runtime.parallel.bandwidth import arrange
from vidgen.runtime.parallel.context import TextPlan
from vidgen.runtime.parallel.p2p import as_bytes

Group = dist.ProcessGroup


@dataclass(frozen=True)
class Team:
    """The ranks that make a video together; other teams make other videos meanwhile."""

    index: int = 0
    count: int = 1
    leads: bool = True  # this rank writes the team's videos
    leaders: Group | None = None  # the ranks that lead a team, where there are several
    branch: Group | None = None
    context: ContextGroup | None = None
    arrangement: Arrangement | None = None  # of attention over the context group
    text: TextPlan = "sharded"  # over the context group

    def text_tokens(self, text: int, video: int) -> int:
        """How many of a sequence's text tokens this rank computes."""
        if self.context is None:
            return text
        part = split_tokens(text, video, self.context.size, self.text).text[self.context.rank]
        return int(part.stop - part.start)

    def seams(self, seams: Seams, model: MMDiT, itemsize: int) -> Seams:
        """With the tokens of a video split over the context group, if there is one."""
        if self.context is None or self.arrangement is None:
            return seams
        arrangement, config = self.arrangement, model.config

        def degree(tokens: int) -> int:
            shape = Shape(1, tokens, config.num_heads, config.head_dim, itemsize)
            return arrangement.degree(shape)

        return replace(seams, split=split_over(self.context, degree, self.text))


ALONE = Team()


def make_team(
    world: World,
    videos: int,
    *,
    context: int | None = None,
    branch: int | None = None,
    ulysses: int | None = None,
    text: TextPlan = "sharded",
    dtype: torch.dtype = torch.float32,
) -> Team:
    """`context` ranks share the tokens of a video and `branch` of those its guidance branches.

    By default each rank makes its own videos where there are enough, else all ranks share each
    video. `ulysses` ranks of a context group exchange heads (1: a ring of all; None: what measured
    bandwidth and FLOPs in `dtype` suggest); `text` is sharded over the group or replicated.
    """
    if context is None and branch is None and videos < world.world:
        context = world.world
    context, branch = context or 1, branch or 1
    if world.world % (context * branch):
        raise UserError(
            f"{world.world} ranks cannot be split into teams of {context * branch} "
            f"(--context {context} times --branch {branch}); start a multiple of that"
        )
    if ulysses is not None and context % ulysses:
        raise UserError(
            f"--ulysses {ulysses} does not divide the {context} ranks that share a video; "
            "choose a divisor, or set --context"
        )
    if world.world == 1:
        return ALONE
    shape = (world.world // (context * branch), branch, context)
    mesh = init_device_mesh(world.device.type, shape, mesh_dim_names=("team", "branch", "context"))
    leads = mesh.get_local_rank("branch") == mesh.get_local_rank("context") == 0
    group = arrangement = None
    if context > 1:
        group = world.context_group(context, degrees=None if ulysses is None else [ulysses])
        arrangement = arrange(group, ulysses, world.device, dtype)
    return Team(
        index=mesh.get_local_rank("team"),
        count=shape[0],
        leads=leads,
        leaders=mesh.get_group("team") if leads and shape[0] > 1 else None,
        branch=mesh.get_group("branch") if branch > 1 else None,
        context=group,
        arrangement=arrangement,
        text=text,
    )


def own_branches(group: Group | None, names: tuple[str, ...]) -> tuple[str, ...]:
    """The guidance branches that this rank evaluates."""
    if group is None:
        return names
    return names[dist.get_rank(group) :: dist.get_world_size(group)]


def gather_branches(
    group: Group | None, names: tuple[str, ...], mine: dict[str, Tensor], like: Tensor
) -> dict[str, Tensor]:
    """The velocities of all branches on every rank, bit for bit."""
    if group is None:
        return mine
    size = dist.get_world_size(group)
    found = {}
    for number, name in enumerate(names):
        velocity = mine[name].contiguous() if name in mine else torch.empty_like(like)
        dist.broadcast(as_bytes(velocity), group=group, group_src=number % size)
        found[name] = velocity
    return found
