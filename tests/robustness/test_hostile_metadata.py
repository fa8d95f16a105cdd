"""What files say of themselves: checked as the command line is, never run, never followed."""

import io
import json
import os
import pickle
from pathlib import Path
from typing import Any

import pytest
import torch

from vidgen.errors import UserError
from vidgen.printable import one_line, printable
from vidgen.runtime import checkpoint
from vidgen.runtime.checkpoint.dcp import OBJECTS, export_dcp, import_dcp
from vidgen.runtime.checkpoint.dcp_metadata import read_metadata
from vidgen.sample.recorded import read_record

NAN = float("nan")
GOOD = {"prompts": ["a cat"], "seed": 3, "steps": 20, "height": 64, "width": 64, "solver": "euler"}


def read(record: dict[str, Any] | str, **how: bool) -> dict[str, Any]:
    text = record if isinstance(record, str) else json.dumps(record)
    return read_record(text, **{"allow_refs": False, "own_refs": False, **how})


@pytest.mark.parametrize(
    "changed",
    [
        *(
            {"guidance": value}
            for value in (float("nan"), float("inf"), 1e300, "7", True, [7], None)
        ),
        *({"guidance_img": value} for value in (float("nan"), -float("inf"))),
        *({"steps": value} for value in (0, -1, 10**12, 1.5, "x", float("nan"), {})),
        *({"height": value} for value in (0, 10**9, "64px")),
        *({"fps": value} for value in (-1, float("inf"), float("nan"), 1e9)),
        *({"motion_score": value} for value in (float("nan"), "much")),
        *({"seed": value} for value in (2**64, float("inf"), "0x1")),
        *(
            {"prompts": value}
            for value in ([], None, "a cat", [3], [["a"]], {"a": 1}, ["a" * 10**6])
        ),
        *({"condition": value} for value in ("any", 3, ["t2v"], None)),
        *({"solver": value} for value in ("exec", [], {}, None)),
        *({"ref": value} for value in ("/etc/passwd", ["/etc/passwd"], [3], {"a": 1}, 3)),
        *({"negative": value} for value in (3, None, ["a"])),
        *({name: "x"} for name in ("weights", "recipe", "device", "samples", "__class__")),
    ],
)
def test_a_request_that_is_refused(changed: dict[str, Any]) -> None:
    """Naming the field."""
    with pytest.raises(UserError, match=next(iter(changed)) + "|reference") as refused:
        read({**GOOD, **changed})
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize("text", ["", "[]", "3", "null", "{", "[" * 100_000, '{"prompts": 1e999}'])
def test_a_record_that_is_no_request(text: str) -> None:
    with pytest.raises(UserError, match="its request"):
        read(text)


def test_references_are_opened_only_when_asked() -> None:
    named = {**GOOD, "condition": "i2v_head", "ref": ["/etc/hostname"]}
    with pytest.raises(UserError, match=r"/etc/hostname, which are not .*--allow-refs"):
        read(named)
    assert read(named, own_refs=True)["ref"] == []
    assert read(named, allow_refs=True)["ref"] == ["/etc/hostname"]
    assert read(GOOD)["prompts"] == ["a cat"]


class Runs:
    """Unpickled, it makes a file."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> Any:
        return os.mkdir, (str(self.marker),)


def as_recorded(weights: object, recorded: str | None) -> str:
    """The layout of an imported step; what it is does not matter here."""
    return recorded or "vidgen"


@pytest.fixture
def exported(tmp_path: Path) -> Path:
    tensors = {"model": {"a": torch.arange(30.0), "b": torch.ones(7, 5, dtype=torch.bfloat16)}}
    objects = {"trainer": {"step": 5}}
    step = checkpoint.save(tmp_path / "c", 5, tensors, objects, background=False).path
    export_dcp(step, tmp_path / "dcp")
    return tmp_path / "dcp"


def test_an_exported_checkpoint_is_imported(exported: Path, tmp_path: Path) -> None:
    found = import_dcp(exported, tmp_path / "new", 7, as_recorded)
    assert torch.equal(checkpoint.read_tensors(found.path, "model")["a"], torch.arange(30.0))
    assert checkpoint.read_objects(found.path)["trainer"] == {"step": 5}
    assert not found.left_out


@pytest.mark.parametrize("protocol", range(5))
def test_metadata_that_run_code(exported: Path, tmp_path: Path, protocol: int) -> None:
    (exported / ".metadata").write_bytes(pickle.dumps(Runs(tmp_path / "ran"), protocol))
    with pytest.raises(UserError, match=r"names posix\.mkdir, which a DCP does not need"):
        import_dcp(exported, tmp_path / "new", 7, as_recorded)
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize(
    "name", [("builtins", "eval"), ("builtins", "getattr"), ("torch", "load"), ("os", "system"),
             ("torch.hub", "load"), ("torch.serialization", "load"), ("pathlib", "os.system")]
)  # fmt: skip
def test_no_other_name_is_looked_up(exported: Path, name: tuple[str, str]) -> None:
    module, attribute = name
    texts = b"".join(b"\x8c" + bytes([len(t)]) + t.encode() for t in (module, attribute))
    (exported / ".metadata").write_bytes(b"\x80\x04" + texts + b"\x93.")
    with pytest.raises(UserError, match="which a DCP does not need"):
        read_metadata(exported)


def test_objects_that_run_code(exported: Path, tmp_path: Path) -> None:
    """torch's own planner unpickles what is no tensor."""
    import torch.distributed.checkpoint as dcp

    folder = tmp_path / "hostile"
    dcp.save(
        {"a": torch.ones(3), OBJECTS: Runs(tmp_path / "ran")}, checkpoint_id=folder, no_dist=True
    )
    with pytest.raises(UserError, match="cannot be read"):
        import_dcp(folder, tmp_path / "new", 7, as_recorded)
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("name", ["../a.distcp", "/etc/passwd", "..", ""])
def test_metadata_that_name_other_files(exported: Path, name: str) -> None:
    metadata = read_metadata(exported)
    for info in metadata.storage_data.values():
        info.relative_path = name
    buffer = io.BytesIO()
    pickle.dump(metadata, buffer)
    (exported / ".metadata").write_bytes(buffer.getvalue())
    with pytest.raises(UserError, match="names the file"):
        read_metadata(exported)


def test_tensors_larger_than_their_files(exported: Path) -> None:
    metadata = read_metadata(exported)
    entry = metadata.state_dict_metadata["model.a"]
    entry.size = torch.Size([10**13])
    (exported / ".metadata").write_bytes(pickle.dumps(metadata))
    with pytest.raises(UserError, match="describes tensors of 40000000000"):
        read_metadata(exported)


def test_terminals_are_not_commanded() -> None:
    hostile = "a\x1b]0;title\x07\x1b[2J\x9b1m\u202egnp.exe\x00\r\u2028b"
    shown = printable(hostile)
    assert shown.isprintable()
    assert "\\x1b]0;title\\x07" in shown
    assert "\\u202e" in shown
    assert printable("a café 猫 👩\u200d🚀\n\tb") == "a café 猫 👩\u200d🚀\n\tb"
    assert one_line("a\nb") == "a\\nb"


def test_error_lines_are_shown_so(capsys: pytest.CaptureFixture[str]) -> None:
    from vidgen.cli.main import main

    assert main(["recipe", "show", "no\x1b[2Jsuch.yaml"]) == 2
    error = capsys.readouterr().err
    assert "\x1b" not in error
    assert "no\\x1b[2Jsuch.yaml" in error
