import argparse
import json
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, get_args, get_type_hints

import pytest
import torch

from vidgen.cli import sample
from vidgen.cli.main import parse
from vidgen.cli.sample import request
from vidgen.diffusion.solvers import SOLVERS
from vidgen.errors import UserError
from vidgen.recipe.image_model import IMAGE_MODELS, ImageModelConfig
from vidgen.recipe.sampling import SampleConfig


def asked(*argv: str) -> dict[str, Any]:
    args, _ = parse("sample", ["run", *argv])
    assert isinstance(args, argparse.Namespace)
    return request(args)


def test_the_choices_are_those_there_are() -> None:
    """Listed in the command itself, so that asking for help loads nothing."""
    assert tuple(IMAGE_MODELS) == sample.IMAGE_PRESETS
    assert tuple(SOLVERS) == sample.SOLVERS == get_args(get_type_hints(SampleConfig)["solver"])


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


def test_references_name_their_frames(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The request they become is tested with `make_requests`."""
    for name in ("door.png", "clip.mp4", "odd@0"):
        (tmp_path / name).write_bytes(b"")
    monkeypatch.chdir(tmp_path)
    refs = ("--ref", "door.png@0", "--ref", "clip.mp4@40:73")
    found = asked("--prompt", "x", *refs)
    assert found["ref"] == ["door.png@0", "clip.mp4@40:73"]
    assert "condition" not in found
    found = asked("--prompt", "x", "--condition", "frames@0,-1", "--ref", "door.png")
    assert found["condition"] == "frames@0,-1"
    with pytest.raises(UserError, match="--ref needs the frame it shows"):
        asked("--prompt", "x", "--ref", "odd@0")  # the name of a file
    with pytest.raises(UserError, match=r"--ref gone.png: there is no such file"):
        asked("--prompt", "x", "--ref", "gone.png@0")


def test_like_repeats_a_videos_request(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    video = tmp_path / "0000.mp4"
    video.write_bytes(b"")
    record = {"prompts": ["a cat"], "seed": 3, "steps": 20, "height": 64, "width": 64}
    metadata = {"vidgen_request": json.dumps(record)}
    stub = SimpleNamespace(read_metadata=lambda path: metadata, BadClip=Exception)
    monkeypatch.setitem(sys.modules, "vidgen.data.read.video", stub)
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
        (("--prompt", "x", "--condition", "i2v_haed"), "did you mean 'i2v_head'.*clip@0:33"),
        (("--prompt", "x", "--condition", "i2v_head"), "--condition i2v_head needs --ref"),
        (("--prompt", "x", "--ref", "a.png"), "--ref needs the frame it shows"),
        (("--prompt", "x", "--condition", "i2v_head", "--ref", "/no.png"), "no such file"),
        (("--like", "/no.mp4"), "--like /no.mp4: there is no such file"),
        (("--prompt", "x", "--crf", "52"), "'52' is not from 0"),
        (("--prompt", "x", "--crf", "x"), "'x' is not from 0"),
        (("--prompt", "x", "--image-model", __file__), "FILE and --image-ae go together"),
        (("--prompt", "x", "--image-model", "/f", "--image-ae", "/a"), "/f: there is no such"),
        (("--prompt", "x", "--image-model", "t2i2v", "--image-ae", "/a"), "/a: there is no such"),
        (("--prompt", "x", "--image-model", "none", "--image-ae", "/a"), "leave out --image-ae"),
    ],
)
def test_refused_before_a_model_is_loaded(argv: tuple[str, ...], message: str) -> None:
    with pytest.raises(UserError, match=message):
        asked(*argv)


def test_a_table_of_prompts_may_bring_its_references(tmp_path: Path) -> None:
    path = tmp_path / "prompts.csv"
    path.write_text("prompt,ref\na door,door.png\n")
    found = asked("--prompts", str(path), "--condition", "i2v_head")
    assert found["prompts"] == [{"prompt": "a door", "ref": ["door.png"]}]
    assert found["condition"] == "i2v_head"


@pytest.mark.parametrize("published", [False, True])
@pytest.mark.parametrize(
    ("said", "by_recipe", "drawn"),
    [
        ((), None, None),
        ((), "t2i2v", IMAGE_MODELS["t2i2v"]),
        (("--image-model", "none"), "t2i2v", None),
        (("--image-model", "t2i2v_schnell"), "t2i2v", IMAGE_MODELS["t2i2v_schnell"]),
        (
            ("--image-model", "t2i2v", "--image-resolution", "256px"),
            None,
            replace(IMAGE_MODELS["t2i2v"], resolution="256px"),
        ),
    ],
)
def test_the_paths_of_the_videos_are_printed(
    vidgen: Any,
    monkeypatch: pytest.MonkeyPatch,
    published: bool,
    said: tuple[str, ...],
    by_recipe: str | None,
    drawn: ImageModelConfig | None,
) -> None:
    """The calls into vidgen.sample, with a stand-in for a trained model."""
    import vidgen.sample as package

    calls: list[Any] = []

    def make_requests(pipeline: "Pipeline", prompts: list[str], **given: Any) -> list[str]:
        calls.append((str(pipeline), given))
        return [f"request for {prompt}" for prompt in prompts]

    def sample_to_folder(
        pipeline: "Pipeline", requests: list[str], out: str, **more: Any
    ) -> list[Path]:
        more.pop("team")
        calls.append((requests, out, more))
        return [Path(out) / "0000.mp4"]

    def start_from_pictures(
        pipeline: "Pipeline", image: Any, requests: list[str], out: str, *, every: bool, team: Any
    ) -> list[str]:
        calls.append((image, every))
        return [f"{request} from its picture" for request in requests]

    class Pipeline:
        memory_report = "within 24 GB: all stays"
        dtype = torch.float32

        recipe = SimpleNamespace(sample=SampleConfig(image_model=by_recipe))

        def __init__(self, name: str) -> None:
            self.name = name

        def __str__(self) -> str:
            return self.name

        def close(self) -> None:
            calls.append(f"closed {self}")

        @staticmethod
        def from_checkpoint(source: str, device: Any, memory: int | None) -> "Pipeline":
            return Pipeline(f"checkpoint {source} {memory}")

        @staticmethod
        def from_weights(source: str, recipe: Any, device: Any, memory: int | None) -> "Pipeline":
            return Pipeline(f"weights {source} for {recipe.name} {memory}")

    for stand_in in (make_requests, sample_to_folder, start_from_pictures, Pipeline):
        assert hasattr(package, stand_in.__name__)
        monkeypatch.setattr(package, stand_in.__name__, stand_in)
    recipe = Path(__file__).parents[2] / "recipes" / "stage2.yaml"
    more = ("--recipe", recipe, *said)
    argv = ("sample", "run", "--prompt", "x", "--steps", "4", "--memory", "24GB")
    status, out, err = vidgen(*argv, *(more if published else said))
    assert (status, out) == (0, "samples/0000.mp4\n")
    assert err == "within 24 GB: all stays\n"
    loaded = f"{'weights run for stage2' if published else 'checkpoint run'} 24000000000"
    asked_for = "request for x"
    drawn_first = []
    if drawn is not None:
        drawn_first = [(drawn, bool(said))]
        asked_for += " from its picture"
    assert calls == [
        (loaded, {"steps": 4, "samples": 1}),
        *drawn_first,
        ([asked_for], "samples", {"crf": 18, "preview": False}),
        f"closed {loaded}",
    ]


def test_a_request_survives_the_round_trip_through_a_video(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What `--like` reads is what sampling writes: every key is an argument of make_requests."""
    from vidgen.sample import Request

    made = Request("a cat", 3, 17, 64, 64, 20, 7.5, 3.0, 24.0, None)
    video = tmp_path / "0000.mp4"
    video.write_bytes(b"")
    monkeypatch.setattr(
        "vidgen.data.read.video.read_metadata", lambda path: {"vidgen_request": made.record()}
    )
    found = asked("--like", str(video))
    assert found.pop("samples") == 1
    assert found.pop("prompts") == ["a cat"]
    assert Request(prompt="a cat", **{**found, "ref": tuple(found["ref"])}) == made
