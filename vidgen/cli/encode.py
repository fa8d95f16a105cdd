"""`vidgen encode`: latents and text features of a data set, computed once."""

import argparse

from vidgen.cli.arguments import add_recipe
from vidgen.config import read_recipe, to_dict

EXAMPLE = """\
  vidgen encode recipes/stage1.yaml data.manifest=clips.parquet --out latents/
  torchrun --nproc-per-node 8 -m vidgen encode recipes/stage1.yaml --out latents/
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_recipe(parser)
    parser.add_argument(
        "--out", metavar="DIR", required=True, help="where to write; what it holds already is kept"
    )
    parser.add_argument(
        "--dtype", default="bfloat16", choices=("bfloat16", "float32"), help="what is stored"
    )
    parser.add_argument("--device", default="auto", choices=("auto", "cpu", "cuda"))


def run(args: argparse.Namespace) -> None:
    from vidgen.train.config import Recipe

    recipe = read_recipe(args.recipe, args.overrides, Recipe)  # before anything is built
    import torch
    from tqdm import tqdm

    from vidgen.data.latents import EncodeCounts, encode_manifest
    from vidgen.models.build import build_autoencoder, build_text
    from vidgen.runtime import parallel

    with parallel.start(args.device) as world:
        device = world.device
        dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
        autoencoder = build_autoencoder(recipe.autoencoder, device, dtype)
        text = build_text(recipe.text, device, dtype)
        with tqdm(unit="clip", desc="encode", disable=world.rank > 0) as bar:

            def progress(counts: EncodeCounts) -> None:
                bar.total = counts.total
                bar.update(counts.cached + counts.computed + counts.unreadable - bar.n)

            counts = encode_manifest(
                recipe.data,
                autoencoder,
                text,
                args.out,
                encoders={name: to_dict(recipe)[name] for name in ("autoencoder", "text")},
                device=device,
                dtype=getattr(torch, args.dtype),
                spatial_multiple=autoencoder.compression[1] * recipe.model.patch_size,
                rank=world.rank,
                world=world.world,
                progress=progress,
            )
        world.barrier()
    print(f"{args.out}: {counts}")
