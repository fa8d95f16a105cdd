"""The `vidgen` command: dispatches to a subcommand, and prints a user's mistake as one line.

A subcommand `foo` is the module `vidgen/cli/foo.py` with three names: `EXAMPLE`, a string shown
by --help; `add_arguments(parser)`; and `run(args)`, which returns the exit status (None is 0). It
imports what it needs inside `run`, so that --help is fast.
"""

import argparse
import difflib
import importlib
import logging
import os
import sys
from collections.abc import Sequence
from typing import NoReturn

from vidgen.cli.os_errors import explain
from vidgen.errors import UserError
from vidgen.printable import printable
from vidgen.version import __version__

COMMANDS = {
    "quickstart": "create a small dataset, train, sample, judge, write a report",
    "demo": "train the shipped demo model again, from its data to its weights",
    "prove": "sample a fixed set of prompts, judge the videos, print a table with intervals",
    "manifest": "write a manifest of the clips in a folder or table",
    "train": "train a recipe, or resume its training",
    "sample": "sample videos from a trained model",
    "encode": "precompute the latents and text features of a dataset",
    "convert": "convert published weights between layouts",
    "ckpt": "list, check, compare, export and import checkpoints",
    "recipe": "list, show, copy, validate or compare recipes",
    "eval": "measure an autoencoder's reconstructions: PSNR, SSIM, LPIPS",
    "plan": "estimate what a run needs and costs",
    "bench": "measure operations and models on this machine",
    "doctor": "show this machine's hardware, what runs on it and why the rest cannot",
}

INTERRUPTED = 130  # 128 + SIGINT, as shells count


class Parser(argparse.ArgumentParser):
    """A parser that rejects abbreviations and raises UserError."""

    def error(self, message: str) -> NoReturn:
        raise UserError(f"{message} (see `{self.prog} --help`)")


class _PrintableFormatter(logging.Formatter):
    """Names of files and other text from outside reach the terminal as escapes."""

    def format(self, record: logging.LogRecord) -> str:
        return printable(super().format(record))


def usage() -> str:
    width = max(map(len, COMMANDS))
    lines = "\n".join(f"  {name:<{width}}  {does}" for name, does in COMMANDS.items())
    return (
        "usage: vidgen COMMAND ...\n\n"
        "Train and sample video diffusion transformers.\n\n"
        f"commands:\n{lines}\n\n"
        "example:\n  vidgen train stage1 model=tiny optim.lr=3e-5\n\n"
        "See `vidgen COMMAND --help`; `vidgen --version` prints the version."
    )


def parse(command: str, argv: Sequence[str]) -> tuple[argparse.Namespace, object]:
    """Arguments of one subcommand, and its module."""
    module = importlib.import_module(f"vidgen.cli.{command}")
    parser = Parser(
        prog=f"vidgen {command}",
        description=COMMANDS[command][0].upper() + COMMANDS[command][1:] + ".",
        epilog=f"example:\n{module.EXAMPLE.rstrip()}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    module.add_arguments(parser)
    # Intermixed: options may come between and after `key=value` overrides.
    args, unknown = parser.parse_known_intermixed_args(list(argv))
    for text in unknown:
        if not text.startswith("-"):
            parser.error(f"unexpected argument {text!r}")
        flags = [flag for action in parser._actions for flag in action.option_strings]
        close = difflib.get_close_matches(text.split("=")[0], flags, n=1)
        raise UserError(
            f"unknown option {text!r}"
            + (f" (did you mean {close[0]!r}?)" if close else f" (see `{parser.prog} --help`)")
        )
    return args, module


def dispatch(argv: Sequence[str]) -> int:
    if not argv or argv[0] in ("-h", "--help", "help"):
        print(usage())
        return 0
    if argv[0] in ("-V", "--version"):
        print(f"vidgen {__version__}")
        return 0
    command = argv[0]
    if command not in COMMANDS:
        close = difflib.get_close_matches(command, COMMANDS, n=1)
        hint = f"did you mean {close[0]!r}?" if close else f"available: {', '.join(COMMANDS)}"
        raise UserError(f"unknown command {command!r} ({hint})")
    args, module = parse(command, argv[1:])
    return int(module.run(args) or 0)  # type: ignore[attr-defined]


def main(argv: Sequence[str] | None = None) -> int:
    rank = os.environ.get("RANK") if int(os.environ.get("WORLD_SIZE") or 1) > 1 else None
    who = "vidgen: error: " if rank is None else f"vidgen: error: rank {rank}: "
    if logging.lastResort is not None:  # what prints warnings where nothing else is set up
        logging.lastResort.setFormatter(_PrintableFormatter())
    try:
        status = dispatch(sys.argv[1:] if argv is None else argv)
        sys.stdout.flush()
        return status
    except UserError as error:
        print(f"{who}{printable(error)}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("vidgen: interrupted", file=sys.stderr)
        return INTERRUPTED
    except BrokenPipeError:
        # The reader of the output, such as `head`, has exited, which is not an error. Buffered
        # output must not raise again when the interpreter closes stdout.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except OSError as error:
        line = explain(error)
        if line is None:
            raise
        print(f"{who}{printable(line)}", file=sys.stderr)
        return 2
