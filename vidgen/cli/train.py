"""`vidgen train`: run a recipe, going on from its newest checkpoint where there is one."""

import argparse

from vidgen.cli.arguments import add_recipe, count

EXAMPLE = """\
  vidgen train recipes/stage1.yaml optim.lr=3e-5 model.depth=2
  torchrun --nproc-per-node 8 -m vidgen train recipes/stage1.yaml
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_recipe(parser)
    parser.add_argument(
        "--stop-after",
        metavar="N",
        type=count,
        help="save and stop at step N; the same command without it goes on from there",
    )
    parser.add_argument(
        "--fresh",
        action="store_true",
        help="begin at step 0 even where the run directory holds a checkpoint",
    )


def run(args: argparse.Namespace) -> None:
    from vidgen.train.autoencoder_config import AutoencoderRecipe, read_any

    recipe = read_any(args.recipe, args.overrides)  # before anything is built
    if isinstance(recipe, AutoencoderRecipe):
        from vidgen.train.autoencoder import AutoencoderTrainer

        AutoencoderTrainer(recipe, fresh=args.fresh).run(stop_after=args.stop_after)
        return
    from vidgen.train import Trainer

    Trainer(recipe, fresh=args.fresh).run(stop_after=args.stop_after)
