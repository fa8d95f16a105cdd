"""Files of prompts, and each way to get one wrong."""

from pathlib import Path

import pytest

from vidgen.errors import UserError
from vidgen.sample.prompts import read_prompts


def test_a_line_is_a_prompt(tmp_path: Path) -> None:
    path = tmp_path / "prompts.txt"
    path.write_text("one, with a comma\n\n  two \n")
    assert read_prompts(path) == ["one, with a comma", "two"]


def test_a_table(tmp_path: Path) -> None:
    """As a spreadsheet writes it: a mark of byte order, quotes, a line break within a cell."""
    path = tmp_path / "prompts.csv"
    path.write_bytes(
        b"\xef\xbb\xbfprompt,seed,ref,condition,guidance\r\n"
        b'"a cat, asleep",7,,,\r\n'
        b'"two\nlines",,a.png; b.png,i2v_loop,2.5\r\n'
    )
    assert read_prompts(path) == [
        {"prompt": "a cat, asleep", "seed": 7},
        {
            "prompt": "two\nlines",
            "ref": ["a.png", "b.png"],
            "condition": "i2v_loop",
            "guidance": 2.5,
        },
    ]


def test_json_lines(tmp_path: Path) -> None:
    path = tmp_path / "prompts.jsonl"
    path.write_text(
        '{"prompt": "a", "frames": 5, "height": 32, "width": 48, "fps": 12}\n\n'
        '{"prompt": "b", "ref": ["x.png"], "condition": "i2v_head", "negative": ""}\n'
    )
    assert read_prompts(path) == [
        {"prompt": "a", "frames": 5, "height": 32, "width": 48, "fps": 12.0},
        {"prompt": "b", "ref": ["x.png"], "condition": "i2v_head", "negative": ""},
    ]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("p.txt", "\n \n", "holds no prompt; write one a line"),
        ("p.csv", "prompt\n", "holds no prompt"),
        ("p.csv", "prompt,sed\na,1\n", r"line 2: unknown field 'sed' \(did you mean 'seed'\?\)"),
        ("p.csv", "prompt,seed\na,one\n", "line 2: seed 'one' is not what it should be"),
        ("p.csv", "prompt,seed\na,1.5\n", "line 2: seed '1.5' is not what it should be"),
        ("p.csv", "prompt,seed\na,1,2\n", "line 2: has another number of cells"),
        ("p.csv", "prompt,seed\na\n", "line 2: has another number of cells"),
        ("p.csv", "seed\n1\n", "line 2: has no 'prompt'"),
        (
            "p.csv",
            "prompt,condition\na,i2v\n",
            "'i2v' is no condition.*clip@0:33",
        ),
        ("p.jsonl", '{"prompt": "a"}\n{"prompt"\n', "line 2: "),
        ("p.jsonl", '"a"\n', 'line 1: expected {"prompt": "..."}'),
        ("p.jsonl", '{"prompt": 3}\n', "line 1: prompt 3 is not text"),
        ("p.jsonl", '{"prompt": "a", "frames": 5.5}\n', "frames 5.5 is not a whole number"),
        ("p.jsonl", '{"prompt": "a", "steps": true}\n', "steps True is not a whole number"),
    ],
)
def test_refusals(tmp_path: Path, name: str, content: str, message: str) -> None:
    path = tmp_path / name
    path.write_text(content)
    with pytest.raises(UserError, match=message) as raised:
        read_prompts(path)
    assert str(raised.value).startswith(f"--prompts {path}")
    assert "\n" not in str(raised.value)


def test_files_that_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="No such file"):
        read_prompts(tmp_path / "none.txt")
    path = tmp_path / "binary.txt"
    path.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(UserError, match="is not UTF-8 text"):
        read_prompts(path)
