"""Whether each part of the runtime works at all on this device: a row for each, as it is tried.

python tools/gpu_check/smoke.py --device cuda --out smoke.json
"""

import argparse
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import torch

from vidgen.runtime.observe import results


def an_op(device: torch.device) -> str:
    from vidgen.runtime import ops

    x_BLD = torch.randn(2, 257, 128, device=device, dtype=torch.bfloat16, requires_grad=True)
    expected = torch.nn.functional.gelu(x_BLD, approximate="tanh")
    said = []
    for row in ops.table():
        if row.op == "gelu_tanh" and row.device == device.type and row.available:
            with ops.use(row.implementation):
                out = ops.gelu_tanh(x_BLD)
                (grad,) = torch.autograd.grad(out.sum(), x_BLD)
            torch.testing.assert_close(out, expected, atol=2e-2, rtol=2e-2)
            assert grad.isfinite().all()
            said.append(row.implementation)
    assert said, "no implementation of gelu_tanh can run"
    return ", ".join(said)


def attention_of_every_backend(device: torch.device) -> str:
    from vidgen.runtime.attention import attention
    from vidgen.runtime.attention.backends import Needs
    from vidgen.runtime.attention.table import TABLE

    dtype = torch.bfloat16
    needs = Needs(device.type, dtype, 128, True, False, frozenset())
    q, k, v = (torch.randn(1, 300, 2, 128, device=device).to(dtype) for _ in range(3))
    expected = attention(q, k, v, backend="math")
    said, wrong = [], []
    for backend in TABLE:
        if backend.last_resort or not backend.exact or backend.refusal(needs) is not None:
            continue
        leaves = [x.clone().requires_grad_() for x in (q, k, v)]
        try:
            out = attention(*leaves, backend=backend.name)
            torch.testing.assert_close(out.detach(), expected, atol=3e-2, rtol=3e-2)
            assert all(g.isfinite().all() for g in torch.autograd.grad(out.sum(), leaves))
            said.append(backend.name)
        except Exception as error:  # the others are still worth knowing
            wrong.append(f"{backend.name}: {(str(error).splitlines() or [repr(error)])[0]}")
    assert not wrong, f"sound: {', '.join(said) or 'none'}; {'; '.join(wrong)}"
    assert said, "no backend can run"
    return ", ".join(said)


def a_block(device: torch.device) -> str:
    from vidgen.bench.measure import Bench
    from vidgen.bench.mfu import chosen
    from vidgen.plan.workload import workload_of
    from vidgen.recipe.reader import read_recipe
    from vidgen.recipe.schema import Recipe

    recipe = read_recipe("recipes/stage1.yaml", ["model=tiny"], Recipe)
    workload = workload_of(recipe)
    dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
    with closing(Bench(workload, device, dtype)) as bench:
        (bucket,) = chosen(workload, ["256px x 5"], 1)
        found = bench.measure(bucket, 1)
        grads = [p.grad for p in bench.model.parameters() if p.grad is not None]
    assert grads, "no parameter has a gradient"
    assert all(grad.isfinite().all() for grad in grads)
    return f"forward {found.forward_ms:.3g} ms, backward {found.backward_ms:.3g} ms"


def a_lane_copy(device: torch.device) -> str:
    from vidgen.runtime.memory import Arena, Lane
    from vidgen.runtime.memory.lane import current

    size = 1 << 20
    arena, lane = Arena(size, name="smoke"), Lane(device)
    lease = arena.lease(size)
    here = lease.tensor((size,))
    here.fill_(7)
    there = torch.zeros(size, dtype=torch.uint8, device=device)
    lane.copy(here, there, producer=current(device), lease=lease).wait_on(current(device))
    assert bool((there == 7).all())
    lease.give_back()
    arena.close()
    return f"{size >> 20} MiB to the device"


def a_checkpoint(device: torch.device) -> str:
    from vidgen.runtime import checkpoint

    weights = torch.randn(1000, 100, device=device)
    with tempfile.TemporaryDirectory() as folder:
        saving = checkpoint.save(Path(folder), 1, {"model": {"w": weights}}, {})
        got = checkpoint.read_tensors(saving.wait(), "model")["w"]
        assert torch.equal(got, weights.cpu())
    return "written and read"


PARTS: dict[str, Callable[[torch.device], str]] = {
    "op": an_op,
    "lane copy": a_lane_copy,
    "checkpoint": a_checkpoint,
    "block": a_block,
    "attention": attention_of_every_backend,  # last: a package's backend may compile for long
}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--device", default="cuda", choices=("cuda", "cpu"))
    parser.add_argument("--out", required=True, help="the JSON to write")
    args = parser.parse_args()
    device = torch.device(args.device)
    rows = results.Kept("smoke", {"device": args.device}, args.out)
    for what, part in PARTS.items():
        began = time.perf_counter()
        try:
            row = {"what": what, "said": part(device)}
        except Exception as error:  # each part is told apart, whatever the others do
            lines = str(error).strip().splitlines() or [repr(error)]
            row = {"what": what, "failed": f"{type(error).__name__}: {lines[0]}"}
        rows.add({**row, "s": time.perf_counter() - began})
    print(results.table(rows))
    return int(any("failed" in row for row in rows))


if __name__ == "__main__":
    sys.exit(main())
