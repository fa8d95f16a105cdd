"""How vidgen counts floating-point operations.

Model FLOPs are those of the matrix products that a forward and a backward pass need; a multiply-add
counts as two. Each stream's tokens count for the weights they pass through, modulation counts once
per sample, and attention counts every query with every key it may attend to. Norms, activations,
rotations, softmax and recompute are not counted. MFU divides model FLOPs by the dense peak; HFU
includes recompute.

A backward pass needs two products for each forward one (the gradients of both factors). It counts
double everywhere, although the first projection needs no input gradient: less than 0.1 % of any
model here.
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
