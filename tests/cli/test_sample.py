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


@pytest.mark.parametrize("published", [False, True])
def test_the_paths_of_the_videos_are_printed(
    vidgen: Any, monkeypatch: pytest.MonkeyPatch, published: bool
) -> None:
    """The calls into vidgen.sample, with a stand-in for a trained model."""
    import vidgen.sample as sample

    calls: list[Any] = []

    def make_requests(pipeline: str, prompts: list[str], **given: Any) -> list[str]:
        calls.append((pipeline, given))
        return [f"request for {prompt}" for prompt in prompts]

    def write_samples(
        pipeline: str, requests: list[str], out: str, *, batch: int, crf: int
    ) -> list[Path]:
        calls.append((requests, out, batch, crf))
        return [Path(out) / "0000.mp4"]

    class Pipeline:
        @staticmethod
        def from_checkpoint(source: str) -> str:
            return f"checkpoint {source}"

        @staticmethod
        def from_weights(source: str, recipe: dict[str, Any]) -> str:
            return f"weights {source} for {recipe['name']}"

    for stand_in in (make_requests, write_samples, Pipeline):
        assert hasattr(sample, stand_in.__name__)
        monkeypatch.setattr(sample, stand_in.__name__, stand_in)
    recipe = Path(__file__).parents[2] / "recipes" / "stage2.yaml"
    more = ("--recipe", str(recipe)) if published else ()
    argv = ("sample", "run", "--prompt", "x", "--steps", "4", "--batch", "2", *more)
    assert vidgen(*argv) == (0, "samples/0000.mp4\n", "")
    loaded = "weights run for stage2" if published else "checkpoint run"
    assert calls == [
        (loaded, {"steps": 4, "samples": 1}),
        (["request for x"], "samples", 2, 18),
    ]


def test_a_request_survives_the_round_trip_through_a_video(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What `--like` reads is what sampling writes: every key is an argument of make_requests."""
    from vidgen.sample import Request
    from vidgen.sample.files import request_record

    made = Request("a cat", 3, 17, 64, 64, 20, 7.5, 3.0, 24.0, None)
    video = tmp_path / "0000.mp4"
    video.write_bytes(b"")
    monkeypatch.setattr(
        "vidgen.data.video.read_metadata", lambda path: {"vidgen_request": request_record(made)}
    )
    found = asked("--like", str(video))
    assert found.pop("samples") == 1
    assert found.pop("prompts") == ["a cat"]
    assert Request(prompt="a cat", **{**found, "ref": tuple(found["ref"])}) == made
