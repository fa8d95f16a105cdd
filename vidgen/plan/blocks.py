"""What a model's blocks keep for the backward pass, and which way of keeping costs least."""

from vidgen.errors import UserError
from vidgen.plan.workload import PlannedBucket, Workload
from vidgen.runtime.memory.block_memory import BlockCost, BlockMemory, Choice, choose_blocks, weigh
from vidgen.runtime.observe.gpus import Gpu

BF16 = 2


class NothingFits(UserError):
    """Whatever the blocks keep, memory is short."""


def block_parameters(workload: Workload) -> tuple[int, int]:
    """Weights of one dual-stream and one single-stream block; biases and norms left out."""
    width, hidden = workload.model.hidden_size, workload.model.mlp_hidden
    dual = 2 * (4 * width**2 + 2 * width * hidden + 6 * width**2)
    single = width * (3 * width + hidden) + (width + hidden) * width + 3 * width**2
    return dual, single


def activation_widths(workload: Workload) -> tuple[float, float]:
    """Values a token leaves behind in a dual and a single block, in units of the model's width.

    Dual: input, modulated input, projection out, residual, modulated again, MLP out; and, of the
    heads and hidden values that tensor parallelism divides, qkv 3, joint q k v 3, attention out,
    the MLP's hidden values before and after GELU. Single: input, modulated input, block out; and
    qkv 3, rotated q k 2, attention out and its copy beside the MLP, hidden values twice.
    """
    ratio, ways = workload.model.mlp_ratio, workload.tensor
    return 6 + (7 + 2 * ratio) / ways, 3 + (7 + 2 * ratio) / ways


def product_widths(workload: Workload) -> tuple[float, float]:
    """The same of inputs, matrix products and attention alone."""
    ratio, ways = workload.model.mlp_ratio, workload.tensor
    return 3 + (4 + ratio) / ways, 2 + (4 + ratio) / ways


def block_flops(workload: Workload, tokens: float, attended: float) -> float:
    """Forward, of `tokens` that each attend to `attended`; a token passes one stream of a dual
    block, so both kinds cost the same."""
    width = workload.model.hidden_size
    return tokens * (2 * (4 + 2 * workload.model.mlp_ratio) * width**2 + 4 * attended * width)


def block_costs(
    workload: Workload, tokens: float, attended: float, gpu: Gpu, rate: float
) -> list[BlockCost]:
    """Of each block in order, on one GPU at `rate` FLOP/s; `tokens` are its whole batch's."""
    token_bytes = BF16 * workload.model.hidden_size * tokens
    forward = block_flops(workload, tokens, attended) / workload.tensor / rate
    kinds = []
    for everything, products in zip(
        activation_widths(workload), product_widths(workload), strict=True
    ):
        # What is not a product is read and written once.
        cheap = 2 * (everything - products) * token_bytes / gpu.memory_bandwidth
        kinds.append(
            BlockCost(
                forward_s=forward,
                cheap_s=cheap,
                input_bytes=round(token_bytes),
                product_bytes=round(products * token_bytes),
                all_bytes=round(everything * token_bytes),
            )
        )
    model = workload.model
    return [kinds[0]] * model.depth + [kinds[1]] * model.depth_single_blocks


def working_bytes(workload: Workload, tokens: float) -> float:
    """The block in the backward pass holds its activations and about as much in gradients."""
    return 2 * max(activation_widths(workload)) * BF16 * workload.model.hidden_size * tokens


def in_flight_bytes(workload: Workload, tokens: float, blocks: tuple[BlockMemory, ...]) -> float:
    """What blocks sent to the host have on the device while the next ones run: two at a time."""
    widths = {
        BlockMemory.OFFLOAD: max(activation_widths(workload)),
        BlockMemory.OFFLOAD_PRODUCTS: max(product_widths(workload)),
        BlockMemory.OFFLOAD_INPUTS: 1.0,
    }
    largest = max((widths[how] for how in set(blocks) if how.offloads), default=0.0)
    return 2 * largest * BF16 * workload.model.hidden_size * tokens


def keeping(
    workload: Workload, tokens: float, attended: float, gpu: Gpu, rate: float, room: float
) -> Choice:
    """As the workload says; where it leaves the choice open, what adds least to a step.

    `room` is the device's memory for activations: what weights, encoders and reserve leave.
    Raises NothingFits where no choice does.
    """
    costs = block_costs(workload, tokens, attended, gpu, rate)
    if workload.blocks is not None:
        return weigh(costs, workload.blocks, gpu.host_link)
    able = [how for how in BlockMemory if not (workload.compiled and how.keeps_products)]
    room -= working_bytes(workload, tokens)
    # Sending away what is kept needs room for what is on its way: each kind is tried alone.
    tries = [
        [how for how in able if not how.offloads],
        *([*(h for h in able if not h.offloads), how] for how in able if how.offloads),
    ]
    found = []
    for allowed in tries:
        sent = tuple(how for how in allowed if how.offloads)
        try:
            choice = choose_blocks(
                costs,
                device_limit=room - in_flight_bytes(workload, tokens, sent),
                host_limit=workload.host_bytes,
                bytes_per_s=gpu.host_link,
                allowed=allowed,
            )
        except ValueError:
            continue
        found.append(choice)
    if not found:
        raise NothingFits(
            f"{tokens:.0f} tokens on {gpu.name}: no choice of what to keep, recompute and offload "
            "fits; share a sample over more GPUs (parallel.context), use parallel.zero=3, smaller "
            "batches or a larger offload.host_gb"
        )
    return min(found, key=lambda choice: choice.added_s)


def local_tokens(workload: Workload, bucket: PlannedBucket) -> float:
    """Of a batch, on one of the GPUs that share it."""
    return workload.tokens(bucket) * bucket.batch / workload.context
