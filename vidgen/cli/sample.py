"""`vidgen sample`: videos from a trained model."""

import argparse
import sys
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vidgen import limits
from vidgen.cli.arguments import count
from vidgen.diffusion.condition_names import FORMS, NAMED, check_condition, split_reference
from vidgen.errors import UserError
from vidgen.printable import one_line, printable
from vidgen.recipe.reader import read_recipe

if TYPE_CHECKING:
    from vidgen.recipe.image_model import ImageModelConfig
    from vidgen.runtime.parallel import World
    from vidgen.sample import Pipeline

EXAMPLE = """\
  vidgen sample demo --prompt "a large red circle moves left slowly"
  vidgen sample runs/quickstart --prompt "a red circle moving left" --out videos/
  vidgen sample ckpts/Open_Sora_v2.safetensors --recipe stage2 --prompt "a calm sea"
  vidgen sample runs/stage2 --prompt "the door opens" --condition i2v_head --ref door.png
  vidgen sample runs/stage2 --prompt "dusk falls" --ref noon.png@0 --ref night.png@-1
  vidgen sample runs/stage2 --prompts prompts.csv --samples 2 --memory 24GB
  vidgen sample runs/stage2 --like videos/0000.mp4       # the same prompt, seed and settings
"""

IMAGE_PRESETS = ("t2i2v", "t2i2v_schnell")
SOLVERS = ("euler", "heun", "rf_taylor")


def crf(text: str) -> int:
    value = int(text) if text.isdecimal() else -1
    if not 0 <= value <= 51:
        raise argparse.ArgumentTypeError(f"{text!r} is not from 0 (lossless) to 51 (worst)")
    return value


