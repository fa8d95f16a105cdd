"""`vidgen sample`: videos from a trained model."""

import argparse
import json
from pathlib import Path
from typing import Any

from vidgen.cli.arguments import count
from vidgen.config import read_recipe, to_dict
from vidgen.errors import UserError

EXAMPLE = """\
  vidgen sample runs/quickstart --prompt "a red circle moving left" --out videos/
  vidgen sample ckpts/Open_Sora_v2.safetensors --recipe recipes/stage2.yaml --prompt "a calm sea"
  vidgen sample runs/stage2 --prompt "the door opens" --condition i2v_head --ref door.png
  vidgen sample runs/stage2 --like videos/0000.mp4       # the same prompt, seed and settings
"""

CONDITIONS = ("t2v", "i2v_head", "i2v_tail", "i2v_loop", "v2v_head", "v2v_tail")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("source", metavar="SOURCE", help="a run, one step of it, or published weights")
    add("--recipe", metavar="YAML", help="for published weights: names the parts around them")
    what = parser.add_argument_group("what to show")
    what.add_argument("--prompt", action="append", default=[], help="may be given several times")
    what.add_argument("--prompts", metavar="FILE", help="one prompt a line")
    what.add_argument("--negative", help="what to move away from")
    what.add_argument("--samples", metavar="N", type=count, default=1, help="videos a prompt")
    what.add_argument("--seed", type=int, help="of the first sample; the next ones count up")
    what.add_argument("--condition", choices=CONDITIONS, help="default t2v")
    what.add_argument("--ref", metavar="FILE", action="append", default=[], help="image or video")
    what.add_argument("--like", metavar="VIDEO", help="repeat a video's own settings")
    shape = parser.add_argument_group("shape (default: the recipe's)")
    shape.add_argument("--frames", type=count)
    shape.add_argument("--height", type=count)
    shape.add_argument("--width", type=count)
    shape.add_argument("--resolution", metavar="NAME", help="256px, 768px: an area, with --aspect")
    shape.add_argument("--aspect", metavar="W:H", help="16:9, 1:1, ...")
    shape.add_argument("--fps", type=float)
    how = parser.add_argument_group("how (default: the recipe's)")
    how.add_argument("--steps", type=count)
    how.add_argument("--guidance", type=float, help="text")
    how.add_argument("--guidance-img", type=float, help="image or video condition")
    how.add_argument("--motion-score", type=float)
    add("--batch", metavar="N", type=count, default=1, help="videos at a time; changes none")
    add("--crf", type=int, default=18, help="H.264 quality, 0 to 51, lower is better (default 18)")
    add("--out", metavar="DIR", default="samples", help="default: samples/")


def run(args: argparse.Namespace) -> None:
    wanted = request(args)  # before anything is built
    from vidgen.sample import Pipeline, make_requests, write_samples

    if args.recipe:
        from vidgen.train.config import Recipe

        recipe = to_dict(read_recipe(args.recipe, [], Recipe))
        pipeline = Pipeline.from_weights(args.source, recipe)
    else:
        pipeline = Pipeline.from_checkpoint(args.source)
    requests = make_requests(pipeline, **wanted)
    for path in write_samples(pipeline, requests, args.out, batch=args.batch, crf=args.crf):
        print(path)


def request(args: argparse.Namespace) -> dict[str, Any]:
    """The keyword arguments of `make_requests`; what was not said is left out."""
    given = like(args.like) if args.like else {}
    prompts = args.prompt + (read_prompts(args.prompts) if args.prompts else [])
    if prompts:
        given["prompts"] = prompts
    if not given.get("prompts"):
        raise UserError('nothing to sample: give --prompt "...", --prompts FILE or --like VIDEO')
    sizes = ("height", "width")
    if any(getattr(args, name) for name in sizes) != all(getattr(args, name) for name in sizes):
        raise UserError("--height and --width go together; or use --resolution 256px --aspect 16:9")
    if args.height and (args.resolution or args.aspect):
        raise UserError("--height and --width, or --resolution and --aspect: not both")
    if args.condition not in (None, "t2v") and not args.ref:
        raise UserError(f"--condition {args.condition} needs --ref with an image or a video")
    if args.ref and args.condition in (None, "t2v"):
        raise UserError("--ref needs --condition, such as --condition i2v_head")
    for path in args.ref:
        if not Path(path).is_file():
            raise UserError(f"--ref {path}: there is no such file")
    if args.height or args.resolution:  # a size given here wins over a repeated video's
        for name in ("height", "width", "resolution", "aspect"):
            given.pop(name, None)
    names = (
        *("negative", "seed", "condition", "frames", "height", "width", "resolution", "aspect"),
        *("fps", "steps", "guidance", "guidance_img", "motion_score"),
    )
    given.update({name: getattr(args, name) for name in names if getattr(args, name) is not None})
    if args.ref:
        given["ref"] = args.ref
    given["samples"] = args.samples
    return given


def read_prompts(path: str) -> list[str]:
    try:
        lines = Path(path).read_text(encoding="utf-8").splitlines()
    except OSError as error:
        raise UserError(f"--prompts {path}: {error.strerror}") from None
    prompts = [line.strip() for line in lines if line.strip()]
    if not prompts:
        raise UserError(f"--prompts {path}: the file holds no prompt; write one a line")
    return prompts


def like(path: str) -> dict[str, Any]:
    """The request that made a video, from the video's own metadata."""
    from vidgen.data.video import read_metadata

    if not Path(path).is_file():
        raise UserError(f"--like {path}: there is no such file")
    record = read_metadata(path).get("vidgen_request")
    if record is None:
        raise UserError(f"--like {path}: it does not say how it was made; vidgen's videos do")
    return dict(json.loads(record))
