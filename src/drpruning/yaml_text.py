"""YAML as people write it in recipes."""

import re
from typing import Any

import yaml

from drpruning.errors import BadInput

LARGEST_TEXT = 100_000
"""Values in a text, each alias counted with all that it stands for."""
LARGEST_INTEGER = 2**63 - 1


class _Loader(yaml.SafeLoader):
    """YAML with 1e-4 as a number (YAML 1.2), without repeated keys, aliases within bounds."""

    def get_single_node(self) -> yaml.Node | None:
        node: yaml.Node | None = super().get_single_node()
        if node is not None:
            _count(node, {})
        return node

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:  # noqa: FBT001, FBT002 - PyYAML's signature
        seen = set()
        for key_node, _ in node.value:
            key = self.construct_object(key_node, deep=True)
            if key in seen:
                raise _wrong(key_node, f"the key {key!r} stands twice")
            seen.add(key)
        return super().construct_mapping(node, deep)

    def construct_yaml_int(self, node: yaml.ScalarNode) -> int:
        value: int = super().construct_yaml_int(node)
        if abs(value) > LARGEST_INTEGER:
            raise _wrong(node, "a whole number beyond 64 bits; write a smaller one")
        return value


_Loader.add_constructor("tag:yaml.org,2002:int", _Loader.construct_yaml_int)
_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(r"^[-+]?(\d[\d_]*)(\.\d*)?[eE][-+]?\d+$"),
    list("-+0123456789"),
)


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
        text: YAML; 1e-4 is a number, a repeated key is an error.
        origin: Where the text is from, for the message.

    Raises:
        BadInput: It is not YAML (the line is named), nested too deeply, has a whole number beyond
            64 bits, or aliases that make it endless or larger than `LARGEST_TEXT`.
    """
    try:
        return yaml.load(text, _Loader)  # noqa: S506 - a SafeLoader
    except RecursionError:
        raise BadInput(f"{origin}: brackets or lists are nested too deeply") from None
    except (yaml.YAMLError, ValueError, TypeError) as error:
        mark = getattr(error, "problem_mark", None)
        place = f" line {mark.line + 1}" if mark else ""
        detail = getattr(error, "problem", None) or error
        raise BadInput(f"{origin}:{place} is not valid YAML: {detail}") from None
