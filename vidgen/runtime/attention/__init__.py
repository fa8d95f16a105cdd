"""Non-causal attention over a table of backends, and the merge that rings and splits need."""

from vidgen.runtime.attention.api import attention, backends
from vidgen.runtime.attention.choice import agree
from vidgen.runtime.attention.mask import BlockMask
from vidgen.runtime.ops.merge import merge, merge_

__all__ = ["attention", "merge", "merge_", "backends", "agree", "BlockMask"]
