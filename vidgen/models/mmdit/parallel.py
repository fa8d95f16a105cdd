"""What of the model is sharded, and in which pieces."""

from torch import nn

from vidgen.models.mmdit.model import MMDiT


def blocks(model: MMDiT) -> list[nn.Module]:
    """The modules to shard one by one, in the order they run.

    Each is gathered while it runs, the next one meanwhile. What lies around them (embedders and
    the final layer, 1 % of the 11B model) is sharded with the whole.
    """
    return [*model.double_blocks, *model.single_blocks]
