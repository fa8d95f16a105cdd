"""The convention by which vidgen counts floating-point operations, all of it, in one place.

Model FLOPs are those of the matrix products that a forward and a backward pass need, a multiply
and an add counting two. Each stream's tokens count through the weights they pass through, and
modulation once a sample. Attention counts every query with every key it may see. Norms,
activations, rotations and softmax count nothing, and neither does recompute: what is computed
twice was needed once. MFU divides model FLOPs by the dense peak; HFU counts
recompute too.

A backward pass needs two products for each one forward (gradients of both factors). It counts
double everywhere, though the very first projection needs no gradient of its input: that is
under a thousandth of any model here.
"""


def linear_flops(tokens: int, d_in: int, d_out: int) -> int:
    """Forward FLOPs of a (tokens, d_in) x (d_in, d_out) product; bias is not a product."""
    return 2 * tokens * d_in * d_out


def attention_flops(q_len: int, kv_len: int, width: int) -> int:
    """Forward FLOPs of one sample's attention, scores and mix; width is heads x head_dim."""
    return 4 * q_len * kv_len * width


def training_flops(forward: int) -> int:
    """Model FLOPs of a forward and a backward pass, given those of the forward pass."""
    return 3 * forward
