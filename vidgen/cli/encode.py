"""`vidgen encode`: latents and text features of a data set, computed once."""

import argparse
from dataclasses import replace

from vidgen.cli.arguments import add_recipe
from vidgen.recipe.reader import read_recipe

EXAMPLE = """\
  vidgen encode stage1 data.manifest=clips.parquet --out latents/
  torchrun --nproc-per-node 8 -m vidgen encode stage1 --out latents/
  vidgen train stage1 data.manifest=clips.parquet data.latents=latents/
"""
ABOUT = """\
Computes latents and text features once, so that training runs without the encoders.

Of each clip that has a bucket: the latents of its middle window, cut in the centre, the features of
its caption, and the frames of it that the recipe's conditions.weights ask for. data.workers
processes read clips while others are encoded. Stopped, even killed, it goes on where it was when
called again; an entry that is damaged, or whose clip or caption has changed, is computed again.
"cached" counts what was there, "computed" what was added.
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

    recipe = read_recipe(args.recipe, args.overrides)
    from tqdm import tqdm

    from vidgen.data.cache.encode import encode_manifest
    from vidgen.data.index.manifest import Manifest
    from vidgen.models.geometry import Geometry
    from vidgen.runtime import parallel
    from vidgen.runtime.work import Progress
    from vidgen.train.encoders import build_encoders
    from vidgen.train.initialization import compute_dtype

    recipe = replace(recipe, data=replace(recipe.data, latents=LatentsConfig(folder=args.out)))
    with (
        parallel.start(args.device) as world,
        tqdm(
            desc="encode",
            disable=world.rank > 0,
            bar_format="{desc} {percentage:3.0f}% |{bar}| {n} of {total}{postfix}",
        ) as bar,
    ):
        # Ahead of the encoders and the folder, which a wrong manifest must not begin.
        manifest = Manifest.open(recipe.data.manifest, check=recipe.data.check_files)
        dtype = compute_dtype(recipe.train.dtype, world.device)
        encoders = build_encoders(recipe, world.device, dtype)
        autoencoder, codec = encoders.autoencoder, encoders.codec
        assert codec is not None

        def show(progress: Progress) -> None:
            bar.total = progress.counts.total
            bar.set_postfix_str(str(progress), refresh=False)
            bar.update()

        counts = encode_manifest(
            recipe.data,
            manifest,
            codec,
            device=world.device,
            geometry=Geometry.of(autoencoder, recipe.model.patch_size),
            rank=world.rank,
            world=world.world,
            progress=show,
        ).over_ranks(world.device)
    if world.rank == 0:
        print(f"{args.out}: {counts}")
