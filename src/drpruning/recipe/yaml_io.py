"""YAML as people write it in recipes: plain values of YAML 1.2, one message for what is wrong."""

import io
import re
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML
from ruamel.yaml.composer import Composer, MaxDepthExceededError
from ruamel.yaml.constructor import ConstructorError, SafeConstructor
from ruamel.yaml.error import MarkedYAMLError, YAMLError
from ruamel.yaml.nodes import MappingNode, Node, ScalarNode
from ruamel.yaml.reader import ReaderError
from ruamel.yaml.representer import SafeRepresenter

from drpruning.common.errors import BadInput

LARGEST_FILE = 1 << 24
"""Bytes of the largest file that is read."""
LARGEST_ALIASES = 100_000
"""Values that all aliases of a text may stand for together."""
LARGEST_INTEGER = 2**63 - 1
"""Of whole numbers, for files of other programs hold 64 bits."""
DEEPEST = 50
"""Levels of lists and mappings in one another."""
_TAG = "tag:yaml.org,2002:"
_INTEGER = re.compile(r"[-+]?(0|[1-9][0-9]*(_[0-9]+)*)")
_PLAIN_TEXT = re.compile(
    r"(?!(y|n|yes|no|on|off|true|false|null)$)[a-z_/][\w./@+*= -]*", re.IGNORECASE | re.ASCII
)
"""Texts without quotes: names, paths and words, except those that YAML 1.1 takes for flags."""


class _Constructor(SafeConstructor):
    """Reads dates and `=` as texts."""


for _kind in ("timestamp", "value"):
    _Constructor.add_constructor(f"{_TAG}{_kind}", SafeConstructor.construct_yaml_str)


class _Composer(Composer):
    """Refuses tags, keys that repeat or are not text, and aliases that make a text too large."""

    def __init__(self, loader: Any = None) -> None:
        super().__init__(loader)
        self.warn_double_anchors = False
        self.added = 0
        self.sizes: dict[int, int] = {}

    def compose_node(self, parent: Any, index: Any) -> Node:
        event = self.parser.peek_event()
        if (tag := getattr(event, "tag", None)) is not None:
            raise _wrong(event, f"the tag {tag} is not taken here; write the value without it")
        node: Node = super().compose_node(parent, index)
        return node

    def compose_scalar_node(self, anchor: Any) -> ScalarNode:
        node: ScalarNode = super().compose_scalar_node(anchor)
        if node.tag == f"{_TAG}int":
            if not _INTEGER.fullmatch(node.value):  # 010 is 8 to some readers, and 10 to others
                raise _wrong(node, f"{node.value[:50]} is no plain number; write it in decimal "
                                   "digits, or in quotes where it is a text")  # fmt: skip
            if len(node.value) > 40 or abs(int(node.value)) > LARGEST_INTEGER:
                raise _wrong(node, "a whole number beyond 64 bits; write a smaller one")
        elif any("\ud800" <= c <= "\udfff" for c in node.value):
            raise _wrong(node, "a text that is not Unicode, so no UTF-8; write other characters")
        return node

    def compose_mapping_node(self, anchor: Any) -> MappingNode:
        node: MappingNode = super().compose_mapping_node(anchor)
        seen = set()
        for key, _ in node.value:
            if not isinstance(key, ScalarNode):
                raise _wrong(key, "a list or mapping in the place of a key; write a text")
            if str(key.tag).removeprefix(_TAG) not in {"str", "merge", "timestamp", "value"}:
                raise _wrong(key, f"the key {key.value} is no text; write it in quotes: "
                                  f"{key.value!r}")  # fmt: skip
            if key.value in seen:
                raise _wrong(key, f"the key {key.value!r} stands twice")
            seen.add(key.value)
        return node

    def return_alias(self, a: Node) -> Node:
        if a.end_mark is None:  # it is still being read
            raise _wrong(a, "an alias stands for something that holds itself; write it out")
        self.added += self._size(a)
        if self.added > LARGEST_ALIASES:
            raise _wrong(a, f"aliases make more than {LARGEST_ALIASES:,} values; write fewer")
        return a

    def _size(self, node: Node) -> int:
        """Values in a node, those of aliases in it too; each node is looked at once."""
        if (size := self.sizes.get(id(node))) is None:
            parts = () if isinstance(node, ScalarNode) else node.value
            pairs = (part if isinstance(part, tuple) else (part,) for part in parts)
            size = 1 + sum(self._size(part) for pair in pairs for part in pair)
            self.sizes[id(node)] = size
        return size


