"""Training the shipped demo model: data, autoencoder, generator in two parts, files to ship.

Every phase is skipped where its product exists, so an interrupted run continues.
"""

import hashlib
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from vidgen import demo
from vidgen.data.synthetic.scenes.dataset import Kind, take, write_scenes
from vidgen.data.synthetic.scenes.world import CLEAR, FINE, Setting
from vidgen.models.mmdit import MMDiT
from vidgen.models.mmdit import save_weights as save_generator
from vidgen.models.video_dcae import VideoDCAE
from vidgen.models.video_dcae import save_weights as save_autoencoder
from vidgen.models.video_dcae.linear_start import start_linear
from vidgen.models.video_dcae.rescale import balanced, rescale_latents
from vidgen.recipe import Recipe
from vidgen.recipe.autoencoder import AutoencoderRecipe
from vidgen.recipe.reader import dump_yaml
from vidgen.runtime import checkpoint, files
from vidgen.runtime.checkpoint import GroupReader

FIRST_STEPS = 3000  # of demo_first.yaml before demo.yaml takes its weights
START_CLIPS = 200  # that the autoencoder's linear start is fitted to
SCALE_CLIPS = 64  # that the latents' scale is measured on

LOGGED = ("step", "loss", "grad_norm", "lr", "psnr")  # of metrics.jsonl

# Folder under the run's data/, part, setting and clips (side, frames, count) of each data set.
DATA: tuple[tuple[str, str, Setting, tuple[Kind, ...]], ...] = (
    ("valid", "valid", FINE, (Kind(64, 16, 24),)),
    ("autoencoder", "train", FINE, (Kind(64, 16, 1200),)),
    (
        "fine",
        "train",
        FINE,
        (Kind(96, 16, 6000), Kind(96, 32, 1200), Kind(96, 1, 800), Kind(128, 128, 48)),
    ),
    (
        "clear",
        "train",
        CLEAR,
        (Kind(96, 16, 5000), Kind(96, 32, 700), Kind(96, 1, 320), Kind(128, 128, 32)),
    ),
)


def write_data(
    root: Path, seed: int, progress: Callable[[], object] | None = None, data: Sequence = DATA
) -> None:
    for name, part, setting, kinds in data:
        if not (root / name / "manifest.parquet").is_file():
            write_scenes(
                root / name, kinds, seed=seed, part=part, setting=setting, progress=progress
            )


def clips(seed: int, side: int, count: int, part: str = "train", setting: Setting = FINE) -> Tensor:
    """Rendered clips of 16 frames in [-1, 1], (B, 3, T, H, W)."""
    videos = [take(seed, part, side, 16, n, setting).video() for n in range(count)]
    return torch.stack(
        [torch.from_numpy(v).permute(3, 0, 1, 2).float() / 127.5 - 1 for v in videos]
    )


def write_start(recipe: AutoencoderRecipe) -> None:
    """The weights that the autoencoder's training begins with, where its recipe looks for them."""
    assert recipe.train.init_from is not None
    path = Path(recipe.train.init_from)
    if path.is_file():
        return
    model = VideoDCAE(recipe.autoencoder)
    model.init_weights(torch.Generator().manual_seed(recipe.seed))
    start_linear(model, clips(recipe.seed, 64, START_CLIPS))
    save_autoencoder(model, path)


@torch.no_grad()
def export_autoencoder(recipe: AutoencoderRecipe, path: Path) -> float:
    """Write the trained weights in bf16 with latents of balanced scale; PSNR on held-out clips."""
    model = VideoDCAE(recipe.autoencoder)
    fill(model, newest(Path(recipe.run_dir)))
    deviation = model(clips(recipe.seed, 96, SCALE_CLIPS))[1].std(dim=(0, 2, 3, 4))
    rescale_latents(model, balanced(deviation))
    model.to(torch.bfloat16)
    save_autoencoder(model, path, overwrite=True)
    return reconstruction_psnr(model.float(), recipe.seed)


@torch.no_grad()
def reconstruction_psnr(model: VideoDCAE, seed: int, count: int = 16) -> float:
    """Decibels on held-out clips of the world that the demo shows."""
    video = clips(seed, 96, count, part="valid", setting=CLEAR)
    error = ((model(video)[0] - video) / 2).square().mean(dim=(1, 3, 4))
    return float((-10 * error.log10()).mean())


@torch.no_grad()
def export_generator(recipe: Recipe, path: Path) -> None:
    """Write the averaged weights in bf16."""
    model = MMDiT(recipe.model)
    fill(model, newest(Path(recipe.run_dir)))
    save_generator(model.to(torch.bfloat16), path, overwrite=True)


def newest(run_dir: Path) -> Path:
    step = checkpoint.latest(run_dir / "checkpoints")
    if step is None:
        raise FileNotFoundError(f"{run_dir} holds no checkpoint")
    return step


def fill(model: nn.Module, step: Path) -> None:
    group = "ema" if "ema" in checkpoint.groups(step) else "model"
    reader = GroupReader(step, group)
    for name, tensor in model.state_dict().items():
        reader.read(name, tensor)


def write_record(
    folder: Path, root: Path, recipes: dict[str, Any], command: str, figures: dict[str, Any]
) -> None:
    """What the weights came from: recipes, data hashes, logs and the environment."""
    logs = folder / "logs"
    logs.mkdir(parents=True, exist_ok=True)
    for name, recipe in recipes.items():
        lines = (Path(recipe.run_dir) / "metrics.jsonl").read_text().splitlines()
        kept = ({k: v for k, v in json.loads(line).items() if k in LOGGED} for line in lines)
        files.write_text(logs / f"{name}.jsonl", "".join(json.dumps(k) + "\n" for k in kept if k))
    data = {
        path.parent.name: json.loads(path.read_text())
        for path in sorted(root.glob("*/dataset.json"))
    }
    record = {
        "command": command,
        "recipes": {name: dump_yaml(recipe) for name, recipe in recipes.items()},
        "data": data,
        "weights": {
            name: hashlib.sha256((folder / name).read_bytes()).hexdigest()
            for name in (demo.GENERATOR, demo.AUTOENCODER)
        },
        **figures,
    }
    files.write_text(folder / "record.json", json.dumps(record, indent=1))
