"""`vidgen convert`: converts published weights between layouts."""

import argparse

EXAMPLE = """\
  vidgen convert Open_Sora_v2.safetensors mine.safetensors --to vidgen
  vidgen convert flux1-dev.safetensors start.safetensors --to open-sora --start i2v
  vidgen convert runs/stage1/checkpoints/step-000085000 stage1.safetensors --to open-sora --ema
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "source",
        metavar="SOURCE",
        help="a .safetensors file, a folder of shards, or a step of a training run",
    )
    parser.add_argument("destination", metavar="DESTINATION", help="the .safetensors file to write")
    parser.add_argument(
        "--to", required=True, choices=("open-sora", "flux", "vidgen"), help="layout to write"
    )
    parser.add_argument(
        "--start",
        choices=("t2v", "i2v"),
        help="create initial weights of a video model from an image model: omits the guidance "
        "embedder; i2v adds a condition embedder of zeros",
    )
    parser.add_argument("--ema", action="store_true", help="use the EMA weights of a training run")
    parser.add_argument("--force", action="store_true", help="overwrite DESTINATION")


def run(args: argparse.Namespace) -> None:
    from dataclasses import asdict

    from tqdm import tqdm

    from vidgen.models.mmdit.convert import convert, describe
    from vidgen.models.mmdit.flops import parameters

    group = "ema" if args.ema else "model"
    layout, config = describe(args.source, group)
    shape = ", ".join(f"{field}={value}" for field, value in asdict(config).items())
    print(f"{args.source}: {layout}, {parameters(config):,} parameters: {shape}")
    with tqdm(unit="B", unit_scale=True, unit_divisor=1024, desc=f"to {args.to}") as bar:

        def progress(done: int, total: int) -> None:
            bar.total = total
            bar.update(done - bar.n)

        written = convert(
            args.source,
            args.destination,
            to=args.to,
            adapt=args.start,
            group=group,
            overwrite=args.force,
            progress=progress,
        )
    print(f"{args.destination}: {args.to}, {parameters(written):,} parameters")
