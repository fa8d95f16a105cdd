"""YAML as recipes use it: 3e-5 is a number, 16:9 and no are text, and every key has its line."""

import re
from typing import Any

import yaml

from vidgen import limits
from vidgen.errors import UserError

Keys = tuple[str, ...]  # where a value sits: ("optim", "lr")

_INT = re.compile(r"[-+]?[0-9][0-9_]*$")
_FLOAT = re.compile(r"[-+]?(\.[0-9]+|[0-9][0-9_]*(\.[0-9_]*)?)([eE][-+]?[0-9]+)?$")
_PLAIN_TAGS = {"map", "seq", "str", "int", "float", "bool", "null", "timestamp", "merge", "value"}
_WORDS = {"": None, "~": None, "null": None, "true": True, "false": False}


class Replace(dict[str, Any]):
    """A mapping tagged `!replace`: it takes the inherited one's place instead of merging."""


class _Dumper(yaml.SafeDumper):
    """Quotes what either YAML's own rules or ours would read as something other than text."""


def write_yaml(data: dict[str, Any]) -> str:
    return yaml.dump(data, Dumper=_Dumper, sort_keys=False, width=100)


def _represent_list(dumper: _Dumper, value: list[Any]) -> yaml.Node:
    scalars = all(not isinstance(item, list | dict) for item in value)
    return dumper.represent_sequence("tag:yaml.org,2002:seq", value, flow_style=scalars)


_Dumper.add_representer(list, _represent_list)
_Dumper.add_implicit_resolver("tag:yaml.org,2002:float", _FLOAT, list("-+.0123456789"))


def _scalar(text: str) -> Any:
    if text.lower() in _WORDS:
        return _WORDS[text.lower()]
    if _INT.match(text):
        return int(text.replace("_", ""))
    if _FLOAT.match(text):
        return float(text.replace("_", ""))
    return text


def _key(node: yaml.Node) -> str:
    """Keys are text, so that `1:` and `'1':` are the same key; `40_000` is spelled 40000."""
    if not isinstance(node, yaml.ScalarNode):
        raise yaml.MarkedYAMLError(problem="a key must be text", problem_mark=node.start_mark)
    value = _scalar(node.value)
    return str(value) if isinstance(value, int) and not isinstance(value, bool) else node.value


def parse_yaml(text: str, name: str) -> tuple[Any, dict[Keys, int]]:
    """The value a YAML text holds and, for every key in it, its line."""
    lines: dict[Keys, int] = {}
    built = 0
    if len(text) > limits.RECIPE_BYTES:
        raise UserError(f"{name}: has more than {limits.RECIPE_BYTES} characters")

    def build(node: yaml.Node, keys: Keys) -> Any:
        nonlocal built
        line = node.start_mark.line + 1
        built += 1
        if built > limits.RECIPE_NODES:  # aliases of aliases multiply
            raise UserError(
                f"{name}, line {line}: holds more than {limits.RECIPE_NODES} values, those that "
                "aliases (*name) repeat included"
            )
        if len(keys) > limits.RECIPE_LEVELS:
            raise UserError(
                f"{name}, line {line}: nested more than {limits.RECIPE_LEVELS} levels deep"
            )
        lines.setdefault(keys, line)
        plain = node.tag.removeprefix("tag:yaml.org,2002:") in _PLAIN_TAGS
        if not plain and not (node.tag == "!replace" and isinstance(node, yaml.MappingNode)):
            raise UserError(f"{name}, line {line}: the tag {node.tag!r} is not known here")
        if isinstance(node, yaml.ScalarNode):
            try:
                return _scalar(node.value) if node.style is None else node.value
            except ValueError:  # int() takes 4,300 digits
                raise UserError(f"{name}, line {line}: a number has too many digits") from None
        if isinstance(node, yaml.SequenceNode):
            return [build(item, (*keys, str(i))) for i, item in enumerate(node.value)]
        result: dict[str, Any] = Replace() if node.tag == "!replace" else {}
        for key_node, value_node in node.value:
            key, key_line = _key(key_node), key_node.start_mark.line + 1
            if key in result:
                raise UserError(
                    f"{name}, line {key_line}: {key!r} is already set on line "
                    f"{lines[(*keys, key)]}; keep one of them"
                )
            lines[(*keys, key)] = key_line
            result[key] = build(value_node, (*keys, key))
        return result

    try:
        root = yaml.compose(text, Loader=yaml.SafeLoader)
        return (None if root is None else build(root, ())), lines
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        at = f", line {mark.line + 1}" if mark else ""
        raise UserError(f"{name}{at}: not valid YAML: {error.problem}") from None
    except RecursionError:
        raise UserError(f"{name}: nested more than {limits.RECIPE_LEVELS} levels deep") from None
    except yaml.YAMLError as error:
        raise UserError(f"{name}: not valid YAML: {str(error).splitlines()[0]}") from None
