"""Typed configuration: frozen dataclasses that refuse what they do not know."""

import difflib
from collections.abc import Mapping, Sequence
from typing import Any, TypeVar, cast, dataclass_transform

from pydantic import ConfigDict, TypeAdapter
from pydantic.dataclasses import dataclass
from pydantic_core import core_schema

T = TypeVar("T")


@dataclass_transform(frozen_default=True, kw_only_default=True)
def config(cls: type[T]) -> type[T]:
    """Make `cls` a frozen, keyword-only dataclass whose fields are checked when it is built."""
    strict = ConfigDict(extra="forbid", allow_inf_nan=False)
    return cast(type[T], dataclass(frozen=True, kw_only=True, config=strict)(cls))


class Presets:
    """Marks a field that also takes a name: `model: Annotated[MMDiTConfig, Presets(PRESETS)]`.

    The field then accepts `opensora_v2`, or `{preset: opensora_v2, depth: 2}`, or every key
    spelled out. In a recipe, naming a preset replaces whatever was inherited for that field.
    """

    def __init__(self, presets: Mapping[str, Any]) -> None:
        self.presets = presets

    def __get_pydantic_core_schema__(self, source: Any, handler: Any) -> core_schema.CoreSchema:
        return core_schema.no_info_before_validator_function(self.resolve, handler(source))

    def resolve(self, value: Any) -> Any:
        if isinstance(value, str):
            value = {"preset": value}
        if not isinstance(value, dict) or "preset" not in value:
            return value
        name = value["preset"]
        if name not in self.presets:
            raise ValueError(f"there is no preset {name!r}{nearest(str(name), list(self.presets))}")
        own = {key: v for key, v in value.items() if key != "preset"}
        return {**to_dict(self.presets[name]), **own}


def to_dict(cfg: Any) -> dict[str, Any]:
    """A configuration as plain mappings, lists and scalars: what its YAML file would hold."""
    return dict(TypeAdapter(type(cfg)).dump_python(cfg, mode="json"))


def nearest(name: str, valid: Sequence[str]) -> str:
    """The end of an error message: the closest valid name, or all of them."""
    close = difflib.get_close_matches(name, valid, n=1)
    return f" (did you mean {close[0]!r}?)" if close else f"; there is {', '.join(valid)}"
