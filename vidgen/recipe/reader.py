"""Reading recipes: YAML over typed dataclasses, with overrides; errors name file and line."""

import dataclasses
import difflib
import types
import typing
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar, overload

from pydantic import TypeAdapter, ValidationError
from pydantic_core import ErrorDetails

from vidgen import limits
from vidgen.config import Presets, nearest, to_dict
from vidgen.errors import UserError
from vidgen.recipe import library
from vidgen.recipe.schema import Recipe
from vidgen.recipe.yaml_text import Keys, Replace, parse_yaml, write_yaml
from vidgen.runtime import files

T = TypeVar("T")
Source = str | Path | Mapping[str, Any]


@overload
def read_recipe(source: Source, overrides: Sequence[str] = ()) -> Recipe: ...
@overload
def read_recipe(source: Source, overrides: Sequence[str], cls: type[T]) -> T: ...
def read_recipe(source: Source, overrides: Sequence[str] = (), cls: type[Any] = Recipe) -> Any:
    """Read a recipe (a YAML file, the name of one of vidgen's, or a mapping), apply `key=value`
    overrides, check it all."""
    reader = _Reader(cls)
    return reader.validate(reader.assemble(source, overrides))


def read_origins(
    source: Source, overrides: Sequence[str], cls: type[Any]
) -> dict[Keys, tuple[Any, str]]:
    """What a recipe states, defaults left out: each value, and the file and line it comes from."""
    reader = _Reader(cls)
    data = reader.assemble(source, overrides)
    reader.validate(data)
    return {keys: (value, reader.where(keys).removesuffix(": ")) for keys, value in leaves(data)}


def peek(path: str | Path, key: str) -> Any:
    """One top-level value of a recipe, unchecked; None if it is absent or cannot be read."""
    path = library.find(path)
    try:
        own, _ = parse_yaml(files.read_text(path, at_most=limits.RECIPE_BYTES), str(path))
    except (OSError, UserError):
        return None
    if not isinstance(own, dict):
        return None
    bases = own.get("base", [])
    inherited = (
        peek(library.find(base, path.parent), key)
        for base in (reversed(bases) if isinstance(bases, list) else [bases])
        if isinstance(base, str)
    )
    return own[key] if key in own else next((v for v in inherited if v is not None), None)


def _nearest_recipe(path: Path) -> str:
    """The end of an error message: the file or the name that was probably meant."""
    if path.stem in library.names():
        return f" (did you mean {path.stem!r}, which comes with vidgen?)"
    near = [p.name for p in sorted(path.parent.glob("*.y*ml"))]
    if path.name == str(path):
        near += library.names()
    return nearest(path.name, near) if near else "; give the path of a YAML file"


def dump_yaml(cfg: Any) -> str:
    """YAML that `read_recipe` turns back into an equal configuration."""
    return write_yaml(cfg if isinstance(cfg, dict) else to_dict(cfg))


def diff(a: Any, b: Any) -> list[str]:
    """One line for each value that differs: `optim.lr: 5.0e-05 -> 3.0e-05`."""
    left, right = dict(leaves(to_dict(a), ())), dict(leaves(to_dict(b), ()))
    lines = []
    for keys in [*left, *(keys for keys in right if keys not in left)]:
        shown = [_show(side[keys]) if keys in side else "(absent)" for side in (left, right)]
        if shown[0] != shown[1]:
            lines.append(f"{'.'.join(keys)}: {shown[0]} -> {shown[1]}")
    return lines


def leaves(value: Any, keys: Keys = ()) -> Iterator[tuple[Keys, Any]]:
    if isinstance(value, dict):
        for key, inner in value.items():
            yield from leaves(inner, (*keys, str(key)))
    else:
        yield keys, value


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(key): _plain(inner) for key, inner in value.items()}
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return to_dict(value)
    return [_plain(inner) for inner in value] if isinstance(value, list | tuple) else value


# -- Types: what a key may hold --


