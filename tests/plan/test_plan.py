"""The planner against the report's tables, and against itself.

What is derived from what: the report gives no efficiency by our convention of FLOPs, so one row
of Table 5 (256px, 129 frames) and of Table 6 (768px, 129 frames) fixes it, with that row's batch.
Every other number of Table 5 below follows from FLOPs.

Table 3's GPU days are whole days times GPUs: 10 x 224, 2 x 192, 8 x 192, so its days are known to
half a day. Stage 3's follow from Table 6 alone: 7.5 days. Stage 1's do not follow from Table 5,
whose step of 7.5 s makes 7.4 days of 10: that factor of 1.35 is the input `goodput`. With it stage
2's follow: 1.5 days, a whole number of which is 2.
"""

from dataclasses import replace
from itertools import pairwise

import pytest

from vidgen.errors import UserError
from vidgen.models.mmdit.config import PRESETS
from vidgen.models.mmdit.flops import parameters
from vidgen.plan import network, plan
from vidgen.plan.batch_search import fits, search_batches, within
from vidgen.plan.blocks import block_parameters
from vidgen.plan.cost import (
    REPORT,
    REPORT_768PX,
    Efficiency,
    Memory,
    StepTime,
    efficiency_of,
    executed_flops,
    kept,
    mfu,
    step_time,
)
from vidgen.plan.cost import memory as memory_of
from vidgen.plan.encoders import Encoders
from vidgen.plan.planner import dollars
from vidgen.plan.workload import PlannedBucket, Workload
from vidgen.runtime.memory.block_memory import BlockMemory, arrange
from vidgen.runtime.observe.gpus import GPUS, Gpu, gpu_named

H200 = GPUS["h200"]
ENCODERS = Encoders("hunyuan_vae", "t5_clip", 512)

# Table 5: resolution, frames, side, batch; per second on 8 GPUs; how far off we may be.
TABLE_5 = (
    (PlannedBucket("256px", 33, 256, 12), 12.7, 0.10),
    (PlannedBucket("256px", 65, 256, 6), 6.3, 0.10),
    (PlannedBucket("256px", 97, 256, 4), 4.2, 0.10),
    (PlannedBucket("256px", 129, 256, 3), 3.2, 0.10),
    # Two thirds of its tokens are text: what is said a sample and not a token weighs more.
    (PlannedBucket("256px", 1, 256, 45), 47.6, 0.12),
    (PlannedBucket("768px", 1, 768, 13), 13.8, 0.10),
    (PlannedBucket("1024px", 1, 1024, 7), 7.4, 0.10),
)
LONGEST = TABLE_5[3][0]
NOTHING_AGAIN = arrange((19, 38), (0, 0), (0, 0))
EVERYTHING_AGAIN = arrange((19, 38), (19, 38), (0, 0))
STAGE_1 = Workload(
    model=PRESETS["opensora_v2_t2v"],
    buckets=tuple(row[0] for row in TABLE_5),
    encoders=ENCODERS,
    steps=85_000,
    blocks=arrange((19, 38), (8, 38), (0, 0)),
    ema=False,
)
LONGEST_768 = PlannedBucket("768px", 129, 768, 2)
STAGE_3 = Workload(
    model=PRESETS["opensora_v2"],
    buckets=(LONGEST_768, PlannedBucket("768px", 97, 768, 3)),
    encoders=ENCODERS,
    steps=13_000,
    context=4,
    blocks=arrange((19, 38), (19, 38), (0, 0), inputs_sent=True),
    ema=False,
)


def memory(workload: Workload, bucket: PlannedBucket, gpu: Gpu, gpus: int) -> Memory:
    return memory_of(workload, bucket, gpu, gpus, kept(workload, bucket, gpu, gpus, REPORT))


def taken(
    workload: Workload, bucket: PlannedBucket, gpu: Gpu, gpus: int, efficiency: Efficiency = REPORT
) -> StepTime:
    choice = kept(workload, bucket, gpu, gpus, efficiency)
    return step_time(workload, bucket, gpu, gpus, efficiency, choice)


