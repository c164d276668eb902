"""YAML as people write it in recipes."""

import re
from pathlib import Path
from typing import Any

import yaml

from drpruning.common.errors import BadInput

LARGEST_TEXT = 100_000
"""Values in a text, each alias counted with all that it stands for."""
LARGEST_INTEGER = 2**63 - 1
LARGEST_FILE = 1 << 22
"""Bytes of a file."""


class _Loader(yaml.SafeLoader):
    """Plain values as YAML 1.2 has them (1e-4 is a number; no, on and 2020-01-01 are texts).

    Without repeated keys, keys that are no text, tags; aliases within bounds.
    """

    def get_single_node(self) -> yaml.Node | None:
        node: yaml.Node | None = super().get_single_node()
        if node is not None:
            _count(node, {})
        return node

    def construct_object(self, node: yaml.Node, deep: bool = False) -> Any:  # noqa: FBT001, FBT002 - PyYAML's signature
        try:
            return super().construct_object(node, deep)
        except (ValueError, ArithmeticError, LookupError, AttributeError):
            raise _wrong(
                node, f"{str(node.value)[:50]!r} is no {node.tag.split(':')[-1]}"
            ) from None

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:  # noqa: FBT001, FBT002 - PyYAML's signature
        pairs = node.value if isinstance(node, yaml.MappingNode) else []
        seen = set()
        for key_node, _ in pairs:
            if key_node.tag == _MERGE:
                continue
            if not isinstance(key_node, yaml.ScalarNode):
                raise _wrong(key_node, "a list or mapping in the place of a key; write a text")
            key = key_node.value
            if key_node.tag != _TEXT:
                raise _wrong(key_node, f"the key {key} is no text; write it in quotes: {key!r}")
            if key in seen:
                raise _wrong(key_node, f"the key {key!r} stands twice")
            seen.add(key)
        return super().construct_mapping(node, deep)

    def construct_yaml_int(self, node: yaml.ScalarNode) -> int:
        value: int = super().construct_yaml_int(node)
        if abs(value) > LARGEST_INTEGER:
            raise _wrong(node, "a whole number beyond 64 bits; write a smaller one")
        return value


class _Dumper(yaml.SafeDumper):
    """What `_Loader` reads back as it was."""


_KINDS = {
    "null": (r"~|null|Null|NULL|", ["~", "n", "N", ""]),
    "bool": (r"true|True|TRUE|false|False|FALSE", list("tTfF")),
    "int": (r"[-+]?(0|[1-9][0-9_]*)", list("-+0123456789")),
    "float": (
        r"[-+]?(?!0\d+$)(\d[\d_]*\.?[\d_]*|\.\d[\d_]*)([eE][-+]?\d+)?|[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN)",
        list("-+.0123456789"),
    ),
    "merge": (r"<<", ["<"]),
}
"""What is written without quotes and is no text: pattern, and the characters it begins with."""
_TAG = "tag:yaml.org,2002:"
_MERGE, _TEXT = f"{_TAG}merge", f"{_TAG}str"

_Loader.yaml_implicit_resolvers = {}
for _kind, (_pattern, _first) in _KINDS.items():
    _Loader.add_implicit_resolver(_TAG + _kind, re.compile(f"(?:{_pattern})$"), _first)
_Dumper.add_implicit_resolver(
    f"{_TAG}float", re.compile(f"(?:{_KINDS['float'][0]})$"), _KINDS["float"][1]
)
_Loader.yaml_constructors = {
    tag: yaml.SafeLoader.yaml_constructors[tag]
    for tag in (*(f"{_TAG}{kind}" for kind in ("null", "bool", "float", "str", "seq", "map")), None)
}
_Loader.add_constructor(f"{_TAG}int", _Loader.construct_yaml_int)


def _wrong(node: yaml.Node, problem: str) -> yaml.constructor.ConstructorError:
    return yaml.constructor.ConstructorError(None, None, problem, node.start_mark)


def _count(node: yaml.Node, known: dict[int, int | None]) -> int:
    """Values in a node, an alias with all that it stands for; refuses too many, and cycles."""
    key = id(node)
    if key in known:
        if (size := known[key]) is None:
            raise _wrong(node, "an alias stands for something that holds itself; write it out")
        return size
    known[key] = None
    size = 1
    if isinstance(node, yaml.ScalarNode):
        if not node.value.isprintable() and any("\ud800" <= c <= "\udfff" for c in node.value):
            raise _wrong(node, "a text that is not Unicode, so no UTF-8; write other characters")
    else:
        for child in node.value:
            for part in child if isinstance(child, tuple) else (child,):
                size += _count(part, known)
    if size > LARGEST_TEXT:
        raise _wrong(node, f"aliases and all make more than {LARGEST_TEXT:,} values; write fewer")
    known[key] = size
    return size


def parse_yaml(text: str, origin: str) -> Any:
    """The value that a YAML text stands for.

    Args:
        text: YAML; 1e-4 is a number, `no` and `2020-01-01` are texts.
        origin: Where the text is from, for the message.

    Raises:
        BadInput: It is not YAML (the line is named), nested too deeply, has a repeated key or one
            that is no text, a whole number beyond 64 bits, or aliases that make it endless or
            larger than `LARGEST_TEXT`.
    """
    try:
        return yaml.load(text, _Loader)  # noqa: S506 - a SafeLoader
    except RecursionError:
        raise BadInput(f"{origin}: brackets or lists are nested too deeply") from None
    except yaml.reader.ReaderError as error:
        line = text.count("\n", 0, error.position) + 1
        detail = f"it has the character U+{ord(text[error.position]):04X}"
        raise BadInput(f"{origin}: line {line} is not valid YAML: {detail}; take it out") from None
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        place = f" line {mark.line + 1}" if mark else ""
        detail = getattr(error, "problem", None) or str(error)
        raise BadInput(f"{origin}:{place} is not valid YAML: {detail}") from None


def read_yaml(path: str | Path, label: str) -> Any:
    """The value in a file.

    Args:
        path: The file; what it says is no larger than `LARGEST_FILE`.
        label: What it is, for the message.

    Raises:
        BadInput: It cannot be read, is too large, or not what `parse_yaml` takes.
    """
    try:
        with Path(path).open("rb") as stream:
            content = stream.read(LARGEST_FILE + 1)
        if len(content) > LARGEST_FILE:
            raise BadInput(f"{label} {path}: is larger than {LARGEST_FILE:,} bytes; name another")
        text = content.decode("utf-8-sig")
    except OSError as error:
        raise BadInput(f"{label} {path}: {error.strerror}") from None
    except UnicodeDecodeError:
        raise BadInput(f"{label} {path}: is not UTF-8 text; name another, or convert it") from None
    except BadInput:
        raise
    except ValueError as error:  # no possible name
        raise BadInput(f"{label} {path}: {error}") from None
    return parse_yaml(text, str(path))


def dump_yaml(value: Any, **style: Any) -> str:
    """The value as YAML that `parse_yaml` reads back as it was, keys in their order.

    Args:
        value: Mappings, lists, texts, numbers, booleans and None.
        style: Further options of `yaml.dump`.
    """
    text: str = yaml.dump(value, Dumper=_Dumper, sort_keys=False, allow_unicode=True, **style)
    return text
