"""The judge of synthetic scenes, frozen: `judge_hash` names the version that made a figure."""

import hashlib
from functools import cache
from pathlib import Path

from vidgen.data.synthetic.scene_judge.judge import Seen, Verdict, judge

__all__ = ["Seen", "Verdict", "judge", "judge_hash"]


@cache
def judge_hash() -> str:
    """Of the judge's source and of the world it knows; a change makes earlier figures void."""
    here = Path(__file__).parent
    world = here.parent / "scenes"
    files = sorted(here.glob("*.py")) + [world / f"{n}.py" for n in ("world", "place", "render")]
    digest = hashlib.sha256()
    for file in files:
        digest.update(file.name.encode() + b"\0" + file.read_bytes() + b"\0")
    return digest.hexdigest()[:16]
