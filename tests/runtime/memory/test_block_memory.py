import itertools
import random
from dataclasses import replace

import pytest

from vidgen.runtime.memory.block_memory import (
    BlockCost,
    BlockMemory,
    Choice,
    arrange,
    choose_blocks,
    weigh,
)

BLOCK = BlockCost(forward_s=10e-3, cheap_s=0.5e-3, input_bytes=10, product_bytes=110, all_bytes=200)
FAST = 200 / 5e-3  # a block's activations in half its forward pass


def pick(count: int, device: int, **changes: float) -> Choice:
    options = {"host_limit": 10**9, "bytes_per_s": FAST} | changes
    return choose_blocks([BLOCK] * count, device_limit=device, **options)  # type: ignore[arg-type]


def test_with_room_everything_is_kept() -> None:
    found = pick(6, 1200)
    assert set(found.blocks) == {BlockMemory.KEEP}
    assert (found.device_bytes, found.host_bytes, found.added_s) == (1200, 0, 0)


def test_a_fast_copy_makes_offloading_free() -> None:
    found = pick(6, 500)
    assert found.device_bytes <= 500
    assert found.added_s == 0
    assert set(found.blocks) == {BlockMemory.KEEP, BlockMemory.OFFLOAD}


def test_a_slow_copy_leaves_computing_again() -> None:
    found = pick(6, 400, bytes_per_s=1.0)
    assert found.host_bytes == 0
    assert found.device_bytes <= 400
    assert BlockMemory.RECOMPUTE in found.blocks


def test_between_them_products_are_kept_and_some_sent_away() -> None:
    """A copy that hides half of everything: the cheap half is computed again."""
    found = pick(8, 300, bytes_per_s=110 / 10e-3)
    assert found.device_bytes <= 300
    assert BlockMemory.OFFLOAD_PRODUCTS in found.blocks
    assert found.added_s < 8 * 10e-3 / 3


def test_the_host_has_a_limit_too() -> None:
    found = pick(6, 900, host_limit=150)
    assert found.host_bytes <= 150
    assert found.device_bytes <= 900


def test_the_last_block_keeps_everything() -> None:
    assert pick(3, 220).blocks[-1] is BlockMemory.KEEP
    with pytest.raises(ValueError, match="no policy fits, the least found is 200"):
        pick(3, 199)


def test_close_to_the_best_of_all_choices() -> None:
    rng = random.Random(0)
    ratios = []
    for _ in range(25):
        costs = []
        for _ in range(3):
            full = rng.randint(50, 300)
            costs.append(
                replace(
                    BLOCK,
                    all_bytes=full,
                    product_bytes=full // 2,
                    input_bytes=full // 20,
                    forward_s=rng.uniform(5e-3, 20e-3),
                )
            )
        costs.append(BLOCK)
        total = sum(cost.all_bytes for cost in costs)
        limit, rate = rng.randint(total // 2, total), rng.uniform(5e3, 4e4)
        ways = itertools.product(BlockMemory, repeat=3)
        weighed = (weigh(costs, [*way, BlockMemory.KEEP], rate) for way in ways)
        best = min(found.added_s for found in weighed if found.device_bytes <= limit)
        found = choose_blocks(costs, device_limit=limit, host_limit=10**9, bytes_per_s=rate)
        assert found.device_bytes <= limit
        assert found.added_s >= best - 1e-12
        ratios.append((found.added_s - best) / sum(cost.forward_s for cost in costs))
    assert sum(ratios) / len(ratios) < 0.02  # of a forward pass
    assert max(ratios) < 0.15


def test_ways_that_cannot_run_are_not_chosen() -> None:
    ways = [how for how in BlockMemory if not how.keeps_products]
    found = choose_blocks(
        [BLOCK] * 8, device_limit=300, host_limit=10**9, bytes_per_s=110 / 10e-3, allowed=ways
    )
    assert found.device_bytes <= 300
    assert not any(how.keeps_products for how in found.blocks)


def test_what_a_policy_adds_is_computing_again_and_copies_that_are_late() -> None:
    ways = [BlockMemory.RECOMPUTE, BlockMemory.OFFLOAD, BlockMemory.PRODUCTS, BlockMemory.KEEP]
    found = weigh([BLOCK] * 4, ways, bytes_per_s=200 / 100e-3)
    assert (found.device_bytes, found.host_bytes) == (10 + 110 + 200, 200)
    assert found.again_s == pytest.approx(10e-3 + 0.5e-3)
    # 100 ms out beside 40 ms forward, back beside 80 ms backward and what is computed again.
    assert found.late_s == pytest.approx(60e-3 + (100 - 80 - 10.5) * 1e-3)
    assert found.added_s == found.again_s + found.late_s


def test_blocks_are_arranged_kind_by_kind() -> None:
    names = [how.value for how in arrange((2, 4), (1, 9), (1, 0))]
    assert names == ["recompute", "offload", *["recompute"] * 4]
    names = [h.value for h in arrange((1, 3), (0, 1), (1, 1), inputs_sent=True, products=True)]
    assert names == ["offload products", "offload inputs", "offload products", "keep"]
