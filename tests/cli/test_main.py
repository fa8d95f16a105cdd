import argparse
import errno
import subprocess
import sys
from types import SimpleNamespace
from typing import Any

import pytest

from vidgen.cli import main as cli
from vidgen.cli.arguments import add_recipe, count
from vidgen.errors import UserError


@pytest.fixture
def command(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Installs a command called `work` whose `run` is the given function."""

    def install(run: Any) -> None:
        def add_arguments(parser: argparse.ArgumentParser) -> None:
            add_recipe(parser)
            parser.add_argument("--fresh", action="store_true")
            parser.add_argument("--samples", type=count)

        module = SimpleNamespace(EXAMPLE="  vidgen work x\n", add_arguments=add_arguments, run=run)
        monkeypatch.setitem(sys.modules, "vidgen.cli.work", module)
        monkeypatch.setitem(cli.COMMANDS, "work", "do the work")

    return install


def raiser(error: BaseException) -> Any:
    def run(args: argparse.Namespace) -> None:
        raise error

    return run


def test_help_lists_every_command_and_loads_no_torch() -> None:
    script = (
        "import sys; from vidgen.cli.main import main; status = main(['--help']);"
        "assert not {'torch', 'pydantic', 'yaml'} & set(sys.modules), 'heavy'; sys.exit(status)"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    for name in cli.COMMANDS:
        assert f"\n  {name} " in done.stdout


def test_no_arguments_is_help(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main([]) == 0
    assert capsys.readouterr().out.startswith("usage: vidgen COMMAND")


@pytest.mark.parametrize("name", ["train", "sample", "encode", "doctor", "recipe", "plan", "bench"])
def test_every_command_explains_itself_with_an_example(
    name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as caught:
        cli.main([name, "--help"])
    assert caught.value.code == 0
    assert f"example:\n  vidgen {name}" in capsys.readouterr().out


def test_options_may_stand_between_overrides(command: Any) -> None:
    seen: list[argparse.Namespace] = []
    command(seen.append)
    assert cli.main(["work", "r.yaml", "--fresh", "a=1", "--samples", "3", "b=2"]) == 0
    assert seen[0].recipe == "r.yaml"
    assert seen[0].overrides == ["a=1", "b=2"]
    assert seen[0].fresh is True
    assert seen[0].samples == 3


def test_run_decides_the_exit_status(command: Any) -> None:
    command(lambda args: 5)
    assert cli.main(["work", "r.yaml"]) == 5


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["trian"], "unknown command 'trian' (did you mean 'train'?)"),
        (["xyzzy"], "unknown command 'xyzzy' (available: quickstart, demo, prove, manifest, "),
        (["work", "r", "--frehs"], "unknown option '--frehs' (did you mean '--fresh'?)"),
        (["work", "r", "--fres"], "unknown option '--fres' (did you mean '--fresh'?)"),
        (["work", "r", "--zzz=3"], "unknown option '--zzz=3' (see `vidgen work --help`)"),
        (["work", "r", "--samples", "0"], "argument --samples: 0 is not at least 1"),
        (["work", "r", "--samples", "x"], "argument --samples: 'x' is not a whole number"),
        (["work"], "the following arguments are required: RECIPE"),
    ],
)
def test_a_wrong_call_is_one_line_and_status_2(
    command: Any, capsys: pytest.CaptureFixture[str], argv: list[str], message: str
) -> None:
    command(lambda args: 0)
    assert cli.main(argv) == 2
    error = capsys.readouterr().err
    assert error.startswith(f"vidgen: error: {message}")
    assert error.count("\n") == 1


def test_a_users_mistake_has_no_traceback(
    command: Any, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    command(raiser(UserError("the manifest is empty; add clips")))
    assert cli.main(["work", "r"]) == 2
    assert capsys.readouterr().err == "vidgen: error: the manifest is empty; add clips\n"
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("RANK", "1")
    assert cli.main(["work", "r"]) == 2
    assert capsys.readouterr().err.startswith("vidgen: error: rank 1: the manifest")


def test_interrupt_is_130(command: Any) -> None:
    command(raiser(KeyboardInterrupt()))
    assert cli.main(["work", "r"]) == 130


def test_a_full_disk_is_one_line(command: Any, capsys: pytest.CaptureFixture[str]) -> None:
    command(raiser(OSError(errno.ENOSPC, "No space left on device", "runs/x")))
    assert cli.main(["work", "r"]) == 2
    assert "no space left on the disk while writing runs/x; free some" in capsys.readouterr().err


def test_a_bug_keeps_its_traceback(command: Any) -> None:
    command(raiser(OSError(errno.EIO, "bad")))
    with pytest.raises(OSError, match="bad"):
        cli.main(["work", "r"])


def test_output_into_a_closed_pipe_is_quiet() -> None:
    script = "from vidgen.cli.main import main; raise SystemExit(main(['--help']))"
    done = subprocess.run(
        ["bash", "-c", f'set -o pipefail; "{sys.executable}" -c "{script}" | true'],
        capture_output=True,
        text=True,
    )
    assert "Traceback" not in done.stderr
    assert "BrokenPipe" not in done.stderr
