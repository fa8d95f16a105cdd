"""A tiny data set of moving shapes, a tiny recipe on it, and ways to run it."""

import os
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

import vidgen
from vidgen.data.synthetic.shapes import TRAINED, write_dataset
from vidgen.recipe.reader import read_recipe
from vidgen.recipe.schema import Recipe

# 8 images, 8 clips of 9 frames and 8 of 17, 32 x 32: with these buckets an epoch is 8 steps.
RECIPE = """\
name: tiny
run_dir: runs/tiny
model:
  in_channels: 96
  hidden_size: 32
  num_heads: 2
  depth: 1
  depth_single_blocks: 1
  axes_dim: [4, 6, 6]
  vec_in_dim: 16
  context_in_dim: 16
  cond_embed: false
autoencoder: {{kind: block_dct}}
text: {{length: 8, token_width: 16, pooled_width: 16}}
data:
  manifest: {manifest}
  buckets:
    32px_ar1:1: {{1: {{batch: 4}}, 9: {{batch: 4}}, 17: {{batch: 2}}}}
conditions: {{suffix: false, drop_tokens: 0.2, drop_pooled: 0.2}}
optim: {{lr: 5e-3, warmup: 2, eps: 1e-8}}
checkpoint: {{every: 3}}
train: {{steps: 6, device: cpu, dtype: float32, ema_decay: 0.9}}
"""

MakeRecipe = Callable[..., Recipe]
Start = Callable[..., "subprocess.Popen[str]"]


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    """The bits of a matrix product depend on the number of threads."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="session")
def shapes_manifest(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("shapes")
    clips = ((1, 1), (9, 1), (17, 1))
    return write_dataset(folder, scenes=TRAINED[:8], clips=clips, side=32, seed=1)


@pytest.fixture(scope="session")
def recipe_file(shapes_manifest: Path) -> Path:
    path = shapes_manifest.with_name("tiny.yaml")
    path.write_text(RECIPE.format(manifest=shapes_manifest))
    return path


@pytest.fixture
def tiny(recipe_file: Path, tmp_path: Path) -> MakeRecipe:
    """`tiny("optim.lr=1e-4", run="a")`: the tiny recipe, run in tmp_path/a."""

    def make(*overrides: str, run: str = "run") -> Recipe:
        return read_recipe(recipe_file, [f"run_dir={tmp_path / run}", *overrides], Recipe)

    return make


@pytest.fixture
def vidgen_main(capsys: pytest.CaptureFixture[str]) -> Callable[..., tuple[int, str, str]]:
    """The command line, called here: (exit code, stdout, stderr)."""

    def call(*argv: str | Path) -> tuple[int, str, str]:
        from vidgen.cli.main import main

        capsys.readouterr()
        status = main([str(word) for word in argv])
        shown = capsys.readouterr()
        return status, shown.out, shown.err

    return call


@pytest.fixture
def start() -> Iterator[Start]:
    """`start("train", path, RANK=0)`: `python -m vidgen`, ended with the test."""
    children: list[subprocess.Popen[str]] = []

    def begin(*argv: str | Path, **environment: Any) -> "subprocess.Popen[str]":
        child = subprocess.Popen(
            [sys.executable, "-m", "vidgen", *map(str, argv)],
            env={
                **os.environ,
                "OMP_NUM_THREADS": "1",
                "PYTHONPATH": str(Path(vidgen.__file__).parents[1]),
                **{name: str(value) for name, value in environment.items()},
            },
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        children.append(child)
        return child

    yield begin
    for child in children:
        if child.poll() is None:
            child.kill()
            child.communicate()


@pytest.fixture
def start_ranks(start: Start) -> Callable[..., list["subprocess.Popen[str]"]]:
    """`start_ranks(2, "train", path)`: the processes, with the environment torchrun gives them."""

    def begin(world: int, *argv: str | Path) -> list["subprocess.Popen[str]"]:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        return [
            start(
                *argv,
                RANK=rank,
                LOCAL_RANK=rank,
                WORLD_SIZE=world,
                LOCAL_WORLD_SIZE=world,
                MASTER_ADDR="127.0.0.1",
                MASTER_PORT=port,
                GLOO_SOCKET_IFNAME="lo",
            )
            for rank in range(world)
        ]

    return begin