def test_tokens_are_the_reports() -> None:
    video = [STAGE_1.tokens(b) - 512 for b in STAGE_1.buckets]
    assert video == [2304, 4352, 6400, 8448, 256, 2304, 4096]
    assert STAGE_3.tokens(LONGEST_768) - 512 == 76_032


def test_the_reports_efficiency_is_what_its_longest_rows_come_to() -> None:
    stage_1 = efficiency_of(STAGE_1, LONGEST, H200, STAGE_1.blocks or (), 3 * 8 / 3.2)
    assert stage_1.compute == pytest.approx(REPORT.compute, rel=0.005)
    assert mfu(STAGE_1, LONGEST, H200, 7.5) == pytest.approx(0.21, abs=0.005)
    stage_3 = efficiency_of(STAGE_3, LONGEST_768, H200, EVERYTHING_AGAIN, 2 * 2 / 0.08)
    assert stage_3.compute == pytest.approx(REPORT_768PX.compute, rel=0.005)
    assert mfu(STAGE_3, LONGEST_768, H200, 50) == pytest.approx(0.15, abs=0.006)


def test_batches_of_table_5_by_the_three_steps() -> None:
    found = search_batches(STAGE_1, H200, 224, REPORT, longest_batch=3)
    for ours, (report, _, _) in zip(found.buckets, TABLE_5, strict=True):
        assert abs(ours.batch - report.batch) <= max(1, 0.1 * report.batch), ours


@pytest.mark.parametrize(("bucket", "per_second", "tolerance"), TABLE_5)
def test_throughput_of_table_5(bucket: PlannedBucket, per_second: float, tolerance: float) -> None:
    time = taken(STAGE_1, bucket, H200, 8).total
    assert 8 * bucket.batch / time == pytest.approx(per_second, rel=tolerance)


def test_table_6_where_flops_decide() -> None:
    """The two longest rows; the shorter ones take far longer than their FLOPs would."""
    time = taken(STAGE_3, STAGE_3.buckets[1], H200, 8, REPORT_768PX).total
    assert 2 * 3 / time == pytest.approx(0.13, rel=0.1)


@pytest.mark.parametrize(("gpu_days", "kilodollars"), [(2240, 107.5), (384, 18.4), (1536, 73.7)])
def test_dollars_of_table_3(gpu_days: float, kilodollars: float) -> None:
    assert dollars(gpu_days, H200.dollars_per_hour or 0) / 1e3 == pytest.approx(
        kilodollars, abs=0.05
    )


def whole_days(gpu_days: float, gpus: int) -> int:
    """GPU days as Table 3 counts them."""
    return round(gpu_days / gpus) * gpus


def test_gpu_days_of_stage_3_follow_from_table_6() -> None:
    in_steps_only = plan(STAGE_3, H200, 192, replace(REPORT_768PX, goodput=1.0))
    assert in_steps_only.gpu_days == pytest.approx(1536, rel=0.1)
    assert whole_days(in_steps_only.gpu_days, 192) == 1536
    assert plan(STAGE_3, H200, 192, REPORT_768PX).gpu_days == pytest.approx(1536, rel=0.02)


def test_gpu_days_of_stage_1_need_its_goodput() -> None:
    found = plan(STAGE_1, "h200", 224)
    assert found.gpu_days == pytest.approx(2240, rel=0.1)
    assert found.dollars == pytest.approx(107_500, rel=0.1)
    by_table_5 = plan(STAGE_1, "h200", 224, replace(REPORT, goodput=1.0)).gpu_days
    assert 2240 / by_table_5 == pytest.approx(1.35, abs=0.03)


def test_gpu_days_of_stage_2_follow_from_stage_1s_pace_in_whole_days() -> None:
    found = plan(replace(STAGE_1, model=PRESETS["opensora_v2"], steps=13_000), "h200", 192)
    assert found.days == pytest.approx(1.54, abs=0.02)
    assert whole_days(found.gpu_days, 192) == 384
    # Any pace within stage 1's own rounding, 9.5 to 10.5 days, agrees but for its fastest end.
    assert [round(days / 85_000 * 13_000) for days in (9.9, 10, 10.5)] == [2, 2, 2]


# -- the model of memory and time --


