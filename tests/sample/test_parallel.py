"""Several ranks: a video each, one video's branches, one video's tokens."""

import hashlib
import importlib.util
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from vidgen.data.read.video import read_clip
from vidgen.errors import UserError
from vidgen.models.mmdit.model import Stream
from vidgen.recipe.image_model import ImageModelConfig
from vidgen.runtime import parallel
from vidgen.runtime.parallel import World
from vidgen.sample import Pipeline, Request, draw_first_frames, make_requests, sample_to_folder
from vidgen.sample.hooks import Hooks, ModelPass
from vidgen.sample.parallel import ALONE, Team, make_team
from vidgen.sample.pipeline import SamplingOptions

Ranks = Callable[..., list[Any]]


def small_pipeline(**changes: Any) -> Pipeline:
    spec = importlib.util.spec_from_file_location("small", Path(__file__).with_name("conftest.py"))
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    pipeline: Pipeline = module.small_pipeline(**changes)
    return pipeline


def wanted(pipeline: Pipeline, left: str, short: bool) -> list[Request]:
    """Text, and a first frame, at shapes whose tokens divide by no number of ranks."""
    (text,) = make_requests(pipeline, ["a red circle"], steps=3, frames=9, height=16, width=48)
    if short:  # one video token, and twelve of text, for up to four ranks
        text = replace(text, frames=1, width=16)
        return [text]
    image = replace(text, condition="i2v_head", ref=(left,), seed=4)
    return [text, image]


def on_ranks(
    rank: int, world: int, folder: Path, left: str, context: int | None, branch: int | None,
    short: bool, ulysses: int | None = None, text: Any = "sharded",
) -> dict[str, Any]:  # fmt: skip
    pipeline = small_pipeline()
    torch.distributed.init_process_group(
        "gloo", store=torch.distributed.FileStore(str(folder / "store"), world), rank=rank,
        world_size=world,
    )  # fmt: skip
    here = World(rank, world, rank, torch.device("cpu"))
    requests = wanted(pipeline, left, short)
    team = make_team(
        here, len(requests), context=context, branch=branch, ulysses=ulysses, text=text
    )
    jobs = [pipeline.check(request) for request in requests]
    features = pipeline.features(jobs)
    options = SamplingOptions(team=team)
    videos = [pipeline.video(job, features, options) for job in jobs[team.index :: team.count]]
    written = sample_to_folder(pipeline, requests, folder / "out", team=team)
    return {
        "team": [team.index, team.count, team.leads],
        "hashes": [hashlib.sha256(v.tobytes()).hexdigest() for v in videos],
        "videos": [v.tolist() for v in videos],
        "written": [p.name for p in written],
    }


@pytest.mark.parametrize(
    ("world", "context", "branch"),
    [(2, None, None), (3, 1, 3), (4, 1, 2)],
)
def test_the_same_bits_on_any_number_of_ranks(
    ranks: Ranks,
    tmp_path: Path,
    files: dict[str, str],
    world: int,
    context: int | None,
    branch: int | None,
) -> None:
    """A video a rank, and branches over ranks: whatever the number of ranks."""
    pipeline = small_pipeline()
    requests = wanted(pipeline, files["left"], short=False)
    expected = [hashlib.sha256(v.tobytes()).hexdigest() for v in pipeline.generate(requests)]
    results = ranks(on_ranks, world, files["left"], context, branch, False)
    for result in results:
        index, count, _ = result["team"]
        assert result["hashes"] == expected[index::count]
        assert result["written"] == ["0000.mp4", "0001.mp4"]
    (out,) = tmp_path.glob("ranks-*/out")
    summary = json.loads((out / "summary-0000.json").read_text())
    assert [v["file"] for v in summary["videos"]] == ["0000.mp4", "0001.mp4"]
    assert [v["seed"] for v in summary["videos"]] == [0, 4]
    assert len(list(out.iterdir())) == 3
    sample_to_folder(pipeline, requests, tmp_path / "alone")
    for name in ("0000.mp4", "0001.mp4"):
        assert (out / name).read_bytes() == (tmp_path / "alone" / name).read_bytes()


