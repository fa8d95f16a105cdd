"""The request that a video says made it: text from outside, checked as the command line is."""

import json
import math
from typing import Any

from vidgen import limits
from vidgen.diffusion.solvers import SOLVERS
from vidgen.errors import UserError
from vidgen.printable import one_line
from vidgen.sample.prompts import FIELDS

_BOUNDS: dict[str, tuple[float, float]] = {
    "seed": (-(2**63), 2**63 - 1),
    "frames": (1, limits.SAMPLE_FRAMES),
    "height": (1, limits.SAMPLE_SIDE),
    "width": (1, limits.SAMPLE_SIDE),
    "steps": (1, limits.SAMPLE_STEPS),
    "fps": (0, 1000),
    "guidance": (-limits.GUIDANCE, limits.GUIDANCE),
    "guidance_img": (-limits.GUIDANCE, limits.GUIDANCE),
    "motion_score": (-1000, 1000),
}
_NULLABLE = ("motion_score",)


def read_record(record: str, *, allow_refs: bool, own_refs: bool) -> dict[str, Any]:
    """Keyword arguments of `make_requests`; a UserError names the field that cannot be.

    The files it names are used with `allow_refs` only: a video could name any file of this
    machine. `own_refs` says that others were given in their place.
    """
    if len(record) > limits.METADATA_BYTES:
        raise UserError(f"its request has {len(record)} characters, more than is read")
    try:
        found = json.loads(record)
    except (ValueError, RecursionError) as error:
        raise UserError(f"its request is not JSON: {one_line(error)[:200]}") from None
    if not isinstance(found, dict):
        raise UserError("its request is not a JSON object")
    request: dict[str, Any] = {"prompts": _prompts(found.pop("prompts", None))}
    for name, value in found.items():
        request[name] = _value(name, value)
    refs = request.get("ref", [])
    if refs and own_refs:
        request["ref"] = []
    elif refs and not allow_refs:
        names = ", ".join(map(one_line, refs))
        raise UserError(
            f"it was made with the reference file(s) {names}, which are not opened unasked: "
            "give them again with --ref, or add --allow-refs to open what the video names"
        )
    return request


def _prompts(value: Any) -> list[str]:
    if not isinstance(value, list) or not value:
        raise UserError("its request has no prompts: expected a list of texts")
    if len(value) > limits.SAMPLE_PROMPTS:
        raise UserError(
            f"its request has {len(value)} prompts; at most {limits.SAMPLE_PROMPTS} are made"
        )
    return [_text("prompts", text) for text in value]


def _text(name: str, value: Any) -> str:
    if not isinstance(value, str) or len(value) > limits.PROMPT_CHARACTERS:
        raise UserError(
            f"{name} of its request: expected text of at most {limits.PROMPT_CHARACTERS} characters"
        )
    return value


def _value(name: str, value: Any) -> Any:
    if name == "solver":
        if value not in tuple(SOLVERS):
            raise UserError(
                f"solver of its request is {_show(value)}: expected {', '.join(SOLVERS)}"
            )
        return value
    if name not in FIELDS or name == "prompt":
        raise UserError(f"its request has the unknown field {_show(name)}")
    if value is None and name in _NULLABLE:
        return None
    if name in ("ref", "negative", "resolution", "aspect"):
        for text in value if name == "ref" and isinstance(value, list) else [value]:
            _text(name, text)
    try:
        made = FIELDS[name](value)
    except (ValueError, TypeError, AttributeError, OverflowError):
        raise UserError(f"{name} of its request is {_show(value)}, which it cannot be") from None
    if name in _BOUNDS:
        low, high = _BOUNDS[name]
        if not isinstance(value, int | float) or not (math.isfinite(made) and low <= made <= high):
            raise UserError(
                f"{name} of its request is {_show(value)}: expected a number from {low:g} to "
                f"{high:g}"
            )
    return made


def _show(value: Any) -> str:
    text = one_line(repr(value))
    return text if len(text) <= 60 else text[:57] + "..."
