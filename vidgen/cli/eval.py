"""`vidgen eval`: how good an autoencoder's reconstructions are, in the report's columns."""

import argparse
import math
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vidgen.cli.arguments import count
from vidgen.errors import UserError

if TYPE_CHECKING:
    import torch

    from vidgen.models.autoencoder import Autoencoder
    from vidgen.models.build import AutoencoderConfig

EXAMPLE = """\
  vidgen eval reconstruction --ae runs/dcae --videos clips/ --lpips vgg16-397923af.pth
  vidgen eval reconstruction --ae video_dcae:F32T4C128_AE.safetensors --videos clips/
  vidgen eval reconstruction --ae hunyuan_vae:hunyuan_vae.safetensors --videos clips/
  vidgen eval reconstruction --ae flux_ae:ae.safetensors --videos clips/
"""
FILE_KINDS = ("video_dcae", "hunyuan_vae", "flux_ae")
# Table 1 of the report, by compression and channels: autoencoder, LPIPS, PSNR, SSIM.
REPORT = {
    ((4, 8, 8), 16): ("HunyuanVideo", 0.046, 30.240, 0.856),
    ((4, 32, 32), 128): ("Video DC-AE", 0.051, 30.538, 0.863),
    ((4, 32, 32), 256): ("Video DC-AE", 0.049, 30.777, 0.872),
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("what", choices=("reconstruction",))
    parser.add_argument(
        "--ae",
        required=True,
        help="published weights after their kind (video_dcae:FILE, hunyuan_vae:FILE, "
        "flux_ae:FILE), a run of `vidgen train` on an autoencoder, a recipe (its autoencoder is "
        "taken), or a Video DC-AE's .safetensors",
    )
    parser.add_argument("--videos", required=True, metavar="DIR", help="a folder of video files")
    parser.add_argument(
        "--frames",
        type=count,
        help="the first so many of each video; default 32, or 33 for an autoencoder whose first "
        "frame stands alone",
    )
    parser.add_argument("--size", type=count, default=256, help="side of the square cut from each")
    parser.add_argument("--lpips", metavar="FILE", help="torchvision's VGG-16 weights, for LPIPS")
    parser.add_argument("--device", default="auto", choices=("auto", "cpu", "cuda"))
    parser.add_argument("--json", action="store_true", help="print the result as JSON")


def run(args: argparse.Namespace) -> None:
    import json

    from vidgen.metrics.fidelity import SETTINGS
    from vidgen.runtime.observe.results import table

    row = evaluate(args)
    settings = (
        f"{SETTINGS}; the first {row['frames']} frames, {args.size} x {args.size} from the middle"
    )
    if args.json:
        print(json.dumps({**row, "settings": settings}, indent=2))
        return
    print(table([row, *beside(row)]))
    print(settings)
    if args.lpips is None:
        print("LPIPS: not computed (--lpips names torchvision's VGG-16 weights)")


def beside(row: dict[str, Any]) -> list[dict[str, Any]]:
    """The report's row of an autoencoder of this compression, at 256px and 32 frames."""
    compression = tuple(int(n) for n in row["T x H x W"].split("x"))
    known = REPORT.get((compression, row["channels"]))  # type: ignore[arg-type]
    if known is None:
        return []
    name, lpips, psnr, ssim = known
    names = ("T x H x W", "D_info", "D", "patch", "D_token", "channels", "causal")
    same = {key: row[key] for key in names}
    return [{"autoencoder": f"report: {name}", **same, "LPIPS": lpips, "PSNR": psnr, "SSIM": ssim}]


def evaluate(args: argparse.Namespace) -> dict[str, Any]:
    import torch
    from tqdm import tqdm

    from vidgen.data.read.packets import BadClip
    from vidgen.data.read.video import read_clip
    from vidgen.metrics.fidelity import psnr, ssim
    from vidgen.models.geometry import Geometry
    from vidgen.models.perceptual import LPIPS
    from vidgen.runtime.parallel import choose_device

    device = choose_device(args.device)
    files = find_videos(Path(args.videos))
    ae = open_autoencoder(args.ae, device)
    frames = args.frames or (33 if ae.causal else 32)
    try:
        Geometry.of(ae).latent_grid(frames, args.size, args.size)
    except ValueError as error:
        raise UserError(str(error)) from None
    perceptual = LPIPS(args.lpips).to(device) if args.lpips else None
    figures: dict[str, list[torch.Tensor]] = {"psnr": [], "ssim": [], "lpips": []}
    for seed, file in enumerate(tqdm(files, desc="reconstructing", unit="video")):
        try:
            clip = read_clip(file, range(frames), size=(args.size, args.size))
        except BadClip as error:
            raise UserError(
                f"{file}: {error}; take fewer frames with --frames, or remove the file"
            ) from None
        video = torch.from_numpy(clip).permute(3, 0, 1, 2)[None].to(device).float() / 255
        latent = ae.encode(video * 2 - 1, [seed])
        # Judged as a viewer would get it: eight bits a channel.
        again = ((ae.decode(latent).float() + 1) * 127.5).round().clamp(0, 255) / 255
        figures["psnr"].append(psnr(video, again).cpu())
        figures["ssim"].append(ssim(video, again).cpu())
        if perceptual is not None:
            images = (x[0].transpose(0, 1) * 2 - 1 for x in (video, again))
            figures["lpips"].append(perceptual(*images).cpu())
    means = {name: torch.cat([f.flatten() for f in all_]).mean() if all_ else None
             for name, all_ in figures.items()}  # fmt: skip
    pixels = math.prod(ae.compression)  # behind one latent position
    patch = patch_of(ae)
    return {
        "autoencoder": Path(args.ae).name,
        "T x H x W": "x".join(map(str, ae.compression)),
        "D_info": 3 * pixels / ae.latent_channels,
        "D": pixels,
        "patch": patch,
        "D_token": pixels * patch**2,
        "channels": ae.latent_channels,
        "causal": "yes" if ae.causal else "no",
        "LPIPS": None if means["lpips"] is None else round(float(means["lpips"]), 4),
        "PSNR": round(float(means["psnr"]), 3),  # type: ignore[arg-type]
        "SSIM": round(float(means["ssim"]), 4),  # type: ignore[arg-type]
        "videos": len(files),
        "frames": frames,
    }


def patch_of(ae: "Autoencoder") -> int:
    """The side, in latent positions, of a token of the report's model on such latents."""
    from vidgen.models.mmdit import PRESETS
    from vidgen.models.video_dcae import VideoDCAEConfig

    deep = ae.compression == VideoDCAEConfig().compression
    return PRESETS["opensora_v2_dcae" if deep else "opensora_v2"].patch_size


def find_videos(folder: Path) -> list[Path]:
    from vidgen.data.read.video import VIDEO_SUFFIXES

    if not folder.is_dir():
        raise UserError(f"--videos {folder}: is not a folder")
    files = sorted(f for f in folder.rglob("*") if f.suffix.lower() in VIDEO_SUFFIXES)
    if not files:
        raise UserError(f"--videos {folder}: holds no video ({', '.join(VIDEO_SUFFIXES)})")
    return files


def open_autoencoder(name: str, device: "torch.device") -> "Autoencoder":
    """By what it names: weights of a kind, a recipe, a training run or a file of weights."""
    import torch

    from vidgen.models.build import build_autoencoder
    from vidgen.models.video_dcae import VideoDCAE
    from vidgen.recipe import AutoencoderRecipe, library, read_any, read_recipe
    from vidgen.runtime import checkpoint

    dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
    kind, _, file = name.partition(":")
    if file and not Path(name).exists():
        return build_autoencoder(published(kind, file), device, dtype)
    path = Path(name) if Path(name).exists() else library.find(name)
    if path.suffix in (".yaml", ".yml"):
        return build_autoencoder(read_any(path, []).autoencoder, device, dtype)
    if path.suffix == ".safetensors":
        return build_autoencoder(published("video_dcae", name), device, dtype)
    step = checkpoint.find_step(path)
    if step is None:
        raise UserError(
            f"--ae {name}: is no recipe (.yaml), no weights (.safetensors, or video_dcae:FILE, "
            "hunyuan_vae:FILE, flux_ae:FILE) and no run with checkpoints"
        )
    recipe = read_recipe(checkpoint.read_objects(step)["recipe"], [], AutoencoderRecipe)
    model = VideoDCAE(recipe.autoencoder)
    group = "ema" if "ema" in checkpoint.groups(step) else "model"
    model.load_state_dict(checkpoint.read_tensors(step, group))
    return model.to(device, dtype).eval().requires_grad_(False)


def published(kind: str, file: str) -> "AutoencoderConfig":
    """The published shape of a kind; a Video DC-AE's file says how many channels it has."""
    from vidgen.models.flux_ae.config import FluxAEConfig
    from vidgen.models.hunyuan_vae.config import HunyuanVAEConfig
    from vidgen.models.tensor_files import open_source
    from vidgen.models.video_dcae import VideoDCAEConfig

    if kind == "hunyuan_vae":
        return HunyuanVAEConfig(path=file)
    if kind == "flux_ae":
        return FluxAEConfig(path=file)
    if kind != "video_dcae":
        raise UserError(f"--ae {kind}:{file}: {kind!r} is none of {', '.join(FILE_KINDS)}")
    config = VideoDCAEConfig(path=file)
    with open_source(file) as tensors:
        last = tensors.infos.get("encoder.project_out.main.op_list.0.conv.bias")
    if last is not None and config.widths[-1] % last.shape[0] == 0:
        config = replace(config, latent_channels=last.shape[0])
    return config
