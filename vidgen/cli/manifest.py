"""`vidgen manifest`: the list of clips that training reads, from a folder or a table of them."""

import argparse
import os
from pathlib import Path

from vidgen.cli.arguments import count
from vidgen.errors import UserError

EXAMPLE = """\
  vidgen manifest videos/ --out clips.parquet        # videos/a.mp4, its caption in videos/a.txt
  vidgen manifest clips.csv --out clips.parquet      # columns path, text and, if known, motion
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "source",
        metavar="FOLDER|CSV",
        help="clips with captions in .txt files of the same names, or a table: path, text",
    )
    parser.add_argument("--out", metavar="FILE", required=True, help="the manifest, a .parquet")
    parser.add_argument(
        "--workers",
        metavar="N",
        type=count,
        default=min(32, 2 * (os.cpu_count() or 1)),
        help="files looked into at a time",
    )
    parser.add_argument(
        "--leave-out",
        action="store_true",
        help="write the manifest without clips that cannot be read, and a list of those",
    )


def run(args: argparse.Namespace) -> None:
    from tqdm import tqdm

    from vidgen.data.index.collect import check_out, collect, listed, write_left_out
    from vidgen.data.index.manifest import write_manifest

    out = Path(args.out)
    check_out(out)
    clips = listed(args.source)
    with tqdm(total=len(clips), unit="clip", desc="manifest") as bar:
        found = collect(clips, out.parent, args.workers, bar.update)
    if found.bad and not args.leave_out:
        path, why = found.bad[0]
        raise UserError(
            f"{len(found.bad)} of {len(clips)} clips cannot be used, the first is {path}, which "
            f"{why}; mend or remove them, or add --leave-out to write the manifest without them"
        )
    if not found.rows:
        raise UserError(f"none of {len(clips)} clips can be read; no manifest was written")
    write_manifest(out, found.rows)
    images = sum(row["num_frames"] == 1 for row in found.rows)
    print(f"{out}: {len(found.rows) - images} clips, {images} images")
    if found.bad:
        left = out.with_suffix(".left_out.csv")
        write_left_out(left, found.bad)
        print(f"{len(found.bad)} left out, for the reasons in {left}")
