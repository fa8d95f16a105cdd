"""`vidgen encode`: latents and text features of a data set, computed once."""

import argparse
from dataclasses import asdict, replace

from vidgen.cli.arguments import add_recipe
from vidgen.recipe.reader import read_recipe

EXAMPLE = """\
  vidgen encode recipes/stage1.yaml data.manifest=clips.parquet --out latents/
  torchrun --nproc-per-node 8 -m vidgen encode recipes/stage1.yaml --out latents/
  vidgen train recipes/stage1.yaml data.manifest=clips.parquet data.latents=latents/
"""
ABOUT = """\
Computes latents and text features once, so that training runs without the encoders.

Of each clip that has a bucket: the latents of its middle window, cut in the centre, the features of
its caption, and the ends of it that the recipe's conditions.weights ask for. data.workers processes
read clips while others are encoded. Stopped, even killed, it goes on where it was when called
again; an entry that is damaged, or whose clip or caption has changed, is computed again. "cached"
counts what was there, "computed" what was added.
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.description = ABOUT
    add_recipe(parser)
    parser.add_argument(
        "--out", metavar="DIR", required=True, help="where to write; what it holds is kept"
    )
    parser.add_argument(
        "--device", default="auto", choices=("auto", "cpu", "cuda"), help="where the encoders run"
    )


def run(args: argparse.Namespace) -> None:
    from vidgen.data.config import LatentsConfig
    from vidgen.recipe.schema import Recipe

    recipe = read_recipe(args.recipe, args.overrides, Recipe)
    import torch
    import torch.distributed as dist
    from tqdm import tqdm

    from vidgen.data.cache.encode import encode_manifest
    from vidgen.data.cache.latents import EncodeCounts
    from vidgen.data.index.manifest import Manifest
    from vidgen.runtime import parallel
    from vidgen.train.encoders import build_encoders
    from vidgen.train.initialization import compute_dtype

    recipe = replace(recipe, data=replace(recipe.data, latents=LatentsConfig(folder=args.out)))
    with (
        parallel.start(args.device) as world,
        tqdm(unit="clip", desc="encode", disable=world.rank > 0) as bar,
    ):
        # Ahead of the encoders and the folder, which a wrong manifest must not begin.
        manifest = Manifest.open(recipe.data.manifest, check=recipe.data.check_files)
        dtype = compute_dtype(recipe.train.dtype, world.device)
        autoencoder, _, codec = build_encoders(recipe, world.device, dtype)
        assert codec is not None

        def show(counts: EncodeCounts) -> None:
            bar.total = counts.total
            bar.set_postfix_str(str(counts), refresh=False)
            bar.update()

        counts = encode_manifest(
            recipe.data,
            manifest,
            codec,
            device=world.device,
            temporal_step=autoencoder.compression[0],
            causal=autoencoder.causal,
            spatial_multiple=autoencoder.compression[1] * recipe.model.patch_size,
            rank=world.rank,
            world=world.world,
            progress=show,
        )
        if world.world > 1:
            sums = torch.tensor(list(asdict(counts).values()), device=world.device)
            dist.all_reduce(sums)
            counts = EncodeCounts(*sums.tolist())
    if world.rank == 0:
        print(f"{args.out}: {counts}")