def _types(annotation: Any) -> list[Any]:
    """The alternatives of an annotation, without Annotated, unions and aliases around them."""
    if hasattr(annotation, "__value__"):
        return _types(annotation.__value__)
    origin = typing.get_origin(annotation)
    if origin is typing.Annotated:
        return _types(typing.get_args(annotation)[0])
    if origin in (typing.Union, types.UnionType):
        return [inner for arg in typing.get_args(annotation) for inner in _types(arg)]
    return [annotation]


def _fields(annotation: Any) -> dict[str, Any]:
    """Pydantic's field descriptions of the dataclasses an annotation allows."""
    found: dict[str, Any] = {}
    for kind in _types(annotation):
        found.update(getattr(kind, "__pydantic_fields__", {}))
    return found


def _child(annotation: Any, key: str) -> tuple[Any, list[Any]]:
    """Annotation and constraints of what sits under `key`; Any where nothing is known."""
    field = _fields(annotation).get(key)
    if field is not None:
        return field.annotation, list(field.metadata)
    for kind in _types(annotation):
        if typing.get_origin(kind) in (dict, Mapping) and len(typing.get_args(kind)) == 2:
            inner = typing.get_args(kind)[1]
            annotated = typing.get_origin(inner) is typing.Annotated
            return inner, list(typing.get_args(inner)[1:]) if annotated else []
    return Any, []


def _takes_none(annotation: Any) -> bool:
    return any(kind in (Any, None, type(None)) for kind in _types(annotation))


def _all_keys(annotation: Any, keys: Keys = ()) -> Iterator[Keys]:
    for name, field in _fields(annotation).items():
        yield (*keys, name)
        yield from _all_keys(field.annotation, (*keys, name))


# -- Reading, merging, checking --


