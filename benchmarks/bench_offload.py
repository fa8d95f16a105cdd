"""Forward and backward of full-width blocks under every memory policy, and its peers.

    python benchmarks/bench_offload.py           # --short: few blocks; without a GPU small ones

For each policy: step time, activations on the device after the forward pass and at the peak, what
was copied, how much of the copying ran beside kernels (from a trace), and pinned allocations and
synchronising calls in the steps measured. `chosen` is what `policy.choose` makes of the measured
block times, bytes and copy bandwidth when the activations may take 40 % of what they take plainly.
"""

import argparse
import gc
import statistics
import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.graph import save_on_cpu, saved_tensors_hooks

from vidgen.models.mmdit import PRESETS, MMDiTConfig
from vidgen.models.mmdit.model import Context, DualStreamBlock, SingleStreamBlock
from vidgen.runtime import native
from vidgen.runtime.attention import attention
from vidgen.runtime.memory import Arena, Lane
from vidgen.runtime.memory.block_memory import BlockCost, BlockMemory, choose, run_block
from vidgen.runtime.memory.offload import Offloader
from vidgen.runtime.memory.products import keep_products
from vidgen.runtime.observe import hardware, results

TEXT = 512
Runner = Callable[[int, nn.Module, Callable[..., Any], tuple[Tensor, ...]], Any]


