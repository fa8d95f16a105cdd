"""Published weights into and out of a model that FSDP has sharded over processes."""

import json
import os
import subprocess
import sys
from dataclasses import asdict, replace
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

from vidgen.models.mmdit import PRESETS
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