class _Reader:
    """Puts one recipe together and remembers where each value came from."""

    def __init__(self, cls: Any) -> None:
        self.cls = cls
        self.origin: dict[Keys, str] = {}

    def assemble(self, source: Source, overrides: Sequence[str]) -> Any:
        """The recipe, its bases and the overrides as one mapping, unchecked."""
        if isinstance(source, Mapping):
            data = self.merge({}, _plain(source), self.cls, ())
        else:
            data = self.read_file(library.find(source), ())
        for override in overrides:
            data = self.override(data, override)
        return data

    def read_file(self, path: Path, inside: tuple[Path, ...]) -> dict[str, Any]:
        path_now = path.resolve()
        if path_now in inside:
            raise UserError(f"{path}: 'base' comes back to the same file; remove one of the links")
        try:
            text = files.read_text(path, at_most=limits.RECIPE_BYTES)
        except FileNotFoundError:
            raise UserError(f"there is no recipe {str(path)!r}{_nearest_recipe(path)}") from None
        own, lines = parse_yaml(text, str(path))
        if own is None:
            own = {}
        if not isinstance(own, dict):
            raise UserError(f"{path}: found {_show(own)}, expected a mapping (key: value)")
        data: dict[str, Any] = {}
        bases = own.pop("base", [])
        for base in bases if isinstance(bases, list) else [bases]:
            if not isinstance(base, str):
                raise UserError(
                    f"{path}: base is {_show(base)}: must be the path of a recipe, or its name"
                )
            inherited = self.read_file(library.find(base, path.parent), (*inside, path_now))
            data = self.merge(data, inherited, self.cls, ())
        self.origin.update({keys: f"{path}, line {line}" for keys, line in lines.items() if keys})
        self.origin.setdefault((), str(path))
        return self.merge(data, own, self.cls, ())

    def override(self, data: dict[str, Any], text: str) -> dict[str, Any]:
        dotted, equals, value_text = text.partition("=")
        keys = tuple(dotted.strip().split("."))
        if not equals or not all(keys) or not value_text.strip():
            raise UserError(f"{text!r} is not an override: write key=value, such as optim.lr=3e-5")
        value, _ = parse_yaml(value_text, f"{text!r}")
        if isinstance(value, dict):
            value = Replace(value)  # an assignment leaves nothing of what was there
        for length in range(1, len(keys)):  # the mapping around it now has two sources
            around = self.origin.get(keys[:length], "command line")
            if not around.endswith("command line"):
                around += " and the command line"
            self.origin[keys[:length]] = around
        self.origin[keys] = "command line"
        for key in reversed(keys):
            value = {key: value}
        return self.merge(data, value, self.cls, ())

    def merge(self, old: Any, new: Any, annotation: Any, keys: Keys) -> Any:
        """`new` over `old`: mappings merge key by key, everything else is replaced.

        null takes an inherited key away, unless null is a value that key may hold.
        """
        if not isinstance(new, dict) or not isinstance(old, dict) or isinstance(new, Replace):
            return new
        result = dict(old)
        for key, value in new.items():
            inner, metadata = _child(annotation, key)
            if value is None and key in result and not _takes_none(inner):
                del result[key]
                continue
            before = result.get(key)
            if any(isinstance(mark, Presets) for mark in metadata):
                if isinstance(before, str):
                    before = {"preset": before}
                if isinstance(value, dict) and "preset" in value:
                    before = None
            result[key] = self.merge(before, value, inner, (*keys, key))
        return result

    def validate(self, data: Any) -> Any:
        try:
            cfg = TypeAdapter(self.cls).validate_python(data)
        except ValidationError as error:
            found: dict[Keys, tuple[str, list[str]]] = {}
            for detail in error.errors(include_url=False):
                keys = self.place(detail, data)
                subject, problem = self.describe(detail, keys)
                problems = found.setdefault(keys, (subject, []))[1]
                if problem not in problems:
                    problems.append(problem)
            lines = [
                f"{self.where(keys)}{subject}{' or '.join(problems)}"
                for keys, (subject, problems) in found.items()
            ]
            raise UserError("\n".join(lines)) from None
        wrong = list(_converted(data, cfg, ()))
        if wrong:
            raise UserError(
                "\n".join(
                    f"{self.where(keys)}{'.'.join(keys)} is {_show(value)}: must be {wanted}"
                    for keys, value, wanted in wrong
                )
            )
        return cfg

    def where(self, keys: Keys) -> str:
        for length in range(len(keys), -1, -1):
            if keys[:length] in self.origin:
                return f"{self.origin[keys[:length]]}: "
        return ""

    def place(self, detail: ErrorDetails, data: Any) -> Keys:
        """The error's place in the user's own terms, without the names of union members."""
        keys: list[str] = []
        absent = detail["type"] == "missing"
        for i, part in enumerate(detail["loc"]):
            if isinstance(data, dict) and str(part) in data:
                data = data[str(part)]
            elif isinstance(data, list) and isinstance(part, int) and part < len(data):
                data = data[part]
            elif not (absent and i == len(detail["loc"]) - 1):
                # a key that a preset filled in still has a name; a union's tag has none
                known = isinstance(data, dict | str) and part in _fields(self.at(tuple(keys))[0])
                if not known:
                    continue
            keys.append(str(part))
        return tuple(keys)

    def at(self, keys: Keys) -> tuple[Any, list[Any]]:
        annotation: Any = self.cls
        metadata: list[Any] = []
        for key in keys:
            annotation, metadata = _child(annotation, key)
        return annotation, metadata

    def describe(self, detail: ErrorDetails, keys: Keys) -> tuple[str, str]:
        """What is wrong, as (subject, problem)."""
        kind, value, name = detail["type"], detail["input"], ".".join(keys)
        context = detail.get("ctx", {})
        if kind in ("unexpected_keyword_argument", "extra_forbidden"):
            return "", f"unknown key {name!r}{self.nearest_key(keys)}"
        if kind == "missing":
            return "", f"{name} is missing: write {name}: {_wanted(self.at(keys)[0])}"
        if kind in ("value_error", "assertion_error"):
            return (f"{name}: " if name else ""), str(context.get("error", detail["msg"]))
        if kind in _RANGES:
            return f"{name} is {_show(value)}: ", f"must be {_range(self.at(keys)[1], context)}"
        if kind in ("literal_error", "enum"):
            return f"{name} is {_show(value)}: ", f"must be {context['expected']}"
        if kind in ("union_tag_invalid", "union_tag_not_found"):
            field = str(context["discriminator"]).strip("'")
            tags = context.get("expected_tags", "set")
            tag = value.get(field) if isinstance(value, dict) else value
            return f"{name}.{field} is {_show(tag)}: ", f"must be one of {tags}"
        family = kind.split("_")[0]
        if family in _NAMES:
            return f"{name} is {_show(value)}: ", f"must be {_NAMES[family]}"
        message = detail["msg"].removeprefix("Input should ").removeprefix("be ")
        return f"{name} is {_show(value)}: ", f"must be {message}"

    def nearest_key(self, keys: Keys) -> str:
        siblings = list(_fields(self.at(keys[:-1])[0]))
        prefix = "".join(f"{key}." for key in keys[:-1])
        close = difflib.get_close_matches(keys[-1], siblings, n=1)
        if close:
            return f" (did you mean {prefix + close[0]!r}?)"
        everywhere = {".".join(path): path for path in _all_keys(self.cls)}
        same = [dotted for dotted, path in everywhere.items() if path[-1] == keys[-1]]
        same = same or difflib.get_close_matches(".".join(keys), list(everywhere), n=1, cutoff=0.75)
        if same:
            return f" (did you mean {same[0]!r}?)"
        return f"; here are {', '.join(prefix + name for name in siblings)}"


