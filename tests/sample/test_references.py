"""The pieces of a condition, out of the files that show them."""

from collections.abc import Sequence

import numpy as np
import pytest
import torch
from torch import Tensor

from vidgen.errors import UserError
from vidgen.models.block_dct.config import BlockDCTConfig
from vidgen.models.block_dct.model import BlockDCT
from vidgen.sample.references import check_references, read_references

AE = BlockDCT(BlockDCTConfig())


def read(
    name: str, *paths: str, size: tuple[int, int] = (32, 32), frames: int = 41
) -> list[Tensor]:
    """The pieces of a video of 41 frames."""
    return read_references(check_references(name, paths, AE, frames), size, torch.device("cpu"))


def levels(piece: Tensor) -> list[float]:
    """The mean of each frame, as the 8-bit level it was written at."""
    found: list[float] = ((piece.mean((0, 2, 3)) + 1) * 127.5).tolist()
    return found


def test_an_image_is_one_frame_in_range(files: dict[str, str]) -> None:
    (piece,) = read("i2v_head", files["left"])
    assert piece.shape == (3, 1, 32, 32)
    assert piece.dtype == torch.float32
    expected = torch.tensor([200, 60, 120]) / 127.5 - 1
    torch.testing.assert_close(piece[:, 0, 16, 4], expected, atol=1e-6, rtol=0)
    torch.testing.assert_close(piece[:, 0, 16, 28], torch.full((3,), 40 / 127.5 - 1))


def test_a_video_gives_the_end_that_is_asked_for(files: dict[str, str]) -> None:
    ramp = 20 + 5 * np.arange(40)
    for name, expected in (
        ("i2v_head", [ramp[:1]]),
        ("i2v_tail", [ramp[-1:]]),
        ("i2v_loop", [ramp[:1], ramp[-1:]]),
        ("v2v_head", [ramp[:33]]),
        ("v2v_tail", [ramp[-33:]]),
    ):
        pieces = read(name, files["clip"])
        assert len(pieces) == len(expected)
        for piece, frames in zip(pieces, expected, strict=True):
            assert levels(piece) == pytest.approx(frames.tolist(), abs=3)


@pytest.mark.parametrize(
    ("name", "count", "expected"),
    [
        ("frames@8", 1, [[0]]),  # a file for one piece is shown from its start
        ("clip@16:21", 1, [range(5)]),
        ("clip@-5:", 1, [range(35, 40)]),  # at the end of the video: up to the file's end
        ("frames@0,8,-1", 1, [[0], [8], [39]]),  # one video for all: its frames of these numbers
        ("every@16", 1, [[0], [16], [32]]),
        ("clip@8:13+frames@-1", 1, [range(8, 13), [39]]),
        ("frames@8,16", 2, [[0], [0]]),
    ],
)
def test_places_within_a_video(
    files: dict[str, str], name: str, count: int, expected: list[Sequence[int]]
) -> None:
    pieces = read(name, *[files["clip"]] * count)
    for piece, numbers in zip(pieces, expected, strict=True):
        assert levels(piece) == pytest.approx([20 + 5 * n for n in numbers], abs=3)


def test_an_image_serves_every_place(files: dict[str, str]) -> None:
    pieces = read("every@16", files["left"])
    assert len(pieces) == 3
    assert all(torch.equal(piece, pieces[0]) for piece in pieces)


def test_a_loop_takes_one_file_or_two(files: dict[str, str]) -> None:
    head, tail = read("i2v_loop", files["left"])
    assert torch.equal(head, tail)
    head, tail = read("i2v_loop", files["left"], files["right"])
    assert torch.equal(head, tail.flip(-1))


def test_pictures_cover_the_size_and_are_cut_in_the_middle(files: dict[str, str]) -> None:
    (piece,) = read("i2v_head", files["left"], size=(16, 32))
    assert piece.shape == (3, 1, 16, 32)
    assert (piece[0, 0, :, 2] > 0).all()
    assert (piece[0, 0, :, 30] < 0).all()
    (piece,) = read("i2v_head", files["clip"], size=(64, 64))
    assert piece.shape == (3, 1, 64, 64)


def test_text_alone_takes_nothing() -> None:
    assert read("t2v") == []


@pytest.mark.parametrize(
    ("name", "given", "message"),
    [
        ("i2v_head", [], r"condition i2v_head takes 1 file\(s\); 0 were given"),
        ("i2v_head", ["left", "right"], r"takes 1 file\(s\); 2 were given"),
        ("i2v_loop", ["left", "right", "left"], r"takes 1 or 2 file\(s\); 3 were given"),
        ("t2v", ["left"], r"takes no reference file\(s\); 1 were given"),
        ("v2v_head", ["left"], r"left.png has 1 frame\(s\); this condition needs 33"),
        ("frames@60", ["left"], r"frames@60 is outside a video of 41 frames"),
        ("frames@0,40", ["clip", "clip", "left"], r"takes 1 or 2 file\(s\); 3 were given"),
        ("clip@0:9+clip@11:32", ["left"], "clip@11:32 ends before frame 32"),
        ("i2v_head", ["notes"], r"notes.txt .*expected an image or a video"),
    ],
)
def test_refusals(files: dict[str, str], name: str, given: list[str], message: str) -> None:
    with pytest.raises(UserError, match=message) as raised:
        read(name, *(files[n] for n in given))
    assert "\n" not in str(raised.value)


def test_a_file_that_is_not_there() -> None:
    with pytest.raises(UserError, match=r"/nowhere/door\.png: there is no such file"):
        read("i2v_head", "/nowhere/door.png")
