"""The bytes of text that each token stands for, by which losses of all tokenizers compare.

What a tokenizer does to text is read from its own description. Three kinds are exact: byte-level
BPE, whose tokens are bytes written as letters; SentencePiece's BPE and Unigram, where `▁` is a
space and `<0x0A>` a byte; and plain vocabularies over text that nothing is taken from.
"""

import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from drpruning.common.errors import BadInput
from drpruning.data.blocks import PreparedData
from drpruning.data.tokenization import digest_of, load_tokenizer

_UNKNOWN = -1
_BYTE = re.compile(r"<0x([0-9A-F]{2})>")
_KEEPS_TEXT = {"ByteLevel", "Metaspace", "Digits", "UnicodeScripts", "FixedLength"}
"""Pre-tokenizers that only say where tokens may end; so do `Split` and `Punctuation`, unless they
remove what they find."""


_AddsSpace = Literal["never", "first", "always"]


class InexactBytesError(ValueError):
    """A tokenizer's tokens do not say how many bytes of text they stand for; says why."""


@dataclass(frozen=True)
class TokenBytes:
    """How many bytes of UTF-8 each token id of a vocabulary stands for.

    Tokens that mark documents stand for nothing. A space that a tokenizer puts in front of a text
    by itself, as Llama 2's does, is not part of the text. Where text is brought into Unicode's
    composed form (NFC) first, the bytes are those of that form.

    Attributes:
        pieces: id -> its bytes; None for the token of unknown text.
        lengths: id -> number of these bytes, -1 for the token of unknown text.
        before_added_space: id -> whether the tokenizer puts a space in front of the text after it.
    """

    pieces: list[bytes | None]
    lengths: NDArray[np.int64]
    before_added_space: NDArray[np.bool_]

    @classmethod
    def load(cls, name: str, data: PreparedData) -> "TokenBytes":
        """Read the bytes of the tokenizer that blocks were made with.

        Args:
            name: folder or Hub name.
            data: the blocks.

        Raises:
            InexactBytesError: it cannot be loaded, is another one now, or does not tell.
        """
        try:
            tokenizer = load_tokenizer(name)
        except BadInput as error:
            raise InexactBytesError(str(error)) from None
        if digest_of(tokenizer) != data.tokenizer_digest:
            raise InexactBytesError("it is not the one that the data were prepared with")
        found = cls.of(tokenizer)
        settings = data.identity["settings"]
        marked = any(settings[key] is not None for key in ("bos_id", "eos_id"))
        if not marked and found.before_added_space.any():
            raise InexactBytesError(
                "it puts a space in front of every document, and nothing marks where one begins"
            )
        return found

    @classmethod
    def of(cls, tokenizer: Any) -> "TokenBytes":
        """Read the bytes off a tokenizer that Transformers has loaded.

        Raises:
            InexactBytesError: it does not tell, as where it drops white space or changes letters.
        """
        if not tokenizer.is_fast:
            raise InexactBytesError("it has no tokenizer.json")
        content = json.loads(tokenizer.backend_tokenizer.to_str())
        rules = _Rules.of(content)
        vocabulary: dict[str, int] = tokenizer.get_vocab()
        pieces: list[bytes | None] = [b""] * (max(vocabulary.values(), default=-1) + 1)
        for token, index in vocabulary.items():
            pieces[index] = rules.piece(token)
        after = np.zeros(len(pieces), dtype=np.bool_)
        own = content["model"]["vocab"]
        own = {entry for entry, _ in own} if isinstance(own, list) else own
        for added in content["added_tokens"]:
            index, text, special = added["id"], added["content"], added["special"]
            after[index] = rules.adds_space == "always" or (special and rules.adds_space == "first")
            if special:
                pieces[index] = b""
            elif added["lstrip"] or added["rstrip"]:
                pieces[index] = None  # it takes any number of spaces with it
            elif text not in own:
                pieces[index] = text.encode()
        if rules.unknown in vocabulary:
            pieces[vocabulary[rules.unknown]] = None
        lengths = [_UNKNOWN if piece is None else len(piece) for piece in pieces]
        return cls(pieces, np.array(lengths, dtype=np.int64), after)

    def scored(self, blocks: NDArray[np.integer[Any]]) -> NDArray[np.int64]:
        """Bytes that the tokens of each block stand for, without its first token.

        Nothing is predicted of a block's first token, so its bytes have no loss.

        Args:
            blocks: token ids [k, sequence_length].

        Returns:
            int64 [k]; -1 for a block with a token of unknown text.
        """
        ids = blocks[:, 1:]
        lengths = self.lengths[ids]
        spaces = self.before_added_space[blocks[:, :-1]] & self._begins_with_space[ids]
        sums = lengths.sum(axis=1) - spaces.sum(axis=1)
        return np.where((lengths == _UNKNOWN).any(axis=1), _UNKNOWN, sums)

    @cached_property
    def _begins_with_space(self) -> NDArray[np.bool_]:
        found = [piece is not None and piece[:1] == b" " for piece in self.pieces]
        return np.array(found, dtype=np.bool_)


