"""One rank of test_sharded_weights.py: loads weights into a sharded model and writes them back.

python sharded_weights.py RANK WORLD FOLDER
"""

import json
import sys
from pathlib import Path

import torch
import torch.distributed as dist
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor

from vidgen.models.mmdit import MMDiT, MMDiTConfig, load_weights, save_weights
from vidgen.models.mmdit.parallel import blocks


def main(rank: int, world: int, folder: Path) -> None:
    store = dist.FileStore(str(folder / "store"), world)
    dist.init_process_group("gloo", store=store, rank=rank, world_size=world)
    config = MMDiTConfig(**json.loads((folder / "config.json").read_text()))
    with torch.device("meta"):
        model = MMDiT(config)
    for block in blocks(model):
        fully_shard(block)
    fully_shard(model)
    load_weights(model, folder / "in.safetensors")
    assert all(isinstance(param, DTensor) for param in model.parameters())
    save_weights(model, folder / "out.safetensors", "flux")
    dist.barrier()
    dist.destroy_process_group()


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]), Path(sys.argv[3]))
