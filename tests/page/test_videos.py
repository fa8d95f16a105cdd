"""Cards and players: the whole video is in the page, and a player drives all of its group."""

import base64
from pathlib import Path

from tests.page.parser import Page
from vidgen.page.kit import chip
from vidgen.page.videos import Comparison, VideoCard, comparisons, gallery


def cards(folder: Path, count: int) -> list[VideoCard]:
    found = []
    for i in range(count):
        path = folder / f"{i}.mp4"
        path.write_bytes(f"video {i}".encode())
        found.append(VideoCard(path, f"clip <{i}>", chip(f"tag {i}"), (64, 96)))
    return found


def test_a_gallery_embeds_each_video_and_unfolds_the_rest(tmp_path: Path) -> None:
    page = Page(gallery(cards(tmp_path, 5), "5 <videos>", shown=3))
    videos = page.all("video")
    assert [base64.b64decode(v["src"].split(",")[1]) for v in videos] == [
        f"video {i}".encode() for i in range(5)
    ]
    assert videos[0]["aria-label"] == "clip <0>"
    assert videos[0]["style"] == "aspect-ratio:96/64"
    assert videos[0]["class"] == "small"
    assert all("loop" in v and "muted" in v for v in videos)
    assert "Show the other 2" in page.text
    assert "5 <videos>" in page.text
    assert "details" not in gallery(cards(tmp_path, 3), "", shown=3)


def test_a_large_video_is_not_pixelated(tmp_path: Path) -> None:
    (card,) = cards(tmp_path, 1)
    large = VideoCard(card.path, "large", size=(256, 256))
    assert "class" not in Page(gallery([large], "")).all("video")[0]


def test_a_comparison_has_one_player_for_all_its_videos(tmp_path: Path) -> None:
    two = Comparison("exact & fast", cards(tmp_path, 2))
    page = Page(comparisons([two, Comparison("other", cards(tmp_path, 3))]))
    groups = page.all("div", role="group")
    assert [g["aria-label"] for g in groups] == ["exact & fast", "other"]
    assert len(page.all("input", type="range")) == 2
    assert len(page.all("button", **{"class": "toggle"})) == 2
    # The player starts them together: none starts by itself.
    assert len(page.all("video")) == 5
    assert not [v for v in page.all("video") if "autoplay" in v or "loop" in v]
    assert all("controls" in v for v in page.all("video"))  # for readers without scripts
