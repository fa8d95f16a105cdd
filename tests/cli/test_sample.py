import argparse
import json
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from vidgen.cli.main import parse
from vidgen.cli.sample import request
from vidgen.errors import UserError


def asked(*argv: str) -> dict[str, Any]:
    args, _ = parse("sample", ["run", *argv])
    assert isinstance(args, argparse.Namespace)
    return request(args)


def test_only_what_was_said_is_passed_on() -> None:
    assert asked("--prompt", "a cat", "--seed", "7", "--guidance-img", "2.5") == {
        "prompts": ["a cat"],
        "seed": 7,
        "guidance_img": 2.5,
        "samples": 1,
        "out": "samples",
    }


def test_prompts_from_a_file_and_the_line(tmp_path: Path) -> None:
    path = tmp_path / "prompts.txt"
    path.write_text("one\n\n  two \n")
    assert asked("--prompts", str(path), "--prompt", "zero")["prompts"] == ["zero", "one", "two"]


def test_conditions_take_a_reference(tmp_path: Path) -> None:
    image = tmp_path / "door.png"
    image.write_bytes(b"")
    found = asked("--prompt", "x", "--condition", "i2v_head", "--ref", str(image))
    assert (found["condition"], found["ref"]) == ("i2v_head", [str(image)])


def test_like_repeats_a_videos_request(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    video = tmp_path / "0000.mp4"
    video.write_bytes(b"")
    record = {"prompts": ["a cat"], "seed": 3, "steps": 20, "height": 64, "width": 64}
    metadata = {"vidgen_request": json.dumps(record)}
    stub = SimpleNamespace(read_metadata=lambda path: metadata)
    monkeypatch.setitem(sys.modules, "vidgen.data.video", stub)
    found = asked("--like", str(video), "--steps", "30", "--resolution", "256px")
    assert (found["prompts"], found["seed"], found["steps"]) == (["a cat"], 3, 30)
    assert found["resolution"] == "256px"
    assert "height" not in found
    metadata.clear()
    with pytest.raises(UserError, match="does not say how it was made"):
        asked("--like", str(video))


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        ((), "nothing to sample: give --prompt"),
        (("--prompts", "/nowhere"), "--prompts /nowhere: No such file"),
        (("--prompt", "x", "--height", "64"), "--height and --width go together"),
        (("--prompt", "x", "--height", "64", "--width", "64", "--aspect", "1:1"), "not both"),
        (("--prompt", "x", "--condition", "i2v_head"), "--condition i2v_head needs --ref"),
        (("--prompt", "x", "--ref", "a.png"), "--ref needs --condition"),
        (("--prompt", "x", "--condition", "i2v_head", "--ref", "/no.png"), "no such file"),
        (("--like", "/no.mp4"), "--like /no.mp4: there is no such file"),
    ],
)
def test_refused_before_a_model_is_loaded(argv: tuple[str, ...], message: str) -> None:
    with pytest.raises(UserError, match=message):
        asked(*argv)


def test_the_paths_of_the_videos_are_printed(vidgen: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[dict[str, Any]] = []

    class Pipeline:
        @classmethod
        def from_checkpoint(cls, source: str) -> "Pipeline":
            assert source == "run"
            return cls()

        def sample(self, **wanted: Any) -> list[Path]:
            calls.append(wanted)
            return [Path("samples/0000.mp4")]

    monkeypatch.setitem(sys.modules, "vidgen.sample", SimpleNamespace(Pipeline=Pipeline))
    assert vidgen("sample", "run", "--prompt", "x") == (0, "samples/0000.mp4\n", "")
    assert calls[0]["prompts"] == ["x"]
