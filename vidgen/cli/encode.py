"""`vidgen encode`: latents and text features of a data set, computed once."""

import argparse

from vidgen.cli.arguments import add_recipe
from vidgen.config import read_recipe, to_dict

EXAMPLE = """\
  vidgen encode recipes/stage1.yaml data.manifest=clips.parquet --out latents/
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_recipe(parser)
    parser.add_argument(
        "--out", metavar="DIR", required=True, help="where to write; what it holds is kept"
    )
    parser.add_argument("--device", default="auto", choices=("auto", "cpu", "cuda"))


def run(args: argparse.Namespace) -> None:
    from vidgen.train.config import Recipe

    recipe = read_recipe(args.recipe, args.overrides, Recipe)
    import torch
    from tqdm import tqdm

    from vidgen.data.encode import encode_manifest
    from vidgen.data.latents import EncodeCounts
    from vidgen.models.build import build_autoencoder, build_text
    from vidgen.runtime import parallel

    with (
        parallel.start(args.device) as world,
        tqdm(unit="clip", desc="encode", disable=world.rank > 0) as bar,
    ):
        cuda = world.device.type == "cuda"
        dtype = torch.bfloat16 if cuda else torch.float32
        autoencoder = build_autoencoder(recipe.autoencoder, world.device, dtype)
        text = build_text(recipe.text, world.device, dtype)

        def show(counts: EncodeCounts) -> None:
            bar.total = counts.total
            bar.set_postfix_str(str(counts), refresh=False)
            bar.update()

        counts = encode_manifest(
            recipe.data,
            autoencoder,
            text,
            args.out,
            encoders={"autoencoder": to_dict(recipe.autoencoder), "text": to_dict(recipe.text)},
            device=world.device,
            dtype=dtype,
            suffix=recipe.conditions.suffix,
            spatial_multiple=autoencoder.compression[1] * recipe.model.patch_size,
            rank=world.rank,
            world=world.world,
            progress=show,
        )
    print(f"{args.out}: {counts}")
