"""YAML as people write it in recipes."""

import re
from typing import Any

import yaml

from drpruning.errors import BadInput


class _Loader(yaml.SafeLoader):
    """YAML with 1e-4 as a number (YAML 1.2) and without repeated keys."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:  # noqa: FBT001, FBT002 - PyYAML's signature
        seen = set()
        for key_node, _ in node.value:
            key = self.construct_object(key_node, deep=True)
            if key in seen:
                line = key_node.start_mark.line + 1
                raise yaml.constructor.ConstructorError(
                    None, None, f"line {line}: the key {key!r} stands twice", key_node.start_mark
                )
            seen.add(key)
        return super().construct_mapping(node, deep)


_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(r"^[-+]?(\d[\d_]*)(\.\d*)?[eE][-+]?\d+$"),
    list("-+0123456789"),
)


def parse_yaml(text: str, origin: str) -> Any:
    """The value that a YAML text stands for.

    Args:
        text: YAML; 1e-4 is a number, a repeated key is an error.
        origin: Where the text is from, for the message.

    Raises:
        BadInput: It is not YAML (the line is named), or nested too deeply.
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