def test_blocks_hold_nearly_all_weights() -> None:
    model = STAGE_1.model
    dual, single = block_parameters(STAGE_1)
    blocks = model.depth * dual + model.depth_single_blocks * single
    assert 0.99 < blocks / parameters(model) < 1.0


def test_recomputing_everything_is_one_more_forward_of_the_blocks() -> None:
    def backward(workload: Workload) -> float:
        return executed_flops(workload, LONGEST_768, workload.blocks or ())[2]

    forward = executed_flops(STAGE_3, LONGEST_768, EVERYTHING_AGAIN)[1]
    assert backward(replace(STAGE_3, blocks=NOTHING_AGAIN)) == pytest.approx(2 * forward)
    assert backward(STAGE_3) == pytest.approx(3 * forward, rel=1e-3)
    # In seconds too: products kept cost what lies between them.
    ways = (NOTHING_AGAIN, (BlockMemory.PRODUCTS,) * 57, EVERYTHING_AGAIN)
    times = [taken(replace(STAGE_3, blocks=blocks), LONGEST_768, H200, 192) for blocks in ways]
    assert times[2].backward / times[2].forward == pytest.approx(3, rel=1e-3)
    assert 2 < times[1].backward / times[1].forward < 2.05


@pytest.mark.parametrize(
    "thriftier",
    [
        replace(STAGE_1, blocks=EVERYTHING_AGAIN),
        replace(STAGE_1, blocks=None, model=PRESETS["tiny"]),
        replace(STAGE_1, tensor=2),
        replace(STAGE_1, state_bytes=2, ema=False),
        replace(STAGE_1, zero=3),
        replace(STAGE_1, context=2),
        replace(STAGE_1, encoders=Encoders("block_dct", "builtin", 512)),
    ],
)
def test_what_saves_memory_saves_memory(thriftier: Workload) -> None:
    here, there = (memory(w, LONGEST, H200, 8).total for w in (STAGE_1, thriftier))
    assert there < 0.97 * here


def test_shards_shrink_with_the_machine_but_whole_weights_do_not() -> None:
    small, large = (memory(STAGE_1, LONGEST, H200, n) for n in (8, 224))
    assert large.optimizer == pytest.approx(small.optimizer * 8 / 224)
    assert large.parameters > 2 * parameters(STAGE_1.model)


def test_the_reports_batches_fit_the_reports_gpus_and_not_80_gb() -> None:
    assert all(fits(STAGE_1, b, H200, 224, REPORT) for b in STAGE_1.buckets)
    # Users of the published stage 1 run out of memory on 80 GB.
    assert not fits(STAGE_1, LONGEST, GPUS["a100"], 80, REPORT)


def test_search_takes_the_largest_batch_that_is_allowed() -> None:
    found = search_batches(STAGE_1, H200, 224, REPORT)
    longest = next(b for b in found.buckets if b.frames == 129)
    assert fits(found, longest, H200, 224, REPORT)
    assert not fits(found, replace(longest, batch=longest.batch + 1), H200, 224, REPORT)
    limit = taken(found, longest, H200, 224)
    for bucket in found.buckets:
        more = replace(bucket, batch=bucket.batch + 1)
        assert within(taken(found, bucket, H200, 224), limit)
        assert not (
            fits(found, more, H200, 224, REPORT) and within(taken(found, more, H200, 224), limit)
        )


def test_nothing_fits() -> None:
    tight = replace(H200, memory=20e9)
    with pytest.raises(UserError, match=r"256px x 129: not even a batch of 1 fits; recompute"):
        search_batches(STAGE_1, tight, 8, REPORT)


def test_a_slow_network_shows_as_exposed_time() -> None:
    slow = replace(H200, network=H200.network / 100)
    fast_time, slow_time = (taken(STAGE_1, LONGEST, g, 224) for g in (H200, slow))
    assert fast_time.exposed == 0
    assert slow_time.exposed > 1
    assert slow_time.backward == fast_time.backward


