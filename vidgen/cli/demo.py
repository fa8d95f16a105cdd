"""`vidgen demo`: train the shipped model again, from its data to its weights."""

import argparse
import time
from pathlib import Path
from typing import Any

from vidgen.errors import UserError

EXAMPLE = """\
  OMP_NUM_THREADS=1 vidgen demo                  # about 70 minutes on one core with AVX-512
  OMP_NUM_THREADS=1 vidgen demo --first-steps 600   # the first 20 % of the generator's first part
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("--out", metavar="DIR", default="runs/demo/shipped", help="where weights and record go")
    add("--first-steps", metavar="N", type=int, help="stop the generator's first part at step N")


def run(args: argparse.Namespace) -> None:
    import torch
    from tqdm import tqdm

    from vidgen import demo
    from vidgen.recipe import Recipe, library
    from vidgen.recipe.autoencoder import AutoencoderRecipe
    from vidgen.recipe.reader import read_recipe
    from vidgen.runtime import checkpoint
    from vidgen.train import Trainer
    from vidgen.train import demo as steps
    from vidgen.train.autoencoder.trainer import AutoencoderTrainer

    folder = library.folder()
    ae = read_recipe(folder / "demo_autoencoder.yaml", [], AutoencoderRecipe)
    first, last = (
        read_recipe(folder / f"{name}.yaml", [], Recipe) for name in ("demo_first", "demo")
    )
    path = last.autoencoder.path  # type: ignore[union-attr]
    if path is None:
        raise UserError("demo.yaml sets no autoencoder.path: name where the weights are written")
    root, autoencoder = Path("runs/demo/data"), Path(path)
    began, seconds = time.monotonic(), {}

    def done(phase: str) -> None:
        nonlocal began
        seconds[phase] = round(time.monotonic() - began, 1)
        began = time.monotonic()
        print(f"{phase}: {seconds[phase]:.0f} s", flush=True)

    def reached(recipe: Any, step: int) -> bool:
        saved = checkpoint.steps(Path(recipe.run_dir) / "checkpoints")
        return bool(saved) and saved[-1] >= step

    with tqdm(unit="clip", desc="write clips") as bar:
        steps.write_data(root, last.seed, bar.update)
    done("data")
    if not reached(ae, ae.train.steps):
        steps.write_start(ae)
        AutoencoderTrainer(ae).run()
    quality = steps.export_autoencoder(ae, autoencoder)
    done("autoencoder")
    stop = args.first_steps or steps.FIRST_STEPS
    if not reached(first, stop):
        Trainer(first).run(stop_after=stop)
    done("generator, first part")
    if args.first_steps:
        return
    if not reached(last, last.train.steps):
        Trainer(last).run()
    done("generator")
    out = Path(args.out)
    out.mkdir(parents=True, exist_ok=True)
    steps.export_generator(last, out / demo.GENERATOR)
    (out / demo.AUTOENCODER).write_bytes(autoencoder.read_bytes())
    steps.write_record(
        out,
        root,
        {"autoencoder": ae, "first": first, "generator": last},
        "OMP_NUM_THREADS=1 vidgen demo",
        {
            "threads": torch.get_num_threads(),
            "torch": torch.__version__,
            "seconds": seconds,
            "reconstruction_psnr_db": round(quality, 2),
        },
    )
    print(f"weights and record: {out}")
