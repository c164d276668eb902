"""What marks the beginning and the end of a document, and what special tokens in its text are.

A tokenizer's own files say which token begins and which ends a text, and whether the first of them
is put in front of every prompt. `TokenizerMarkers.of_files` reads that from the JSON files alone,
so that a plan can say it where Transformers is not installed; `markers_of` asks the tokenizer.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from drpruning.common.errors import BadInput
from drpruning.data.tokenizer_files import (
    TOKENIZER_FILE,
    read_local,
    read_settings,
    token_ids,
    token_text,
)

Rule = Literal["auto", "always", "never"]
SpecialTokens = Literal["text", "parse"]

_FIELD = "model.tokenizer"
_GENERIC_CLASSES = {"PreTrainedTokenizerFast", "PreTrainedTokenizer", "TokenizersBackend"}
"""Tokenizer classes that have no special tokens of their own: what is not named is absent."""


@dataclass(frozen=True, kw_only=True)
class DocumentFormat:
    """What is done with each document beside splitting its text into tokens.

    Attributes:
        special_tokens: `text`: a special token that is written in a document is split like any
            other text; `parse`: it becomes the token that it names.
        bos: whether documents begin with the tokenizer's BOS token; `auto`: where the tokenizer
            puts it in front of a prompt too.
        eos: whether documents end with the tokenizer's EOS token; `auto`: yes, unless `bos` is
            `always` and both are one token, which then stands once between two documents.
    """

    special_tokens: SpecialTokens = "text"
    bos: Rule = "auto"
    eos: Rule = "auto"


@dataclass(frozen=True)
class Marker:
    """A special token that begins or ends documents."""

    token: str
    id: int


@dataclass(frozen=True, kw_only=True)
class TokenizerMarkers:
    """The tokens that a tokenizer has for the beginning and the end of a text.

    Attributes:
        bos: begins a text.
        eos: ends a text.
        prompts_begin_with_bos: whether the tokenizer puts `bos` in front of what it encodes for a
            model to go on with.
    """

    bos: Marker | None
    eos: Marker | None
    prompts_begin_with_bos: bool

    @classmethod
    def of_files(cls, name: str) -> "TokenizerMarkers | None":
        """Read the markers from a tokenizer's JSON files.

        Args:
            name: folder, or a name in the local Hub cache.

        Returns:
            None where these files do not tell, since a tokenizer class of Transformers would add
            what they leave out, or where one of them is missing or damaged.
        """
        try:
            core = read_local(name, TOKENIZER_FILE, _FIELD)
            settings = read_settings(name, _FIELD)
            if core is None or not _is_complete(settings):
                return None
            ids = token_ids(core)
            bos, eos = (_marker(settings.get(f"{role}_token"), ids) for role in ("bos", "eos"))
            first = bos is not None and _puts_first(core.get("post_processor"), bos)
        except (ValueError, KeyError, TypeError, AttributeError):
            return None  # what needs the tokenizer says what is wrong with it
        return cls(bos=bos, eos=eos, prompts_begin_with_bos=first)


@dataclass(frozen=True, kw_only=True)
class DocumentMarkers:
    """The tokens that are put before and after each document, None for nothing."""

    bos: Marker | None
    eos: Marker | None

    @classmethod
    def choose(
        cls, found: TokenizerMarkers, wanted: DocumentFormat, name: str
    ) -> "DocumentMarkers":
        """Decide what a tokenizer's documents begin and end with.

        Args:
            found: what the tokenizer has.
            wanted: the settings.
            name: of the tokenizer, for the message.

        Raises:
            BadInput: a token that the settings ask for is not there, or nothing would stand
                between two documents although the settings do not ask for that.
        """
        for rule, marker, key in ((wanted.bos, found.bos, "bos"), (wanted.eos, found.eos, "eos")):
            if rule == "always" and marker is None:
                raise BadInput(
                    f"data.{key}: the tokenizer {name} has no {key.upper()} token; set {key}_token "
                    f"in its tokenizer_config.json, or write `{key}: never`"
                )
        same = found.bos == found.eos
        eos = wanted.eos == "always" or (
            wanted.eos == "auto" and not (wanted.bos == "always" and same)
        )
        # One token for both, as in GPT-2 and OPT, stands once between two documents, not twice.
        bos = wanted.bos == "always" or (
            wanted.bos == "auto" and found.prompts_begin_with_bos and not (same and eos)
        )
        chosen = cls(bos=found.bos if bos else None, eos=found.eos if eos else None)
        if chosen.bos is None and chosen.eos is None and wanted.eos != "never":
            raise BadInput(
                f"data.eos: the tokenizer {name} has no end-of-sequence token to end documents "
                "with; set eos_token in its tokenizer_config.json, write `bos: always` if it has a "
                "BOS token, or `eos: never` to let documents run together"
            )
        return chosen

    def describe(self, wanted: DocumentFormat) -> str:
        """Say in one line what is done with documents: `documents: <s> first, </s> last; ...`."""
        parts = [f"{self.bos.token} first"] if self.bos else []
        parts += [f"{self.eos.token} last"] if self.eos else []
        around = ", ".join(parts) or "nothing before or after them, so that they run together"
        return f"documents: {around}; {_SPECIAL_TOKENS[wanted.special_tokens]}"


_SPECIAL_TOKENS: Mapping[SpecialTokens, str] = {
    "text": "special tokens written in the text are text",
    "parse": "special tokens written in the text become tokens",
}


def describe_documents(name: str, wanted: DocumentFormat) -> str:
    """Say in one line what will be done with documents, as far as a tokenizer's files tell.

    Args:
        name: of the tokenizer: folder or Hub name.
        wanted: the settings.

    Raises:
        BadInput: see `DocumentMarkers.choose`.
    """
    found = TokenizerMarkers.of_files(name)
    if found is None:
        return (
            f"documents: bos {wanted.bos}, eos {wanted.eos} (which tokens these are is known once "
            f"the tokenizer is loaded); {_SPECIAL_TOKENS[wanted.special_tokens]}"
        )
    return DocumentMarkers.choose(found, wanted, name).describe(wanted)


def markers_of(tokenizer: Any) -> TokenizerMarkers:
    """The markers of a tokenizer that Transformers has loaded."""
    bos, eos = (
        None if index is None else Marker(str(token), int(index))
        for token, index in (
            (tokenizer.bos_token, tokenizer.bos_token_id),
            (tokenizer.eos_token, tokenizer.eos_token_id),
        )
    )
    plain, prompt = _with_and_without_special_tokens(tokenizer)
    first = bos is not None and prompt[: len(plain) + 1] == [bos.id, *plain]
    return TokenizerMarkers(bos=bos, eos=eos, prompts_begin_with_bos=first)


def _with_and_without_special_tokens(tokenizer: Any) -> list[list[int]]:
    """The ids of some text, without and with what the tokenizer adds to a prompt."""
    try:
        return [tokenizer("a", add_special_tokens=added)["input_ids"] for added in (False, True)]
    except Exception:  # bare Exception where "a" is not in the vocabulary and nothing is for it
        return [[], tokenizer("", add_special_tokens=True)["input_ids"]]


def _is_complete(settings: Mapping[str, Any]) -> bool:
    """Whether the settings of a tokenizer say all of BOS and EOS; a class may have defaults."""
    generic = settings.get("tokenizer_class") in _GENERIC_CLASSES
    return generic or {"bos_token", "eos_token"} <= settings.keys()


def _marker(entry: Any, ids: Mapping[str, int]) -> Marker | None:
    """The token that an entry of the settings names, with its id.

    Raises:
        KeyError: the vocabulary does not have it.
    """
    text = token_text(entry)
    return None if text is None else Marker(text, int(ids[text]))


def _puts_first(processor: Mapping[str, Any] | None, bos: Marker) -> bool:
    """Whether a post-processor of tokenizer.json puts a token in front of a text."""
    if processor is None:
        return False
    kind = processor["type"]
    if kind == "Sequence":
        return any(_puts_first(part, bos) for part in processor["processors"])
    if kind == "TemplateProcessing":
        first: Mapping[str, Any] = next(iter(processor["single"]), {})
        if "SpecialToken" not in first:
            return False
        ids: list[int] = processor["special_tokens"][first["SpecialToken"]["id"]]["ids"]
        return ids == [bos.id]
    if kind in {"BertProcessing", "RobertaProcessing"}:
        return bool(processor["cls"][1] == bos.id)
    return False