@dataclass
class Problem:
    """Blocks of the model in a row, on random tokens."""

    config: MMDiTConfig
    dual: int
    single: int
    tokens: int
    device: torch.device
    dtype: torch.dtype

    def __post_init__(self) -> None:
        torch.manual_seed(0)
        text = min(TEXT, self.tokens)
        with torch.device(self.device):
            self.blocks = nn.ModuleList(
                [DualStreamBlock(self.config) for _ in range(self.dual)]
                + [SingleStreamBlock(self.config) for _ in range(self.single)]
            ).to(self.dtype)
            angles = torch.rand(text + self.tokens, self.config.head_dim // 2)
            width = self.config.hidden_size
            self.context = Context(
                torch.randn(1, width, dtype=self.dtype), angles.cos(), angles.sin(), attention
            )
            self.text = torch.randn(1, text, width, dtype=self.dtype, requires_grad=True)
            self.video = torch.randn(1, self.tokens, width, dtype=self.dtype, requires_grad=True)

    def forward(self, run: Runner) -> Tensor:
        stream: tuple[Tensor, ...] = (self.text, self.video)
        for index, block in enumerate(self.blocks):
            if index == self.dual:
                stream = (torch.cat(stream, dim=1),)

            def call(*tensors: Tensor, block: nn.Module = block) -> Any:
                return block(*tensors, self.context)

            stream = run(index, block, call, stream)
        return stream[0]

    def settle(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)


def plainly(index: int, block: nn.Module, call: Callable[..., Any], stream: Any) -> Any:
    return call(*stream)


def by(policies: list[BlockMemory], offloader: Offloader | None) -> Runner:
    def run(index: int, block: nn.Module, call: Callable[..., Any], stream: Any) -> Any:
        return run_block(policies[index], offloader, block, call, *stream)

    return run


# What is measured -------------------------------------------------------------------------------


def measure(
    problem: Problem, run: Runner, around: Callable[[], AbstractContextManager[Any]], rounds: int
) -> dict[str, Any]:
    device, cuda = problem.device, problem.device.type == "cuda"
    held = peak = 0

    def step() -> None:
        nonlocal held, peak
        before = torch.cuda.memory_allocated(device) if cuda else 0
        if cuda:
            torch.cuda.reset_peak_memory_stats(device)
        with around():
            out = problem.forward(run)
        if cuda:
            problem.settle()
            held = torch.cuda.memory_allocated(device) - before
        out.backward(torch.ones_like(out))
        if cuda:
            peak = torch.cuda.max_memory_allocated(device) - before

    for _ in range(2):  # gradients are there from now on, and pinned memory
        step()
    pinned = pinned_allocations(cuda)
    seconds = []
    for _ in range(rounds):
        problem.settle()
        start = time.perf_counter()
        with around():
            out = problem.forward(run)
        out.backward(torch.ones_like(out))
        problem.settle()
        seconds.append(time.perf_counter() - start)
    row: dict[str, Any] = {
        "ms": statistics.median(seconds) * 1e3,
        "pinned_allocations": pinned_allocations(cuda) - pinned,
    }
    if cuda:
        row |= {"held_gb": held / 1e9, "peak_gb": peak / 1e9} | traced(problem, run, around)
    return row


def pinned_allocations(cuda: bool) -> int:
    """Of torch and of arenas, since the process began."""
    if not cuda:
        return 0
    ours: int = native.require().memory.registrations()
    return ours + int(torch.cuda.host_memory_stats().get("num_host_alloc", 0))


def traced(problem: Problem, run: Runner, around: Any) -> dict[str, Any]:
    """One step: how much of the copying between host and device lay beside kernels."""
    activities = [torch.profiler.ProfilerActivity.CPU, torch.profiler.ProfilerActivity.CUDA]
    with torch.profiler.profile(activities=activities) as profile:
        with around():
            out = problem.forward(run)
        out.backward(torch.ones_like(out))
        problem.settle()
    kernels, moved, synchronising = [], [], -1  # one is our own at the end
    for event in profile.events():
        span = (event.time_range.start, event.time_range.end)
        if event.name.startswith("Memcpy") and ("HtoD" in event.name or "DtoH" in event.name):
            moved.append(span)
        elif event.device_type == torch.autograd.DeviceType.CUDA and span[1] > span[0]:
            kernels.append(span)
        synchronising += "Synchronize" in event.name
    total = sum(end - start for start, end in moved)
    return {
        "copies_ms": total / 1e3,
        "copies_hidden": beside(moved, kernels) / total if total else None,
        "synchronising_calls": synchronising,
    }


def beside(spans: list[tuple[float, float]], others: list[tuple[float, float]]) -> float:
    """How much of `spans` lies within the union of `others`."""
    union: list[list[float]] = []
    for start, end in sorted(others):
        if union and start <= union[-1][1]:
            union[-1][1] = max(union[-1][1], end)
        else:
            union.append([start, end])
    return sum(
        max(0.0, min(end, other[1]) - max(start, other[0]))
        for start, end in spans
        for other in union
    )


def cost_of(problem: Problem, index: int) -> BlockCost:
    """Times and bytes of one block, measured."""
    block = problem.blocks[index]
    own = {p.untyped_storage()._cdata for p in block.parameters()}
    if index < problem.dual:
        stream: tuple[Tensor, ...] = (problem.text, problem.video)
    else:
        stream = (torch.cat((problem.text, problem.video), dim=1).detach().requires_grad_(),)

    def call(*tensors: Tensor) -> Any:
        return block(*tensors, problem.context)

    def saved_bytes(run: Callable[[Callable[[Tensor], Tensor]], Any]) -> int:
        found: dict[int, int] = {}
        alive = []

        def pack(tensor: Tensor) -> Tensor:
            storage = tensor.untyped_storage()
            if storage._cdata not in own:
                found[storage._cdata] = storage.nbytes()
                alive.append(storage)  # or its number is given to another one
            return tensor

        with saved_tensors_hooks(pack, lambda tensor: tensor):
            run(pack)
        return sum(found.values())

    def seconds(run: Callable[[], Any]) -> float:
        return hardware.best_time(run, problem.device, 3)

    def both(run: Callable[[], Any]) -> None:
        outs = run()
        torch.autograd.backward(outs, [torch.ones_like(out) for out in outs])

    plain = seconds(lambda: both(lambda: call(*stream)))
    again = seconds(lambda: both(lambda: keep_products(call, *stream)))
    return BlockCost(
        forward_s=seconds(lambda: call(*stream)),
        cheap_s=max(again - plain, 0.0),
        input_bytes=sum(tensor.nbytes for tensor in stream),
        product_bytes=saved_bytes(lambda pack: keep_products(call, *stream, pack=pack)),
        all_bytes=saved_bytes(lambda pack: call(*stream)),
    )


def copy_bytes_per_s(device: torch.device) -> float:
    if device.type == "cpu":
        return hardware.memory_bandwidth() / 2
    rates = hardware.device_bandwidth()
    return min(rates["host to device"], rates["device to host"])


# What is compared -------------------------------------------------------------------------------


def compare(
    problem: Problem, rounds: int, tell: Callable[[list[dict[str, Any]]], None]
) -> list[dict[str, Any]]:
    """A row a policy; `tell` is given all rows whenever there is one more."""
    count = problem.dual + problem.single
    kinds = [cost_of(problem, 0), cost_of(problem, problem.dual)]
    costs = [kinds[index >= problem.dual] for index in range(count)]
    everything = sum(cost.all_bytes for cost in costs)
    rate = copy_bytes_per_s(problem.device)
    rows: list[dict[str, Any]] = []

    def add(what: str, run: Runner, around: Any = nullcontext, **more: Any) -> None:
        gc.collect()
        rows.append(
            {"policy": what, "tokens": problem.tokens}
            | measure(problem, run, around, rounds)
            | more
        )
        rows[-1]["of_plain"] = rows[-1]["ms"] / rows[0]["ms"]
        if "held_gb" in rows[-1]:
            rows[-1]["saved"] = 1 - rows[-1]["held_gb"] / rows[0]["held_gb"]
        print(results.table([rows[-1]]), flush=True)
        tell(rows)

    add("keep", plainly, all_gb=everything / 1e9, copy_gb_per_s=rate / 1e9)
    for how in (BlockMemory.RECOMPUTE, BlockMemory.PRODUCTS):
        add(how.value, by([how] * count, None))
    chosen = choose(
        costs, device_limit=int(0.4 * everything), host_limit=everything, bytes_per_s=rate
    )
    arena = Arena(round(1.02 * everything) + (1 << 20), name="activations")
    plans = {how.value: [how] * count for how in BlockMemory if how.offloads}
    for what, policies in (plans | {"chosen": list(chosen.blocks)}).items():
        out, back = Lane(problem.device), Lane(problem.device)
        offloader = Offloader(arena, out, back)
        mix = {how.value: policies.count(how) for how in BlockMemory if how in policies}
        add(what, by(policies, offloader), mix=mix)
        stats = offloader.stats
        steps = rounds + 2 + (problem.device.type == "cuda")
        rows[-1] |= {"moved_gb": stats.moved_bytes / steps / 1e9, "late": stats.late}
        tell(rows)
        offloader.close()
    arena.close()
    pin = problem.device.type == "cuda"
    add("torch save_on_cpu", plainly, lambda: save_on_cpu(pin_memory=pin))
    try:
        from torchtune.training import OffloadActivations
    except ImportError:
        print("torchtune is not installed: its offloader is left out")
    else:
        if pin:
            add("torchtune", plainly, lambda: OffloadActivations(use_streams=True))
    return rows


def main(argv: Sequence[str] | None = None) -> Sequence[results.Row]:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--tokens", type=int, nargs="+", help="of the video, beside 512 of text")
    parser.add_argument("--dual", type=int, default=6, help="dual-stream blocks")
    parser.add_argument("--single", type=int, default=12)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--short", action="store_true", help="2 + 4 blocks, the fewer tokens")
    parser.add_argument("--out", help="the JSON to write")
    args = parser.parse_args(argv)
    device = torch.device(args.device)
    cuda = device.type == "cuda"
    config = PRESETS["opensora_v2"]
    if not cuda:  # a width that two cores can do
        config = replace(config, hidden_size=256, num_heads=2)
    sizes = args.tokens or ([8960, 19136] if cuda else [1024])
    dual, single = (2, 4) if args.short or not cuda else (args.dual, args.single)
    settings = {"device": str(device), "width": config.hidden_size, "dual": dual, "single": single}
    rows = results.Kept("offload", settings, args.out)
    for tokens in sizes[:1] if args.short else sizes:
        dtype = torch.bfloat16 if cuda else torch.float32
        problem = Problem(config, dual, single, tokens, device, dtype)
        before = list(rows)
        compare(
            problem,
            2 if args.short else args.rounds,
            lambda found, before=before: rows.replace([*before, *found]),
        )
        del problem
    print(results.table(rows))
    print(rows.save())
    return rows


QUICK = ("--short",)


def test_offload(suite: Callable[..., None]) -> None:
    suite(main, "offload", QUICK)


if __name__ == "__main__":
    main()
