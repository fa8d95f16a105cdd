"""Published weights into and out of a model that FSDP has sharded over processes."""

import json
import os
import subprocess
import sys
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from safetensors.torch import load_file, save_file
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor

from vidgen.models.mmdit import PRESETS, MMDiT, load_weights
from vidgen.models.mmdit.layouts import published_shapes

WORLD = 2


def test_every_rank_takes_its_rows_and_gives_them_back(tmp_path: Path) -> None:
    # Nine channels: the final layer's rows do not divide by two.
    config = replace(PRESETS["tiny"], in_channels=9, patch_size=3, depth_single_blocks=1)
    published = {
        name: torch.rand(shape) for name, shape in published_shapes(config, "flux").items()
    }
    save_file(published, tmp_path / "in.safetensors")
    (tmp_path / "config.json").write_text(json.dumps(asdict(config)))
    worker = Path(__file__).with_name("sharded_weights.py")
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo"}
    workers = [
        subprocess.Popen(
            [sys.executable, str(worker), str(rank), str(WORLD), str(tmp_path)],
            env=environment,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(WORLD)
    ]
    try:
        errors = [worker.communicate(timeout=240)[1] for worker in workers]
    finally:
        for process in workers:
            process.kill()
    assert [process.returncode for process in workers] == [0] * WORLD, "\n".join(errors)
    written = load_file(tmp_path / "out.safetensors")
    assert written.keys() == published.keys()
    for name, tensor in published.items():
        assert torch.equal(written[name], tensor), name


# Nine channels: the rows of the new final layer do not divide by two or three.
OLD = replace(PRESETS["tiny"], depth_single_blocks=1, in_channels=16)
NEW = replace(OLD, in_channels=9, patch_size=1)
LAYERS = ("img_in", "cond_in", "final_layer", "single_blocks.0")


def adapted(shards: bool) -> MMDiT:
    made = torch.Generator().manual_seed(1)
    published = {
        name: torch.rand(shape, generator=made)
        for name, shape in published_shapes(OLD, "open-sora").items()
    }
    with torch.device("meta"):
        model = MMDiT(NEW)
    if shards:
        fully_shard(model)
    load_weights(model, published, reinitialise=LAYERS, generator=torch.Generator().manual_seed(5))
    return model


def load_on_a_rank(rank: int, world: int, folder: Path) -> list[str]:
    """The parameters that differ from those of one process."""
    store = dist.FileStore(str(folder / "store"), world)
    dist.init_process_group("gloo", store=store, rank=rank, world_size=world)
    alone = dict(adapted(shards=False).named_parameters())
    different = []
    for name, parameter in adapted(shards=True).named_parameters():
        assert isinstance(parameter, DTensor)
        if not torch.equal(parameter.full_tensor(), alone[name]):
            different.append(name)
    dist.barrier()
    dist.destroy_process_group()
    assert alone["img_in.weight"].any()
    return different


def test_new_layers_are_the_same_for_any_number_of_ranks(ranks: Any) -> None:
    assert ranks(load_on_a_rank, 3, timeout=120) == [[]] * 3
