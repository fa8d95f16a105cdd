"""Ring and Ulysses attention beside their peers on gloo: time, error, and what each refuses.

    python benchmarks/parallel/bench_peers.py [--ranks 4]

Peers: torch's experimental context_parallel, yunchang's LongContextAttention, ring-flash-attention.
Those that are not installed, or that cannot run on a CPU, are in the table with their reason.
Errors are against fp64 in one process, relative to the largest value; the ruler is the same
attention, divided by hand with nothing sent: a rank's queries over all keys.
"""

import argparse
import multiprocessing
import os
import re
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from vidgen.runtime.observe import results
from vidgen.runtime.parallel import ring_attention, ulysses_attention

HEADS_AND_LENGTHS = [(4, "even"), (4, "uneven"), (3, "even"), (3, "empty rank")]
DIM, TOKENS, BATCH = 64, 1024, 1
Attend = Callable[[Tensor, Tensor, Tensor], Tensor]


def split(kind: str, ranks: int) -> list[int]:
    if kind == "even":
        return [TOKENS // ranks] * ranks
    if kind == "uneven":
        first = TOKENS // ranks - 37
        return [first, *([TOKENS // ranks] * (ranks - 2)), TOKENS // ranks + 37]
    return [0, *([TOKENS // (ranks - 1)] * (ranks - 1))]


def peers(lengths: list[int], rank: int, ranks: int, folder: str) -> Iterator[tuple[str, Any]]:
    """Names, and functions that make an attention over this rank's part."""
    from torch.distributed.device_mesh import init_device_mesh

    mesh = init_device_mesh("cpu", (ranks,), mesh_dim_names=("context",))
    yield "vidgen ring", lambda: lambda q, k, v: ring_attention(q, k, v, lengths=lengths)
    yield "vidgen Ulysses", lambda: lambda q, k, v: ulysses_attention(q, k, v, lengths=lengths)

    def by_torch() -> Attend:
        from torch.distributed.tensor.experimental import _attention, context_parallel
        from torch.nn.attention import SDPBackend, sdpa_kernel

        _attention._cp_options.enable_load_balance = False  # its balance is for causal attention
        buffer = torch.zeros(1, TOKENS)  # it refuses to go without one

        def attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
            if len(set(lengths)) > 1:
                raise ValueError("it takes one length for all ranks")
            sharded = context_parallel(mesh, buffers=[buffer.clone()], buffer_seq_dims=[1])
            with sdpa_kernel(SDPBackend.FLASH_ATTENTION), sharded:
                heads_first = (x.transpose(1, 2) for x in (q, k, v))
                return scaled_dot_product_attention(*heads_first).transpose(1, 2)

        return attend

    yield "torch context_parallel", by_torch

    def by_yunchang(ulysses: int) -> Callable[[], Attend]:
        def make() -> Attend:
            from yunchang import LongContextAttention, set_seq_parallel_pg
            from yunchang.kernels import AttnType

            set_seq_parallel_pg(ulysses, ranks // ulysses, rank, ranks)
            layer = LongContextAttention(ring_impl_type="basic", attn_type=AttnType.TORCH_MATH)
            return lambda q, k, v: layer(q, k, v, causal=False)

        return make

    yield "yunchang ring", by_yunchang(1)
    yield "yunchang Ulysses", by_yunchang(ranks)

    def by_ring_flash_attention() -> Attend:
        from ring_flash_attn import ring_flash_attn_func

        return lambda q, k, v: ring_flash_attn_func(q, k, v, causal=False)

    yield "ring-flash-attention", by_ring_flash_attention


def exact(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    heads_first = (x.transpose(1, 2) for x in (q, k, v))
    return scaled_dot_product_attention(*heads_first).transpose(1, 2)


def both_ways(attend: Attend, qkv: list[Tensor], dout: Tensor) -> list[Tensor]:
    out = attend(*qkv)
    return [out, *torch.autograd.grad(out, qkv, dout)]


def examine(
    make: Callable[[], Attend], heads: int, lengths: list[int], rank: int
) -> dict[str, Any]:
    torch.manual_seed(heads)
    shape = (BATCH, sum(lengths), heads, DIM)
    whole = [torch.randn(shape) for _ in range(4)]
    reference = [x.double().requires_grad_() for x in whole[:3]]
    wanted = both_ways(exact, reference, whole[3].double())
    begin = sum(lengths[:rank])
    here = slice(begin, begin + lengths[rank])
    qkv = [x[:, here].clone().requires_grad_() for x in whole[:3]]
    attend = make()
    found = both_ways(attend, qkv, whole[3][:, here])
    errors = [
        ((a.double() - b[:, here]).abs().max() / b.abs().max()).item() if a.numel() else 0.0
        for a, b in zip(found, wanted, strict=True)
    ]
    best = float("inf")
    for _ in range(3):
        dist.barrier()
        start = time.perf_counter()
        both_ways(attend, qkv, whole[3][:, here])
        best = min(best, time.perf_counter() - start)
    return {"error_of_out": errors[0], "error_of_gradients": max(errors[1:]), "ms": best * 1e3}


def one_case(rank: int, ranks: int, name: str, heads: int, kind: str, folder: str) -> None:
    """A process group of its own: what a peer leaves behind harms no other."""
    os.environ |= {"GLOO_SOCKET_IFNAME": "lo", "OMP_NUM_THREADS": "1"}
    torch.set_num_threads(1)
    store = dist.FileStore(os.path.join(folder, "store"), ranks)
    dist.init_process_group("gloo", store=store, rank=rank, world_size=ranks)
    lengths = split(kind, ranks)
    try:
        make = dict(peers(lengths, rank, ranks, folder))[name]
        result = examine(make, heads, lengths, rank)
    except Exception as error:
        said = (str(error).strip() or traceback.format_exc()).splitlines()[0]
        said = re.sub(r"\[/[^\]]*\] *", "", said)  # where in its sources
        result = {"refuses": f"{type(error).__name__}: {said}"[:120]}
    torch.save(result, os.path.join(folder, f"{rank}.pt"))
    os._exit(0)


def run(ranks: int, name: str, heads: int, kind: str) -> dict[str, Any]:
    row: dict[str, Any] = {"peer": name, "ranks": ranks, "heads": heads, "lengths": kind}
    with tempfile.TemporaryDirectory() as folder:
        context = multiprocessing.get_context("fork")
        children = [
            context.Process(target=one_case, args=(rank, ranks, name, heads, kind, folder))
            for rank in range(ranks)
        ]
        for child in children:
            child.start()
        for child in children:
            child.join(30)
        hung = [child for child in children if child.is_alive()]
        for child in hung:
            child.kill()
        files = [os.path.join(folder, f"{rank}.pt") for rank in range(ranks)]
        found = [torch.load(file) for file in files if os.path.exists(file)]
    refusals = [result["refuses"] for result in found if "refuses" in result]
    if refusals or hung or len(found) < ranks:
        reason = refusals[0] if refusals else "hangs" if hung else "crashes"
        return {**row, "refuses": reason}
    worst = {key: max(result[key] for result in found) for key in found[0]}
    wrong = max(worst["error_of_out"], worst["error_of_gradients"]) > 1e-3
    return {**row, **worst, "refuses": "gives wrong numbers" if wrong else ""}


def main(argv: Sequence[str] | None = None) -> Sequence[results.Row]:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--ranks", type=int, default=4)
    parser.add_argument("--out", help="where the results go (default: the machine's folder)")
    args = parser.parse_args(argv)
    names = (
        *("vidgen ring", "vidgen Ulysses", "torch context_parallel"),
        *("yunchang ring", "yunchang Ulysses", "ring-flash-attention"),
    )
    rows = results.Kept("parallel_peers", {"tokens": TOKENS}, args.out)
    for heads, kind in HEADS_AND_LENGTHS:
        for name in names:
            rows.add(run(args.ranks, name, heads, kind))
    torch.set_num_threads(1)
    q = torch.randn(BATCH, TOKENS // args.ranks, 4, DIM, requires_grad=True)
    k = torch.randn(BATCH, TOKENS, 4, DIM, requires_grad=True)
    start = time.perf_counter()
    both_ways(exact, [q, k, k.detach().requires_grad_()], torch.ones_like(q))
    print(results.table(rows))
    rows.settings["ruler_ms"] = (time.perf_counter() - start) * 1e3
    print(rows.save())
    return rows


QUICK = ("--ranks", "2")


def test_parallel_peers(suite: Callable[..., None]) -> None:
    suite(main, "parallel_peers", QUICK)


if __name__ == "__main__":
    main()