def test_more_efficiency_less_time_and_more_gpus_more_clips() -> None:
    hours = [plan(STAGE_1, "h200", 224, Efficiency(compute=c)).days for c in (0.2, 0.4, 0.6)]
    assert all(a > b for a, b in pairwise(hours))
    rates = [plan(STAGE_1, "h200", n).rows[0].clips_per_s for n in (8, 16, 32)]
    assert rates[2] == pytest.approx(4 * rates[0], rel=0.01)


def test_gpus_must_divide_into_context_groups() -> None:
    with pytest.raises(
        UserError, match=r"context=4, tensor=1 and copies=1; the nearest that do are 8 and 12"
    ):
        plan(STAGE_3, "h200", 10)


def test_unknown_gpu() -> None:
    with pytest.raises(UserError, match=r"'h20' \(did you mean h200"):
        gpu_named("h20")
    assert gpu_named("H200") is H200


def test_no_price_is_not_a_price_of_zero() -> None:
    assert plan(STAGE_1, "b200", 8).dollars is None
    assert plan(STAGE_1, "b200", 8, dollars_per_hour=4).dollars == pytest.approx(
        plan(STAGE_1, "b200", 8).gpu_days * 96
    )


def test_what_is_sent_to_the_host_is_not_on_the_device() -> None:
    def activations(blocks: tuple[BlockMemory, ...]) -> float:
        return memory(replace(STAGE_1, blocks=blocks), LONGEST, H200, 224).activations

    sent = arrange((19, 38), (8, 38), (0, 0), inputs_sent=True)
    one_input = 2 * 3072 * 3 * STAGE_1.tokens(LONGEST)
    # Of 46 inputs two are on their way.
    assert activations(STAGE_1.blocks or ()) - activations(sent) == pytest.approx(44 * one_input)
    away = activations(arrange((19, 38), (0, 0), (19, 38)))
    assert away < 0.1 * activations(NOTHING_AGAIN)
    # What is left: two blocks on their way, and the one in the backward pass with its gradients.
    assert away == pytest.approx(4 * 21 * one_input)


# -- what blocks keep --


def sent_away(gpu: Gpu) -> StepTime:
    blocks = arrange((19, 38), (0, 0), (19, 38))
    return taken(replace(STAGE_1, blocks=blocks, host_bytes=1e15), LONGEST, gpu, 224)


def test_copies_that_nothing_hides_take_time() -> None:
    time = sent_away(H200)
    token_bytes = 2 * 3072 * 3 * STAGE_1.tokens(LONGEST)
    copy = token_bytes * (19 * 21 + 38 * 18) / 64e9
    rate = H200.flops * REPORT.compute
    in_blocks = time.forward - 3 * 2 * STAGE_1.tokens(LONGEST) * 64 * 3072 / rate  # about
    expected = max(0.0, copy - in_blocks) + max(0.0, copy - 2 * in_blocks)
    assert time.copies == pytest.approx(expected, rel=0.02)
    assert time.copies > 0.5
    assert time.total == pytest.approx(
        time.encode + time.forward + time.backward + time.exposed + time.copies
    )
    assert sent_away(replace(H200, host_link=1e15)).copies == 0


@pytest.mark.parametrize("workload", [STAGE_1, STAGE_3], ids=["stage1", "stage3"])
def test_the_open_choice_fits_and_takes_less_than_the_reports(workload: Workload) -> None:
    said, best = (plan(w, H200, 192) for w in (workload, replace(workload, blocks=None)))
    for ours, theirs in zip(best.rows, said.rows, strict=True):
        assert ours.fits
        assert ours.keeps.host <= workload.host_bytes
        assert ours.step_s <= theirs.step_s
        assert theirs.best == ours.keeps  # the plan of a recipe names what is better
        assert sum(ours.keeps.dual.values()) == 19
        assert sum(ours.keeps.single.values()) == 38
        assert ours.parts["activations"] == ours.keeps.activations
        assert sum(ours.parts.values()) == pytest.approx(ours.memory)
        assert ours.memory <= H200.memory
        assert theirs.keeps.recompute_s > ours.keeps.recompute_s