class _Representer(SafeRepresenter):
    def represent_str(self, data: str) -> ScalarNode:
        """In quotes where a text has more than names, paths and words; with escapes for breaks.

        The library's own choice leaves `{:a: 1}` without quotes, which it then cannot read.
        """
        node: ScalarNode = super().represent_str(data)
        if set(data) & set("\n\r\x85\u2028\u2029\ufeff"):
            node.style = '"'
        elif not _PLAIN_TEXT.fullmatch(data) or data.endswith(" "):
            node.style = "'"
        return node

    def represent_float(self, data: float) -> ScalarNode:
        """`1.0e-05`, not `1e-05`, which readers of YAML 1.1 take for a text."""
        node: ScalarNode = super().represent_float(data)
        if "." not in node.value:
            node.value = node.value.replace("e", ".0e", 1)
        return node

    def ignore_aliases(self, data: Any) -> bool:  # noqa: ARG002 - the library's signature
        """Values that are one object in memory are written out each time."""
        return True


_Representer.add_representer(str, _Representer.represent_str)
_Representer.add_representer(float, _Representer.represent_float)


def _yaml() -> YAML:
    yaml = YAML(typ="safe", pure=True)
    yaml.max_depth = DEEPEST
    yaml.Composer, yaml.Constructor, yaml.Representer = _Composer, _Constructor, _Representer
    return yaml


def _wrong(place: Any, problem: str) -> ConstructorError:
    return ConstructorError(None, None, problem, place.start_mark)


def parse_yaml(text: str, origin: str) -> Any:
    """The value that a YAML text stands for.

    Args:
        text: YAML; 1e-4 is a number, `no` and `2020-01-01` are texts.
        origin: Where the text is from, for the message.

    Raises:
        BadInput: It is not YAML (the line is named), nested too deeply, has a tag, a repeated key
            or one that is no text, a whole number beyond 64 bits, or aliases that make it endless
            or add more than `LARGEST_ALIASES` values.
    """
    try:
        return _yaml().load(text)
    except MaxDepthExceededError:
        raise BadInput(f"{origin}: brackets or lists are nested too deeply") from None
    except ReaderError as error:
        line = text.count("\n", 0, error.position) + 1
        detail = f"it has the character U+{ord(text[error.position]):04X}"
        raise BadInput(f"{origin}: line {line} is not valid YAML: {detail}; take it out") from None
    except MarkedYAMLError as error:
        place = f" line {error.problem_mark.line + 1}" if error.problem_mark else ""
        raise BadInput(f"{origin}:{place} is not valid YAML: {error.problem}") from None
    except (YAMLError, ValueError) as error:  # `._` looks like a number and is none
        raise BadInput(f"{origin}: is not valid YAML: {error}") from None


def read_yaml(path: str | Path, label: str) -> Any:
    """The value in a file.

    Args:
        path: The file; it is no larger than `LARGEST_FILE`.
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


def dump_yaml(value: Any, *, default_flow_style: bool = False) -> str:
    """The value as YAML that `parse_yaml` reads back as it was, keys in their order.

    Args:
        value: Mappings, lists, texts, numbers, booleans and None.
        default_flow_style: On one line, in brackets.
    """
    yaml = _yaml()
    yaml.default_flow_style = default_flow_style
    yaml.sort_base_mapping_type_on_output = False  # type: ignore[assignment]
    yaml.width = 1 << 30
    stream = io.StringIO()
    yaml.dump(value, stream)
    return stream.getvalue()
