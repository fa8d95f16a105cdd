"""What of the model is sharded, in which pieces, and how its tokens are split over ranks."""

from collections.abc import Callable

from torch import Tensor, nn

from vidgen.models.mmdit.model import MMDiT, Part
from vidgen.runtime.parallel.context import ContextGroup, TextPlan, split_tokens


def blocks(model: MMDiT) -> list[nn.Module]:
    """The modules to shard one by one, in the order they run.

    Each is gathered while it runs, the next one meanwhile. What lies around them (embedders and
    the final layer, 1 % of the 11B model) is sharded with the whole.
    """
    return [*model.double_blocks, *model.single_blocks]


def split_over(
    group: ContextGroup, degree: Callable[[int], int], text: TextPlan = "sharded"
) -> Callable[[int, int, int], Part]:
    """The seam by which a context group computes one sample together.

    Every rank gives the model the whole sample and gets all of the velocity. `degree` says, for a
    number of tokens, how many neighbours exchange heads (see `ContextGroup`).
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