def condition(text: str) -> str:
    try:
        return check_condition(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add(
        "source",
        metavar="SOURCE",
        help="a run, one step of it, published weights, or demo: the shipped model",
    )
    add("--recipe", metavar="RECIPE", help="for published weights: names the parts around them")
    what = parser.add_argument_group("what to show")
    what.add_argument("--prompt", action="append", default=[], help="may be given several times")
    what.add_argument("--prompts", metavar="FILE", help="one prompt a line, or a .csv or .jsonl")
    what.add_argument("--negative", help="what to move away from")
    what.add_argument("--samples", metavar="N", type=count, default=1, help="videos a prompt")
    what.add_argument("--seed", type=int, help="of the first sample; the next ones count up")
    names = f"{', '.join(NAMED)}, or {FORMS} (default t2v)"
    what.add_argument("--condition", metavar="NAME", type=condition, help=names)
    what.add_argument(
        "--ref", metavar="FILE[@FRAME]", action="append", default=[],
        help="image or video; door.png@0, end.png@-1 and clip.mp4@40:73 say which frames it shows",
    )  # fmt: skip
    what.add_argument("--like", metavar="VIDEO", help="repeat a video's own settings")
    what.add_argument(
        "--allow-refs", action="store_true", help="--like: open the references the video names"
    )
    first = parser.add_argument_group("first frame drawn by FLUX.1 (text to image to video)")
    first.add_argument(
        "--image-model", metavar="NAME",
        help="t2i2v (FLUX.1-dev), t2i2v_schnell, a FLUX.1 file, or none (default: the recipe's "
        "sample.image_model, for videos from text alone)",
    )  # fmt: skip
    first.add_argument("--image-ae", metavar="FILE", help="its autoencoder, ae.safetensors")
    first.add_argument("--image-resolution", metavar="NAME", help="default 768px")
    shape = parser.add_argument_group("shape (default: the recipe's)")
    shape.add_argument("--frames", type=count)
    shape.add_argument("--height", type=count)
    shape.add_argument("--width", type=count)
    shape.add_argument("--resolution", metavar="NAME", help="256px, 768px: an area, with --aspect")
    shape.add_argument("--aspect", metavar="W:H", help="16:9, 1:1, ...")
    shape.add_argument("--fps", type=float)
    how = parser.add_argument_group("how (default: the recipe's)")
    how.add_argument("--steps", type=count)
    how.add_argument("--solver", choices=SOLVERS, help="heun and rf_taylor evaluate twice a step")
    how.add_argument("--guidance", type=float, help="text")
    how.add_argument("--guidance-img", type=float, help="image or video condition")
    how.add_argument("--motion-score", type=float)
    where = parser.add_argument_group("where")
    where.add_argument("--memory", metavar="SIZE", help="the most to use of a GPU, such as 24GB")
    where.add_argument("--context", metavar="N", type=count, help="ranks that share one video")
    where.add_argument("--branch", metavar="N", type=count, help="ranks that share its branches")
    where.add_argument(
        "--ulysses", metavar="N", type=count,
        help="of the ranks that share a video, how many exchange heads (1: a ring; default: the "
        "fastest by measured bandwidth)",
    )  # fmt: skip
    where.add_argument(
        "--context-text", choices=("sharded", "replicated"), default="sharded",
        help="text tokens of ranks that share a video: a part each, or all on every rank",
    )  # fmt: skip
    add("--preview", action="store_true", help="a rough picture beside each video as it forms")
    add("--crf", type=crf, default=18, help="H.264 quality, 0 to 51, lower is better (default 18)")
    add("--out", metavar="DIR", default="samples", help="default: samples/")


def run(args: argparse.Namespace) -> None:
    wanted = request(args)  # before anything is built
    from vidgen.runtime import parallel
    from vidgen.sample import make_requests, sample_to_folder, start_from_pictures
    from vidgen.sample.parallel import make_team

    with parallel.start() as world:
        pipeline = open_pipeline(args, world)
        if args.like and world.rank == 0:
            compare_weights(args.like, pipeline)
        requests = make_requests(pipeline, **wanted)
        team = make_team(
            world,
            len(requests),
            context=args.context,
            branch=args.branch,
            ulysses=args.ulysses,
            text=args.context_text,
            dtype=pipeline.dtype,
        )
        image = image_model(args, pipeline.recipe.sample.image_model)
        if image is not None:
            requests = start_from_pictures(
                pipeline, image, requests, args.out, every=bool(args.image_model), team=team
            )
        paths = sample_to_folder(
            pipeline, requests, args.out, crf=args.crf, preview=args.preview, team=team
        )
        if world.rank == 0:
            if pipeline.memory_report:
                print(pipeline.memory_report, file=sys.stderr)
            for path in paths:
                print(printable(path))
        pipeline.close()


def open_pipeline(args: argparse.Namespace, world: "World") -> "Pipeline":
    from vidgen.sample import Pipeline
    from vidgen.sample.demo import is_demo, open_demo
    from vidgen.sample.memory import parse_memory

    memory = parse_memory(args.memory) if args.memory else None
    if is_demo(args.source):
        return open_demo(world.device, memory=memory)
    if args.recipe:
        recipe = read_recipe(args.recipe)
        return Pipeline.from_weights(args.source, recipe, world.device, memory=memory)
    return Pipeline.from_checkpoint(args.source, world.device, memory=memory)


def request(args: argparse.Namespace) -> dict[str, Any]:
    """The keyword arguments of `make_requests`; what was not said is left out."""
    given: dict[str, Any] = {}
    if args.like:
        given = like(args.like, allow_refs=args.allow_refs, own_refs=bool(args.ref))
    prompts: list[Any] = list(args.prompt)
    if args.prompts:
        from vidgen.sample.prompts import read_prompts

        prompts += read_prompts(args.prompts)
    if prompts:
        given["prompts"] = prompts
    if not given.get("prompts"):
        raise UserError('nothing to sample: give --prompt "...", --prompts FILE or --like VIDEO')
    count_videos(len(given["prompts"]), args.samples)
    sizes = ("height", "width")
    if any(getattr(args, name) for name in sizes) != all(getattr(args, name) for name in sizes):
        raise UserError("--height and --width go together; or use --resolution 256px --aspect 16:9")
    if args.height and (args.resolution or args.aspect):
        raise UserError("--height and --width, or --resolution and --aspect: not both")
    own_refs = any(isinstance(row, dict) and "ref" in row for row in prompts)
    if args.condition not in (None, "t2v") and not args.ref and not own_refs:
        raise UserError(f"--condition {args.condition} needs --ref with an image or a video")
    refs = [(path, None) if Path(path).is_file() else split_reference(path) for path in args.ref]
    if any(place is None for _, place in refs) and args.condition in (None, "t2v"):
        raise UserError("--ref needs the frame it shows, such as --ref door.png@0, or --condition")
    check_image_model(args)
    for path, _ in refs:
        if not Path(path).is_file():
            raise UserError(f"--ref {path}: there is no such file")
    if args.height or args.resolution:  # a size given here wins over a repeated video's
        for name in ("height", "width", "resolution", "aspect"):
            given.pop(name, None)
    names = (
        *("negative", "seed", "condition", "frames", "height", "width", "resolution", "aspect"),
        *("fps", "steps", "solver", "guidance", "guidance_img", "motion_score"),
    )
    given.update({name: getattr(args, name) for name in names if getattr(args, name) is not None})
    if args.ref:
        given["ref"] = args.ref
        if args.condition is None:  # the files name their frames, whatever was repeated
            given.pop("condition", None)
    given["samples"] = args.samples
    return given


def check_image_model(args: argparse.Namespace) -> None:
    named = args.image_model in (None, "none", *IMAGE_PRESETS)
    if named and args.image_model == "none" and args.image_ae:
        raise UserError("--image-model none draws no picture; leave out --image-ae")
    if not named and not Path(args.image_model).exists():
        raise UserError(
            f"{args.image_model}: there is no such file; --image-model takes a FLUX.1 file, "
            f"{', '.join(IMAGE_PRESETS)} or none"
        )
    if not named and not args.image_ae:
        raise UserError("--image-model FILE and --image-ae go together: FLUX.1's two files")
    if args.image_model not in (None, "none") and args.condition not in (None, "t2v"):
        raise UserError(f"--image-model draws the first frame itself; leave out {args.condition}")
    if args.image_ae and not Path(args.image_ae).exists():
        raise UserError(f"{args.image_ae}: there is no such file")


def image_model(
    args: argparse.Namespace, of_recipe: "ImageModelConfig | None"
) -> "ImageModelConfig | None":
    """What draws first frames: as the command line says, else as the recipe does."""
    from vidgen.models.flux_ae.config import FluxAEConfig
    from vidgen.recipe.image_model import IMAGE_MODELS, of_file

    found = of_recipe
    if args.image_model == "none":
        return None
    if args.image_model in IMAGE_MODELS:
        found = IMAGE_MODELS[args.image_model]
    elif args.image_model:
        found = of_file(args.image_model)
    if found is None and (args.image_ae or args.image_resolution):
        raise UserError("--image-ae and --image-resolution need --image-model, such as t2i2v")
    if found is not None and args.image_ae:
        found = replace(found, autoencoder=FluxAEConfig(path=args.image_ae))
    if found is not None and args.image_resolution:
        found = replace(found, resolution=args.image_resolution)
    return found


def count_videos(prompts: int, samples: int) -> None:
    """Before anything is made of them."""
    if prompts > limits.SAMPLE_PROMPTS or prompts * samples > limits.SAMPLE_VIDEOS:
        raise UserError(
            f"{prompts} prompts x {samples} samples; one command makes at most "
            f"{limits.SAMPLE_PROMPTS} prompts and {limits.SAMPLE_VIDEOS} videos"
        )


def like(path: str, *, allow_refs: bool = False, own_refs: bool = False) -> dict[str, Any]:
    """The request that made a video, from the video's own metadata."""
    from vidgen.sample.recorded import read_record

    record = metadata(path).get("vidgen_request")
    if record is None:
        raise UserError(f"--like {path}: it does not say how it was made; vidgen's videos do")
    try:
        return read_record(record, allow_refs=allow_refs, own_refs=own_refs)
    except UserError as error:
        raise UserError(f"--like {path}: {error}") from None


def metadata(path: str) -> dict[str, str]:
    from vidgen.data.read.video import BadClip, read_metadata

    if not Path(path).is_file():
        raise UserError(f"--like {path}: there is no such file")
    try:
        return read_metadata(path)
    except BadClip as error:
        raise UserError(f"--like {path}: {error}; expected a video or PNG of vidgen's") from None


def compare_weights(path: str, pipeline: "Pipeline") -> None:
    made_with = metadata(path).get("weights")
    if made_with and made_with != pipeline.weights_hash:
        print(
            f"note: {printable(path)} was made with other weights ({one_line(made_with)[:40]}) "
            f"than these ({pipeline.weights_hash}), so it will not be the same video",
            file=sys.stderr,
        )
