"""The planner against the report's tables, and against itself.

What is derived from what: the report gives no efficiency by our convention of FLOPs, so one row
of Table 5 (256px, 129 frames) and of Table 6 (768px, 129 frames) fixes it, with that row's batch.
Every other number of Table 5 below follows from FLOPs. Table 3's dollars follow from its GPU
days, and stage 3's GPU days from Table 6. Stage 1 and 2 do not follow from Table 5: its step of
7.5 s would make 1653 and 217 GPU days of 2240 and 384. That gap is an input, `goodput`.
"""

from dataclasses import replace
from itertools import pairwise
from typing import Any

import pytest

from vidgen.errors import UserError
from vidgen.models.mmdit.config import PRESETS
from vidgen.models.mmdit.flops import parameters
from vidgen.plan import plan
from vidgen.plan.batch_search import fits, search_batches, within
from vidgen.plan.cost import (
    REPORT,
    REPORT_768PX,
    Efficiency,
    block_parameters,
    efficiency_of,
    executed_flops,
    memory,
    mfu,
    step_time,
)
from vidgen.plan.encoders import Encoders
from vidgen.plan.hardware import GPUS, gpu_named
from vidgen.plan.planner import dollars
from vidgen.plan.workload import Bucket, Workload

H200 = GPUS["h200"]
ENCODERS = Encoders("hunyuan_vae", "t5_clip", 512)

# Table 5: resolution, frames, side, batch; per second on 8 GPUs; how far off we may be.
TABLE_5 = (
    (Bucket("256px", 33, 256, 12), 12.7, 0.10),
    (Bucket("256px", 65, 256, 6), 6.3, 0.10),
    (Bucket("256px", 97, 256, 4), 4.2, 0.10),
    (Bucket("256px", 129, 256, 3), 3.2, 0.10),
    # Two thirds of its tokens are text: what is said a sample and not a token weighs more.
    (Bucket("256px", 1, 256, 45), 47.6, 0.12),
    (Bucket("768px", 1, 768, 13), 13.8, 0.10),
    (Bucket("1024px", 1, 1024, 7), 7.4, 0.10),
)
LONGEST = TABLE_5[3][0]
STAGE_1 = Workload(
    model=PRESETS["opensora_v2_t2v"],
    buckets=tuple(row[0] for row in TABLE_5),
    encoders=ENCODERS,
    steps=85_000,
    recompute_dual=8,
    recompute_single=38,
    ema=False,
)
LONGEST_768 = Bucket("768px", 129, 768, 2)
STAGE_3 = Workload(
    model=PRESETS["opensora_v2"],
    buckets=(LONGEST_768, Bucket("768px", 97, 768, 3)),
    encoders=ENCODERS,
    steps=13_000,
    context=4,
    recompute_dual=19,
    recompute_single=38,
    ema=False,
)


def test_tokens_are_the_reports() -> None:
    video = [STAGE_1.tokens(b) - 512 for b in STAGE_1.buckets]
    assert video == [2304, 4352, 6400, 8448, 256, 2304, 4096]
    assert STAGE_3.tokens(LONGEST_768) - 512 == 76_032


def test_the_reports_efficiency_is_what_its_longest_rows_come_to() -> None:
    stage_1 = efficiency_of(STAGE_1, LONGEST, H200, 8, seconds=3 * 8 / 3.2)
    assert stage_1.compute == pytest.approx(REPORT.compute, rel=0.005)
    assert mfu(STAGE_1, LONGEST, H200, 7.5) == pytest.approx(0.21, abs=0.005)
    stage_3 = efficiency_of(STAGE_3, LONGEST_768, H200, 8, seconds=2 * 2 / 0.08)
    assert stage_3.compute == pytest.approx(REPORT_768PX.compute, rel=0.005)
    assert mfu(STAGE_3, LONGEST_768, H200, 50) == pytest.approx(0.15, abs=0.006)


def test_batches_of_table_5_by_the_three_steps() -> None:
    found = search_batches(STAGE_1, H200, 8, REPORT, longest_batch=3)
    for ours, (report, _, _) in zip(found.buckets, TABLE_5, strict=True):
        assert abs(ours.batch - report.batch) <= max(1, 0.1 * report.batch), ours


@pytest.mark.parametrize(("bucket", "per_second", "tolerance"), TABLE_5)
def test_throughput_of_table_5(bucket: Bucket, per_second: float, tolerance: float) -> None:
    time = step_time(STAGE_1, bucket, H200, 8, REPORT).total
    assert 8 * bucket.batch / time == pytest.approx(per_second, rel=tolerance)


def test_table_6_where_flops_decide() -> None:
    """The two longest rows; the shorter ones take far longer than their FLOPs would."""
    time = step_time(STAGE_3, STAGE_3.buckets[1], H200, 8, REPORT_768PX).total
    assert 2 * 3 / time == pytest.approx(0.13, rel=0.1)


@pytest.mark.parametrize(("gpu_days", "kilodollars"), [(2240, 107.5), (384, 18.4), (1536, 73.7)])
def test_dollars_of_table_3(gpu_days: float, kilodollars: float) -> None:
    assert dollars(gpu_days, H200.dollars_per_hour or 0) / 1e3 == pytest.approx(
        kilodollars, abs=0.05
    )