def test_more_memory_less_again_and_compiled_blocks_keep_no_products() -> None:
    large = replace(H200, memory=10 * H200.memory)
    row = plan(replace(STAGE_1, blocks=None), large, 192).rows[3]
    assert (row.keeps.dual, row.keeps.single) == ({"keep": 19}, {"keep": 38})
    compiled = plan(replace(STAGE_1, blocks=None, compiled=True), H200, 192)
    names = {name for row in compiled.rows for name in (*row.keeps.dual, *row.keeps.single)}
    assert not {name for name in names if "products" in name}


def test_an_open_choice_that_nothing_fits() -> None:
    tight = replace(STAGE_1, blocks=None)
    with pytest.raises(UserError, match=r"bucket 256px x 33: .* no choice of what to keep"):
        plan(tight, replace(H200, memory=40e9), 192)
    assert plan(STAGE_1, replace(H200, memory=40e9), 192).rows[0].best is None


# -- many GPUs --


def test_a_ring_over_thousands_of_gpus_is_bound_by_its_hops() -> None:
    def gather(gpus: int, calls: int = 57) -> float:
        return network.gather_s(H200, gpus, 24e9, calls)

    assert gather(1) == 0
    assert gather(8) == pytest.approx(24e9 * 7 / 8 / 450e9, rel=0.1)
    assert gather(224) == pytest.approx(24e9 / 50e9, rel=0.15)
    # Its bytes take what they took; 9,999 hops for each block's gather come on top.
    hops = 8750 * 3.4e-6 + 1249 * 14e-6 + 8.4e-6
    assert gather(10_000) == pytest.approx(24e9 / 50e9 + 57 * hops, rel=0.01)
    assert network.all_reduce_s(H200, 1, 8, 1e9, 1) == 0
    assert network.all_reduce_s(H200, 1024, 8192, 1e9, 1) == pytest.approx(0.04, rel=0.02)


def test_hybrid_sharding_pays_off_where_gathers_are_bound_by_hops() -> None:
    whole, hybrid = (
        taken(replace(STAGE_1, copies=copies), LONGEST, H200, 10_000) for copies in (1, 1250)
    )
    assert whole.exposed > 1
    assert hybrid.exposed == 0
    # At the price of an eighth of everything instead of a ten-thousandth.
    parts = [memory(replace(STAGE_1, copies=copies), LONGEST, H200, 10_000) for copies in (1, 1250)]
    assert parts[1].optimizer == pytest.approx(1250 * parts[0].optimizer)
    with pytest.raises(UserError, match="copies=1250; the nearest that do are 8750 and 10000"):
        plan(replace(STAGE_1, copies=1250), H200, 9_999)


def test_the_plan_says_which_hybrid_sharding_takes_less() -> None:
    lean = replace(STAGE_1, blocks=EVERYTHING_AGAIN)
    found = plan(lean, H200, 10_000)
    assert found.better_copies is not None
    assert found.better_copies_s is not None
    assert found.better_copies_s < 0.95 * found.iteration_s
    taken_up = plan(replace(lean, copies=found.better_copies), H200, 10_000)
    assert taken_up.iteration_s == pytest.approx(found.better_copies_s)
    assert all(row.fits for row in taken_up.rows)
    assert plan(STAGE_1, H200, 224).better_copies is None  # gathers hide there


def test_accumulating_reduces_once_and_keeps_gradients_whole() -> None:
    slow = replace(H200, network=H200.network / 50)
    once, four = (taken(replace(STAGE_1, accumulate=n), LONGEST, slow, 224).exposed for n in (1, 4))
    assert four < once
    more = memory(replace(STAGE_1, accumulate=4), LONGEST, H200, 224).gradients
    assert more > 4 * parameters(STAGE_1.model)


def test_tensor_parallelism_divides_work_and_adds_up_what_nothing_hides() -> None:
    one, two = (taken(replace(STAGE_1, tensor=n), LONGEST, H200, 224) for n in (1, 2))
    assert two.forward == pytest.approx(one.forward / 2)
    tokens = 3 * STAGE_1.tokens(LONGEST)
    sent = 8 * 19 + 4 * 38  # of (P - 1) / P of a tensor of the width, by docs/parallel.md
    assert two.exposed == pytest.approx(sent / 2 * tokens * 3072 * 2 / 450e9, rel=0.05)