@dataclass(frozen=True)
class _Rules:
    """What the text of a tokenizer's tokens means.

    Attributes:
        letters: letter -> byte, of byte-level tokens; empty for others.
        space: the letter that stands for a space; may be empty.
        byte_fallback: whether `<0x0A>` is a byte.
        unknown: the token of unknown text; None if there is none.
        adds_space: what gets a space in front: every piece of text between added tokens
            (`always`), or the beginning of a text alone (`first`).
    """

    letters: Mapping[str, int]
    space: str
    byte_fallback: bool
    unknown: str | None
    adds_space: _AddsSpace

    @classmethod
    def of(cls, content: Mapping[str, Any]) -> "_Rules":
        """Read the rules from the content of a tokenizer.json.

        Raises:
            InexactBytesError: text and tokens are not the same bytes under these rules.
        """
        model = content["model"]
        normalizers = list(_parts(content["normalizer"], "normalizers"))
        splitters = list(_parts(content["pre_tokenizer"], "pretokenizers"))
        byte_level = any(part["type"] == "ByteLevel" for part in (*normalizers, *splitters))
        space, adds_space = _spaces(normalizers, splitters)
        fallback = bool(model.get("byte_fallback"))
        _check_model(model, byte_level=byte_level, byte_fallback=fallback)
        unknown = model.get("unk_token")
        if model["type"] == "Unigram" and model["unk_id"] is not None:
            unknown = model["vocab"][model["unk_id"]][0]
        letters = _byte_letters() if byte_level else {}
        return cls(letters, space, fallback, None if byte_level else unknown, adds_space)

    def piece(self, token: str) -> bytes:
        """The bytes that a token of the vocabulary stands for."""
        if self.letters:
            known = all(letter in self.letters for letter in token)
            return bytes(self.letters[letter] for letter in token) if known else token.encode()
        if self.byte_fallback and (found := _BYTE.fullmatch(token)):
            return bytes.fromhex(found[1])
        return (token.replace(self.space, " ") if self.space else token).encode()


def _parts(part: Mapping[str, Any] | None, key: str) -> Iterator[Mapping[str, Any]]:
    """The steps of a normalizer or a pre-tokenizer, sequences within sequences unfolded."""
    if part is None:
        return
    if part["type"] == "Sequence":
        for inner in part[key]:
            yield from _parts(inner, key)
    else:
        yield part


def _check_model(model: Mapping[str, Any], *, byte_level: bool, byte_fallback: bool) -> None:
    if model.get("continuing_subword_prefix") or model.get("end_of_word_suffix"):
        raise InexactBytesError("its tokens carry marks of where words begin or end")
    if byte_level and (missing := _byte_letters().keys() - model["vocab"]):
        raise InexactBytesError(f"it has no tokens for {len(missing)} of the 256 bytes")
    if model["type"] == "BPE" and not (byte_level or byte_fallback or model.get("unk_token")):
        raise InexactBytesError("it leaves out characters that are not in its vocabulary")


def _spaces(
    normalizers: list[Mapping[str, Any]], splitters: list[Mapping[str, Any]]
) -> tuple[str, _AddsSpace]:
    """The letter for a space, and where one is put in front of text."""
    space = ""
    adds_space: _AddsSpace = "never"
    for part in normalizers:
        if part["type"] == "Replace" and part["pattern"] == {"String": " "}:
            space = part["content"]
        elif part["type"] == "Prepend":
            adds_space = "always"
        elif part["type"] not in {"NFC", "ByteLevel"}:
            raise InexactBytesError(f"it changes text before it is split ({part['type']})")
    for place, part in enumerate(splitters):
        removes = part.get("behavior") == "Removed"
        if part["type"] not in _KEEPS_TEXT | {"Split", "Punctuation"} or removes:
            raise InexactBytesError(f"it leaves out characters between tokens ({part['type']})")
        if part["type"] == "Metaspace":
            space = part["replacement"]
        scheme = part.get("prepend_scheme", "always" if part.get("add_prefix_space") else "never")
        if scheme == "always" and place > 0:  # in front of each piece of the step before
            raise InexactBytesError("it puts spaces between pieces of the text")
        if scheme != "never":
            adds_space = scheme
    return space, adds_space


def _byte_letters() -> dict[str, int]:
    """Letter -> byte, of byte-level BPE as GPT-2 has it.

    Printable characters of Latin-1 stand for themselves. The other bytes are, in their order, the
    letters from U+0100 on.
    """
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    letters = {chr(byte): byte for byte in printable}
    others = (byte for byte in range(256) if byte not in set(printable))
    return letters | {chr(0x100 + place): byte for place, byte in enumerate(others)}
