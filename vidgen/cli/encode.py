"""`vidgen encode`: latents and text features of a data set, computed once."""

import argparse

from vidgen.cli.arguments import add_recipe
from vidgen.config import read_recipe

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

    from vidgen.data.latents import encode_manifest
    from vidgen.models.build import build_autoencoder, build_text

    cuda = args.device == "cuda" or (args.device == "auto" and torch.cuda.is_available())
    device = torch.device("cuda" if cuda else "cpu")
    dtype = torch.bfloat16 if cuda else torch.float32
    autoencoder = build_autoencoder(recipe.autoencoder, device, dtype)
    text = build_text(recipe.text, device, dtype)
    with tqdm(unit="clip", desc="encode") as bar:
        encode_manifest(recipe.data.manifest, autoencoder, text, args.out, progress=bar.update)