@pytest.mark.parametrize(
    ("world", "context", "branch", "ulysses", "text", "short"),
    [
        (2, 2, None, 1, "sharded", False),  # a ring
        (2, 2, None, 2, "replicated", False),  # Ulysses
        (4, 2, 2, None, "sharded", False),  # as measured
        (4, 4, None, 2, "sharded", False),  # a ring of Ulysses groups
        (4, None, None, 1, "replicated", True),
        (4, None, None, 4, "sharded", True),  # two heads: two ranks attend with none
    ],
)
def test_tokens_over_ranks(
    ranks: Ranks,
    files: dict[str, str],
    world: int,
    context: int | None,
    branch: int | None,
    ulysses: int | None,
    text: str,
    short: bool,
) -> None:
    """To one level of 255: partial softmaxes are merged in another order. Any lengths."""
    pipeline = small_pipeline()
    requests = wanted(pipeline, files["left"], short)
    expected = pipeline.generate(requests)
    results = ranks(on_ranks, world, files["left"], context, branch, short, ulysses, text)
    for result in results:
        assert result["hashes"] == results[0]["hashes"]  # every rank of a team has the same
        for video, wanted_video in zip(result["videos"], expected, strict=True):
            assert np.abs(np.array(video) - wanted_video.astype(int)).max() <= 1
    assert sum(result["team"][2] for result in results) == 1


def hooked_streams(rank: int, world: int, folder: Path, text: Any) -> list[list[int]]:
    """Sizes of the streams that a hook sees, and the text tokens that its moment announces."""
    sizes: list[list[int]] = []

    def capture(current: ModelPass, index: int, stream: Stream) -> Stream:
        sizes.append([current.text_length, *(part.shape[1] for part in stream)])
        return stream

    pipeline = small_pipeline()
    pipeline.hooks = Hooks(capture=capture)
    torch.distributed.init_process_group(
        "gloo", store=torch.distributed.FileStore(str(folder / "store"), world), rank=rank,
        world_size=world,
    )  # fmt: skip
    requests = wanted(pipeline, "", short=True)
    here = World(rank, world, rank, torch.device("cpu"))
    team = make_team(here, 1, context=world, ulysses=1, text=text)
    job = pipeline.check(requests[0])
    pipeline.video(job, pipeline.features([job]), SamplingOptions(team=team))
    return sizes


@pytest.mark.parametrize(
    ("text", "expected"),
    # twelve text tokens and one of video: [moment's text, text, video] of each rank
    [("sharded", [[7, 7, 0], [5, 5, 1]]), ("replicated", [[12, 12, 1], [12, 12, 0]])],
)
def test_hooks_see_the_tokens_of_their_rank(
    ranks: Ranks, text: str, expected: list[list[int]]
) -> None:
    for sizes, mine in zip(ranks(hooked_streams, 2, text), expected, strict=True):
        assert sizes
        assert all(each == mine for each in sizes)


def test_how_ranks_are_shared_out() -> None:
    cpu = torch.device("cpu")
    assert make_team(World(0, 1, 0, cpu), 3) == ALONE
    for asked in ({"context": 2}, {"branch": 2}, {"context": 3, "branch": 1}):
        with pytest.raises(UserError, match=r"1 ranks cannot be split into teams of \d"):
            make_team(World(0, 1, 0, cpu), 3, **asked)
    with pytest.raises(UserError, match="--ulysses 3 does not divide the 2 ranks"):
        make_team(World(0, 2, 0, cpu), 1, ulysses=3)
    assert Team() == ALONE


def first_frames(rank: int, world: int, folder: Path) -> list[str]:
    images = small_pipeline(model={"guidance_embed": True, "cond_embed": False})
    pipeline = small_pipeline()
    torch.distributed.init_process_group(
        "gloo", store=torch.distributed.FileStore(str(folder / "store"), world), rank=rank,
        world_size=world,
    )  # fmt: skip
    requests = make_requests(pipeline, ["a", "b"], frames=5, steps=2)
    team = make_team(World(rank, world, rank, torch.device("cpu")), len(requests))
    picture = ImageModelConfig(resolution="32px")
    drawn = draw_first_frames(images, requests, folder / "out", picture, team=team)
    sample_to_folder(pipeline, drawn, folder / "out", team=team)
    return [Path(r.ref[0]).name for r in drawn]


def test_first_frames_on_two_ranks(ranks: Ranks, tmp_path: Path) -> None:
    names = ["first-0000.png", "first-0001.png"]
    assert ranks(first_frames, 2) == [names, names]
    (out,) = tmp_path.glob("ranks-*/out")
    assert read_clip(out / names[0], [0]).shape == (1, 32, 32, 3)
    assert (out / "0001.mp4").is_file()


def test_world_without_torchrun_is_one_rank() -> None:
    with parallel.start("cpu") as world:
        assert make_team(world, 5) == ALONE
