"""How the model is sharded, and how its tokens are split over ranks."""

from collections.abc import Callable

from torch import Tensor, nn

from vidgen.models.mmdit.model import MMDiT, Part
from vidgen.runtime.parallel.context import ContextGroup, TextPlan, split_tokens


def blocks(model: MMDiT) -> list[nn.Module]:
    """The modules to shard individually, in execution order.

    Each is gathered for its computation while the next is prefetched. The rest (embedders and the
    final layer, 1 % of the 11B model) is sharded with the root module.
    """
    return [*model.double_blocks, *model.single_blocks]


def split_over(
    group: ContextGroup, degree: Callable[[int], int], text: TextPlan = "sharded"
) -> Callable[[int, int, int], Part]:
    """The seam that splits a sample over a context group.

    Every rank passes the whole sample to the model and receives the whole velocity. `degree` gives,
    for a number of tokens, how many neighbours exchange heads (see `ContextGroup`).
    """

    def split(batch: int, text_length: int, video_length: int) -> Part:
        group.agree("(batch, text tokens, video tokens)", (batch, text_length, video_length))
        plan = split_tokens(text_length, video_length, group.size, text)
        counts = plan.video_lengths

        def gather(part_BVD: Tensor) -> Tensor:
            return group.gather(part_BVD, counts)

        return Part(
            plan.text[group.rank],
            plan.video[group.rank],
            group.attention(plan, degree(text_length + video_length)),
            gather,
        )

    return split
