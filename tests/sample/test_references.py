"""The pieces of a condition, out of the files that show them."""

import numpy as np
import pytest
import torch
from torch import Tensor

from vidgen.diffusion.config import ConditionName
from vidgen.errors import UserError
from vidgen.models.block_dct.config import BlockDCTConfig
from vidgen.models.block_dct.model import BlockDCT
from vidgen.sample.references import check_references, read_references

AE = BlockDCT(BlockDCTConfig())


def read(name: ConditionName, *paths: str, size: tuple[int, int] = (32, 32)) -> list[Tensor]:
    return read_references(name, check_references(name, paths, AE), AE, size, torch.device("cpu"))


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
        pieces = read(name, files["clip"])  # type: ignore[arg-type]
        assert len(pieces) == len(expected)
        for piece, frames in zip(pieces, expected, strict=True):
            assert levels(piece) == pytest.approx(frames.tolist(), abs=3)


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
        ("i2v_head", ["notes"], r"notes.txt .*expected an image or a video"),
    ],
)
def test_refusals(
    files: dict[str, str], name: ConditionName, given: list[str], message: str
) -> None:
    with pytest.raises(UserError, match=message) as raised:
        read(name, *(files[n] for n in given))
    assert "\n" not in str(raised.value)


def test_a_file_that_is_not_there() -> None:
    with pytest.raises(UserError, match=r"/nowhere/door\.png: there is no such file"):
        read("i2v_head", "/nowhere/door.png")