def test_gpu_days_of_stage_3_follow_from_table_6() -> None:
    in_steps_only = plan(STAGE_3, H200, 192, replace(REPORT_768PX, goodput=1.0))
    assert in_steps_only.gpu_days == pytest.approx(1536, rel=0.1)
    assert plan(STAGE_3, H200, 192, REPORT_768PX).gpu_days == pytest.approx(1536, rel=0.02)


def test_gpu_days_of_stage_1_need_its_goodput() -> None:
    found = plan(STAGE_1, "h200", 224)
    assert found.gpu_days == pytest.approx(2240, rel=0.1)
    assert found.dollars == pytest.approx(107_500, rel=0.1)
    assert plan(STAGE_1, "h200", 224, replace(REPORT, goodput=1.0)).gpu_days < 0.8 * 2240


# -- the model of memory and time --


def test_blocks_hold_nearly_all_weights() -> None:
    model = STAGE_1.model
    dual, single = block_parameters(STAGE_1)
    blocks = model.depth * dual + model.depth_single_blocks * single
    assert 0.99 < blocks / parameters(model) < 1.0


def test_recomputing_everything_is_one_more_forward_of_the_blocks() -> None:
    def backward(workload: Workload) -> float:
        return executed_flops(workload, LONGEST_768)[2]

    forward = executed_flops(STAGE_3, LONGEST_768)[1]
    none = replace(STAGE_3, recompute_dual=0, recompute_single=0)
    assert backward(none) == pytest.approx(2 * forward)
    assert backward(STAGE_3) == pytest.approx(3 * forward, rel=1e-3)


@pytest.mark.parametrize(
    "thriftier",
    [
        replace(STAGE_1, recompute_dual=19),
        replace(STAGE_1, zero=3),
        replace(STAGE_1, context=2),
        replace(STAGE_1, model=PRESETS["tiny"]),
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
    assert all(fits(STAGE_1, b, H200, 224) for b in STAGE_1.buckets)
    # Users of the published stage 1 run out of memory on 80 GB.
    assert not fits(STAGE_1, LONGEST, GPUS["a100"], 80)


def test_search_takes_the_largest_batch_that_is_allowed() -> None:
    found = search_batches(STAGE_1, H200, 224, REPORT)
    longest = next(b for b in found.buckets if b.frames == 129)
    assert fits(found, longest, H200, 224)
    assert not fits(found, replace(longest, batch=longest.batch + 1), H200, 224)
    limit = step_time(found, longest, H200, 224, REPORT)
    for bucket in found.buckets:
        more = replace(bucket, batch=bucket.batch + 1)
        assert within(step_time(found, bucket, H200, 224, REPORT), limit)
        assert not (
            fits(found, more, H200, 224)
            and within(step_time(found, more, H200, 224, REPORT), limit)
        )


def test_nothing_fits() -> None:
    tight = replace(H200, memory=20e9)
    with pytest.raises(UserError, match=r"256px x 129: not even a batch of 1 fits; recompute"):
        search_batches(STAGE_1, tight, 8, REPORT)


def test_a_slow_network_shows_as_exposed_time() -> None:
    slow = replace(H200, network=H200.network / 100)
    fast_time, slow_time = (step_time(STAGE_1, LONGEST, g, 224, REPORT) for g in (H200, slow))
    assert fast_time.exposed == 0
    assert slow_time.exposed > 1
    assert slow_time.backward == fast_time.backward


def test_more_efficiency_less_time_and_more_gpus_more_clips() -> None:
    hours = [plan(STAGE_1, "h200", 224, Efficiency(compute=c)).days for c in (0.2, 0.4, 0.6)]
    assert all(a > b for a, b in pairwise(hours))
    rates = [plan(STAGE_1, "h200", n).rows[0].clips_per_s for n in (8, 16, 32)]
    assert rates[2] == pytest.approx(4 * rates[0], rel=0.01)


def test_gpus_must_divide_into_context_groups() -> None:
    with pytest.raises(UserError, match=r"parallel\.context=4; the next that do are 12"):
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


def test_peaks_agree_with_those_of_mfu() -> None:
    torch = pytest.importorskip("torch")
    observe = pytest.importorskip("vidgen.runtime.observe.mfu")
    for gpu in GPUS.values():
        assert observe.known_peak(f"NVIDIA {gpu.name.upper()}", torch.bfloat16) == gpu.flops


def test_what_is_sent_to_the_host_is_not_on_the_device() -> None:
    def activations(**changes: Any) -> float:
        return memory(replace(STAGE_1, **changes), LONGEST, H200, 8).activations

    inputs = activations() - activations(offload_inputs=True)
    recomputed = STAGE_1.recompute_dual + STAGE_1.recompute_single
    assert inputs > 0
    everything = {"recompute_dual": 0, "recompute_single": 0}
    away = activations(**everything, offload_dual=99, offload_single=99)
    kept = activations(**everything)
    assert away < 0.1 * kept
    one_input = inputs / recomputed
    # What is left: two blocks on their way, and the one in the backward pass with its gradients.
    assert away == pytest.approx(4 * 21 * one_input)
