"""The report is one well-formed page that needs nothing from outside it."""

import base64
import io
import re

import pytest

from tests.page.parser import Page
from vidgen.errors import UserError
from vidgen.page.charts import Mark
from vidgen.page.videos import SHOWN
from vidgen.train.report.log import RunLog
from vidgen.train.report.page import Adherence, VideoEntry, write_report


def train(run_dir, steps=40, **extra):
    with RunLog(run_dir, steps, tensorboard=False, stream=io.StringIO()) as log:
        for step in range(1, steps + 1):
            phases = {"data": 2.0, "other": 1.0, "forward": 30.0, "backward": 67.0}
            log.step(
                step,
                loss=1 / step,
                grad_norm=0.5,
                lr=1e-3,
                ms=100.0,
                data_ms=2.0,
                mfu=0.4,
                phases=phases,
                **extra,
            )


def report(run_dir, **options):
    given = {"title": "T", "facts": {}, "environment": {}} | options
    return Page(write_report(run_dir, **given).read_text(encoding="utf-8"))


@pytest.fixture
def run_dir(tmp_path):
    train(tmp_path)
    return tmp_path


def video(run_dir, name="a.mp4", **options):
    path = run_dir / name
    path.write_bytes(b"not really a video: " + name.encode())
    given = {"prompt": "a red circle moving left", "size": (64, 64)} | options
    return VideoEntry(path, **given)


def full(run_dir):
    return {
        "title": "quick <start>",
        "subtitle": "small & fast",
        "facts": {"Steps": 40, "Wall time": "9 min"},
        "phases": [("Train", 30.0), ("Sample", 10.0)],
        "videos": [
            video(
                run_dir,
                verdict={"colour": True, "shape": False},
                seen={"colour": "red", "shape": "square"},
                tags=["held out"],
            )
        ],
        "adherence": [
            Adherence("All prompts", {"colour": 0.998, "shape": 0.5}, 48),
            Adherence("Control", {"colour": 0.25}, 48, control=True),
        ],
        "targets": {"colour": 0.95},
        "environment": {"torch": "2.13", "cpu": {"cores": 2, "features": ["avx2", "fma"]}},
        "recipe": "name: quickstart\nrun_dir: <here>\n",
        "marks": [Mark(20, "resumed")],
    }


def test_nothing_is_fetched(run_dir):
    page = report(run_dir, **full(run_dir))
    for _, attributes in page.elements:
        for name in ("src", "href", "srcset", "data", "action", "poster", "xlink:href"):
            assert (attributes.get(name) or "data:").startswith("data:")
    text = (run_dir / "report.html").read_text(encoding="utf-8")
    outside = re.sub(r"base64,[A-Za-z0-9+/=]*", "", text)
    assert not re.search(r"https?:|//\w|@import|url\(", re.sub(r"// [A-Z].*", "", outside))
    (policy,) = [m for m in page.all("meta") if "http-equiv" in m]
    assert policy["content"].startswith("default-src 'none'")


def test_everything_given_is_shown_and_escaped(run_dir):
    page = report(run_dir, **full(run_dir))
    for words in (
        "quick <start>",
        "small & fast",
        "9 min",
        "Train",
        "75%",
        "cpu.cores",
        "avx2, fma",
        "run_dir: <here>",
        "resumed",
        "Written by vidgen",
    ):
        assert words in page.text
    assert not page.all("start")


def test_videos_are_embedded_beside_prompt_and_verdict(run_dir):
    page = report(run_dir, **full(run_dir))
    (found,) = page.all("video")
    data = found["src"].removeprefix("data:video/mp4;base64,")
    assert base64.b64decode(data) == (run_dir / "a.mp4").read_bytes()
    assert found["aria-label"] == "a red circle moving left"
    assert found["class"] == "small"
    assert len(page.all("span", **{"class": "chip good"})) == 1
    assert len(page.all("span", **{"class": "chip bad"})) == 1
    assert "\u2713 colour" in page.text
    assert "\u2717 shape: square" in page.text
    assert "held out" in page.text
    assert "1 video, 0 of 1 right in everything judged" in page.text


def test_many_videos_unfold(run_dir):
    videos = [video(run_dir, f"{i}.mp4") for i in range(SHOWN + 5)]
    page = report(run_dir, videos=videos)
    assert len(page.all("video")) == SHOWN + 5
    assert "Show the other 5" in page.text
    assert "right in everything" not in page.text  # nothing was judged


def test_judge_table_shows_the_control_beside(run_dir):
    page = report(run_dir, **full(run_dir))
    assert "99.8%" in page.text  # not rounded up to a full score
    assert "at least 95%" in page.text
    assert "Control" in page.text
    assert len(page.all("td", **{"class": "control"})) == 2  # one of them empty
    widths = [i["style"] for i in page.all("i") if "style" in i]
    assert "width:25.0%" in widths


def test_charts_of_what_was_recorded(run_dir):
    page = report(run_dir)
    labels = [svg["aria-label"] for svg in page.all("svg", role="img")]
    assert labels == [
        "Loss (log scale)",
        "Time of a step by phase, in ms",
        "Gradient norm",
        "Learning rate",
        "Waiting for data, percent of the step",
    ]
    assert "backward 67 ms, 67.0 %" in page.text
    assert "2.0 % on average" in page.text
    assert "100 ms a step, MFU 40.0 %" in page.text
    classes = [r["class"] for r in page.all("rect")]
    assert classes[:4] == ["phase-data", "phase-forward", "phase-backward", "phase-other"]


def test_steps_that_are_not_finite_are_counted(tmp_path):
    with RunLog(tmp_path, 3, tensorboard=False, stream=io.StringIO()) as log:
        for step, loss in enumerate((1.0, float("nan"), 0.5), start=1):
            log.step(step, loss=loss)
    page = report(tmp_path)
    assert "1 step without a finite value" in page.text
    assert "nan" not in "".join(line["points"] for line in page.all("polyline"))


def test_a_run_of_no_steps_still_reports(tmp_path):
    train(tmp_path, steps=0)
    page = report(tmp_path)
    assert "No step was recorded" in page.text
    assert not page.all("svg")


def test_a_single_step_reports(tmp_path):
    train(tmp_path, steps=1)
    assert len(report(tmp_path).all("svg", role="img")) == 5


def test_sections_without_content_are_left_out(run_dir):
    page = report(run_dir)
    for words in ("Sampled videos", "prompt says", "Where the time went", "recipe in full"):
        assert words not in page.text


def test_replaces_the_report_whole(run_dir):
    report(run_dir, title="first")
    page = report(run_dir, title="second")
    assert "second" in page.text
    assert "first" not in page.text
    assert not list(run_dir.glob("*.tmp"))


def test_a_directory_without_metrics_is_refused(tmp_path):
    with pytest.raises(UserError, match="metrics"):
        report(tmp_path)
