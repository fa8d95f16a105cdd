"""`vidgen train`: run a recipe, going on from its newest checkpoint where there is one."""

import argparse
import os

from vidgen.cli.arguments import add_recipe, count
from vidgen.errors import UserError

EXAMPLE = """\
  vidgen train stage1 optim.lr=3e-5 model.depth=2
  torchrun --nproc-per-node 8 -m vidgen train stage1
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
        help="start at step 0; what the run directory holds is moved beside it",
    )
    parser.add_argument(
        "--from",
        dest="from_step",
        metavar="STEP",
        type=count,
        help="resume from the checkpoint of this step; newer ones are moved to checkpoints/newer",
    )
    parser.add_argument(
        "--profile",
        metavar="steps=A-B",
        help="trace these steps into the run directory's profiles/: torch, NVTX ranges, memory",
    )


def run(args: argparse.Namespace) -> None:
    from vidgen.recipe.autoencoder import AutoencoderRecipe, read_any

    if int(os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")) > 0:
        # What torchrun starts again resumes from its newest checkpoint: the first start chose.
        args.fresh, args.from_step = False, None
    if args.fresh and args.from_step is not None:
        raise UserError("--fresh starts at step 0 and --from resumes: give one of them")
    profile = profiled(args.profile)
    recipe = read_any(args.recipe, args.overrides)  # before anything is built
    if isinstance(recipe, AutoencoderRecipe):
        from vidgen.train.autoencoder.trainer import AutoencoderTrainer

        autoencoder = AutoencoderTrainer(recipe, fresh=args.fresh, from_step=args.from_step)
        autoencoder.run(stop_after=args.stop_after, profile=profile)
        return
    from vidgen.train import Trainer

    trainer = Trainer(recipe, fresh=args.fresh, from_step=args.from_step)
    trainer.run(stop_after=args.stop_after, profile=profile)


def profiled(text: str | None) -> tuple[int, int] | None:
    """First and last step of "steps=10-12"."""
    if text is None:
        return None
    from vidgen.runtime.observe.trace import parse_steps

    if not text.startswith("steps="):
        raise UserError(f"--profile {text}: write steps=10-12")
    return parse_steps(text.removeprefix("steps="))