_RANGES = {
    "greater_than": "greater than",
    "greater_than_equal": "at least",
    "less_than": "less than",
    "less_than_equal": "at most",
}
_NAMES = {
    "int": "a whole number",
    "float": "a number",
    "finite": "a finite number",
    "bool": "true or false",
    "string": "text",
    "dataclass": "a mapping (key: value)",
    "dict": "a mapping (key: value)",
    "list": "a list",
    "tuple": "a list",
    "none": "null",
}


def _range(metadata: list[Any], context: dict[str, Any]) -> str:
    """The allowed range: every bound the field has, or else the one that was crossed."""
    short = {"gt": "greater than", "ge": "at least", "lt": "less than", "le": "at most"}
    bounds = [
        f"{words} {getattr(mark, name):g}"
        for mark in metadata
        for name, words in short.items()
        if isinstance(getattr(mark, name, None), int | float)
    ]
    return " and ".join(bounds or [f"{short[name]} {v:g}" for name, v in context.items()])


def _wanted(annotation: Any) -> str:
    known = {int: "a whole number", float: "a number", bool: "true or false", str: "text"}
    return " or ".join(dict.fromkeys(known.get(kind, "...") for kind in _types(annotation)))


def _show(value: Any) -> str:
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    text = f"{value:g}" if isinstance(value, float) else repr(value)
    return text if len(text) <= 60 else text[:57] + "..."


def _converted(raw: Any, checked: Any, keys: Keys) -> Iterator[tuple[Keys, Any, str]]:
    """Values that were turned into another type on the way, such as '3' into 3 or 1 into true."""
    if isinstance(raw, dict):
        for key, value in raw.items():
            if isinstance(checked, dict):
                yield from _converted(value, checked.get(key), (*keys, key))
            else:
                yield from _converted(value, getattr(checked, key, None), (*keys, key))
    elif isinstance(raw, list) and isinstance(checked, list | tuple) and len(raw) == len(checked):
        for i, (value, inner) in enumerate(zip(raw, checked, strict=True)):
            yield from _converted(value, inner, (*keys, str(i)))
    elif isinstance(raw, str | bool | int | float):
        for kind, wanted in ((bool, "true or false"), (int, "a whole number"), (float, "a number")):
            if isinstance(checked, kind):
                number = isinstance(raw, int | float) and not isinstance(raw, bool)
                if not (isinstance(raw, bool) if kind is bool else number):
                    yield keys, raw, wanted
                return
