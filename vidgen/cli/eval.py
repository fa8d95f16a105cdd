"""`vidgen eval`: how good an autoencoder's reconstructions are, in the report's columns."""

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vidgen.cli.arguments import count
from vidgen.errors import UserError

if TYPE_CHECKING:
    import torch

    from vidgen.models.autoencoder import Autoencoder

EXAMPLE = """\
  vidgen eval reconstruction --ae runs/dcae --videos clips/ --lpips vgg16-397923af.pth
  vidgen eval reconstruction --ae recipes/stage1.yaml --videos clips/ --size 256 --frames 33
"""
SUFFIXES = (".mp4", ".mov", ".mkv", ".webm", ".avi")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("what", choices=("reconstruction",))
    parser.add_argument(
        "--ae",
        required=True,
        help="a recipe (its autoencoder is taken), a run of `vidgen train` on an autoencoder, or "
        "the published Video DC-AE's .safetensors",
    )
    parser.add_argument("--videos", required=True, metavar="DIR", help="a folder of video files")
    parser.add_argument("--frames", type=count, default=32, help="the first so many of each video")
    parser.add_argument("--size", type=count, default=256, help="side of the square cut from each")
    parser.add_argument("--lpips", metavar="FILE", help="torchvision's VGG-16 weights, for LPIPS")
    parser.add_argument("--device", default="auto", choices=("auto", "cpu", "cuda"))
    parser.add_argument("--json", action="store_true", help="print the result as JSON")


def run(args: argparse.Namespace) -> None:
    import json

    from vidgen.runtime.observe.quality import SETTINGS
    from vidgen.runtime.observe.results import table

    row = evaluate(args)
    if args.json:
        print(json.dumps({**row, "settings": SETTINGS}, indent=2))
        return
    print(table([row]))
    print(f"{SETTINGS}; the first {args.frames} frames, {args.size} x {args.size} from the middle")
    if args.lpips is None:
        print("LPIPS: not computed (--lpips names torchvision's VGG-16 weights)")


def evaluate(args: argparse.Namespace) -> dict[str, Any]:
    import torch
    from tqdm import tqdm

    from vidgen.data.video import read_clip
    from vidgen.models.autoencoder import latent_grid
    from vidgen.models.perceptual import LPIPS
    from vidgen.runtime.observe.quality import psnr, ssim
    from vidgen.runtime.parallel import choose_device

    device = choose_device(args.device)
    files = find_videos(Path(args.videos))
    ae = open_autoencoder(args.ae, device)
    try:
        grid = latent_grid(ae, args.frames, args.size, args.size)
    except ValueError as error:
        raise UserError(str(error)) from None
    perceptual = LPIPS(args.lpips).to(device) if args.lpips else None
    figures: dict[str, list[torch.Tensor]] = {"psnr": [], "ssim": [], "lpips": []}
    for seed, file in enumerate(tqdm(files, desc="reconstructing", unit="video")):
        clip = read_clip(file, range(args.frames), size=(args.size, args.size))
        video = torch.from_numpy(clip).permute(3, 0, 1, 2)[None].to(device).float() / 255
        latent = ae.encode(video * 2 - 1, [seed])
        # Judged as a viewer would get it: eight bits a channel.
        again = ((ae.decode(latent).float() + 1) * 127.5).round().clamp(0, 255) / 255
        figures["psnr"].append(psnr(video, again).cpu())
        figures["ssim"].append(ssim(video, again).cpu())
        if perceptual is not None:
            frames = (x[0].transpose(0, 1) * 2 - 1 for x in (video, again))
            figures["lpips"].append(perceptual(*frames).cpu())
    means = {name: torch.cat([f.flatten() for f in all_]).mean() if all_ else None
             for name, all_ in figures.items()}  # fmt: skip
    pixels = 3 * args.frames * args.size**2
    positions = grid[0] * grid[1] * grid[2]
    return {
        "autoencoder": Path(args.ae).name,
        "T x H x W": "x".join(map(str, ae.compression)),
        "D_info": pixels / (positions * ae.latent_channels),
        "pixels a latent": args.frames * args.size**2 / positions,
        "channels": ae.latent_channels,
        "causal": "yes" if ae.causal else "no",
        "LPIPS": None if means["lpips"] is None else round(float(means["lpips"]), 4),
        "PSNR": round(float(means["psnr"]), 3),  # type: ignore[arg-type]
        "SSIM": round(float(means["ssim"]), 4),  # type: ignore[arg-type]
        "videos": len(files),
    }


def find_videos(folder: Path) -> list[Path]:
    if not folder.is_dir():
        raise UserError(f"--videos {folder}: is not a folder")
    files = sorted(f for f in folder.rglob("*") if f.suffix.lower() in SUFFIXES)
    if not files:
        raise UserError(f"--videos {folder}: holds no video ({', '.join(SUFFIXES)})")
    return files


def open_autoencoder(name: str, device: "torch.device") -> "Autoencoder":
    """By what the path is: a recipe, a training run or a file of weights."""
    import torch

    from vidgen.config import read_recipe
    from vidgen.models.build import build_autoencoder
    from vidgen.models.video_dcae import VideoDCAE, VideoDCAEConfig
    from vidgen.runtime import checkpoint
    from vidgen.train.autoencoder_config import AutoencoderRecipe, read_any

    path = Path(name)
    dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
    if path.suffix in (".yaml", ".yml"):
        return build_autoencoder(read_any(path, []).autoencoder, device, dtype)
    if path.suffix == ".safetensors":
        return build_autoencoder(VideoDCAEConfig(path=name), device, dtype)
    step = path if (path / "manifest.json").is_file() else checkpoint.latest(path / "checkpoints")
    if step is None:
        raise UserError(
            f"--ae {name}: is no recipe (.yaml), no weights (.safetensors) and no run with "
            "checkpoints"
        )
    recipe = read_recipe(checkpoint.read_objects(step)["recipe"], [], AutoencoderRecipe)
    model = VideoDCAE(recipe.autoencoder)
    group = "ema" if "ema" in checkpoint.groups(step) else "model"
    model.load_state_dict(checkpoint.read_tensors(step, group))
    return model.to(device, dtype).eval().requires_grad_(False)
