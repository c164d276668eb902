"""Text -> token ids, in parallel processes."""

import functools
import hashlib
import json
import re
import secrets
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from drpruning.common.errors import BadInput, shown
from drpruning.common.hub import split_revision
from drpruning.data.document_format import (
    DocumentFormat,
    DocumentMarkers,
    SpecialTokens,
    markers_of,
)
from drpruning.data.workers import worker_processes

_PACKET_BYTES = 1 << 18
_LONGEST_PART = 1 << 20  # characters; a tokenizer takes some hundred bytes for each
_WORKER_BYTES = 1 << 20  # less text than this is not worth a process
_PIECE_BYTES_PER_WORKER = 32 << 20
_PIECE_BYTES_MAX = 1 << 30


@dataclass(frozen=True)
class EncodedDocuments:
    """Documents as token ids.

    Attributes:
        tokens: ids of all documents, one after the other.
        lengths: tokens of each document, its markers included, int64 [documents].
        special: document -> special token -> how often it is written in the text; documents
            without any are absent.
    """

    tokens: NDArray[np.unsignedinteger[Any]]
    lengths: NDArray[np.int64]
    special: dict[int, Counter[str]]


@dataclass(frozen=True, kw_only=True)
class DocumentTokenizer:
    """A tokenizer that encodes documents and marks where they begin and end.

    Attributes:
        name: folder or Hub name.
        markers: what is put before and after each document.
        special_tokens: whether special tokens written in the text are text; see `DocumentFormat`.
        largest_id: of the vocabulary including added tokens.
        digest: of everything that decides how text is split into tokens.
    """

    name: str
    markers: DocumentMarkers
    special_tokens: SpecialTokens
    largest_id: int
    digest: str

    @property
    def dtype(self) -> np.dtype[Any]:
        """The smallest of uint16 and uint32 that holds every id."""
        return np.dtype(np.uint16 if self.largest_id < 1 << 16 else np.uint32)

    @property
    def settings(self) -> dict[str, Any]:
        """What decides the tokens of a document beside the digest, as plain JSON values."""
        bos, eos = self.markers.bos, self.markers.eos
        return {
            "special_tokens": self.special_tokens,
            "bos_id": None if bos is None else bos.id,
            "eos_id": None if eos is None else eos.id,
        }

    @classmethod
    def load(
        cls, name: str | Path, vocab_size: int | None, wanted: DocumentFormat
    ) -> "DocumentTokenizer":
        """Load and check a tokenizer.

        Args:
            name: folder or Hub name.
            vocab_size: rows of the model's embedding, None where no model is at hand.
            wanted: what documents begin and end with, and what special tokens in them are.

        Raises:
            BadInput: it cannot be loaded, lacks a token that documents should begin or end with, or
                does not fit the model.
        """
        _load.cache_clear()  # the folder may have changed
        splitter = _load(str(name), wanted.special_tokens)
        markers = DocumentMarkers.choose(markers_of(splitter.tokenizer), wanted, str(name))
        vocabulary = splitter.tokenizer.get_vocab()
        last = max(vocabulary, key=lambda token: vocabulary[token])
        largest = vocabulary[last]
        if vocab_size is not None and largest >= vocab_size:
            raise BadInput(
                f"the tokenizer does not fit the model: the largest token id of {name} is "
                f"{largest}, for {shown(last)}, the model's vocabulary has {vocab_size} entries "
                f"(ids up to {vocab_size - 1}); name the one that belongs to the model in "
                "model.tokenizer"
            )
        return cls(
            name=str(name),
            markers=markers,
            special_tokens=wanted.special_tokens,
            largest_id=int(largest),
            digest=digest_of(splitter.tokenizer),
        )

    def encode(self, texts: Sequence[bytes], workers: int) -> EncodedDocuments:
        """Encode documents, each between its markers.

        Args:
            texts: UTF-8 of the documents.
            workers: processes at most; little text is encoded in this one.
        """
        packets = _packets(texts)
        processes = min(workers, len(packets), sum(map(len, texts)) // _WORKER_BYTES)
        encode = functools.partial(_encode_packet, tokenizer=self)
        if processes > 1:
            with worker_processes(processes) as pool:
                encoded = list(pool.map(encode, packets))
        else:
            encoded = list(map(encode, packets))
        special: dict[int, Counter[str]] = {}
        first = 0
        for packet in encoded:
            special |= {first + place: found for place, found in packet.special.items()}
            first += len(packet.lengths)
        return EncodedDocuments(
            np.concatenate([packet.tokens for packet in encoded]),
            np.concatenate([packet.lengths for packet in encoded]),
            special,
        )


def piece_bytes(workers: int) -> int:
    """Bytes of text to hand to `DocumentTokenizer.encode` at once."""
    return min(_PIECE_BYTES_PER_WORKER * workers, _PIECE_BYTES_MAX)


def _packets(texts: Sequence[bytes]) -> list[list[bytes]]:
    """Group documents into packets of about equal size, so that processes get equal work."""
    packets: list[list[bytes]] = [[]]
    size = 0
    for text in texts:
        if size >= _PACKET_BYTES:
            packets.append([])
            size = 0
        packets[-1].append(text)
        size += len(text)
    return packets


def _encode_packet(packet: Sequence[bytes], tokenizer: DocumentTokenizer) -> EncodedDocuments:
    """Encode some documents (runs in the worker processes)."""
    splitter = _load(tokenizer.name, tokenizer.special_tokens)
    texts = [text.decode() for text in packet]
    special = splitter.count_special(texts)
    settings = tokenizer.settings
    markers = (settings["bos_id"], settings["eos_id"])
    if max(map(len, texts)) > _LONGEST_PART:
        documents = [_long_ids(splitter, text, *markers, tokenizer.dtype) for text in texts]
        lengths = np.array([len(document) for document in documents], dtype=np.int64)
        return EncodedDocuments(np.concatenate(documents), lengths, special)
    ids = splitter.split(texts)
    for document in ids:
        _mark(document, *markers)
    lengths = np.fromiter(map(len, ids), dtype=np.int64, count=len(ids))
    tokens = np.fromiter(chain.from_iterable(ids), dtype=tokenizer.dtype, count=int(lengths.sum()))
    return EncodedDocuments(tokens, lengths, special)


def _mark(ids: list[int], bos_id: int | None, eos_id: int | None) -> None:
    """Put the markers around a document, where text that was parsed does not have them already."""
    begins, ends = ids[:1] == [bos_id], ids[-1:] == [eos_id]
    if bos_id is not None and not begins:
        ids.insert(0, bos_id)
    if eos_id is not None and not ends:
        ids.append(eos_id)


def _long_ids(
    splitter: "_Splitter", text: str, bos_id: int | None, eos_id: int | None, dtype: np.dtype[Any]
) -> NDArray[Any]:
    """Encode a text of any length in parts, split before white space, that take little memory."""
    parts, start = [], 0
    while start < len(text):
        end = start + _LONGEST_PART
        if end < len(text):
            spaces = (text.rfind(space, start + 1, end) for space in "\n ")
            end = next((place for place in spaces if place > 0), end)
        ids = splitter.split([text[start:end]])[0]
        _mark(ids, bos_id if start == 0 else None, eos_id if end >= len(text) else None)
        parts.append(np.array(ids, dtype=dtype))
        start = end
    return np.concatenate(parts)


class _Splitter:
    """Splits text into token ids, without adding anything.

    Attributes:
        tokenizer: as Transformers has loaded it.
    """

    def __init__(self, tokenizer: Any, special_tokens: SpecialTokens) -> None:
        self.tokenizer = tokenizer
        added = {str(token): index for index, token in tokenizer.added_tokens_decoder.items()}
        # Slow tokenizers do not mark the tokens that have a role, such as EOS, as special.
        special = {str(t) for t in tokenizer.added_tokens_decoder.values() if t.special}
        special |= set(tokenizer.all_special_tokens)
        self._special = _any_of(special - {""})
        self._parse = special_tokens == "parse"
        self._other = {token: index for token, index in added.items() if token not in special}
        self._other_tokens = _any_of(self._other)
        self._core: Any = None
        if tokenizer.is_fast:
            self._core = tokenizer.backend_tokenizer
            if not self._parse:
                self._core = _without_special_tokens(self._core)
            self._core.no_truncation()
            self._core.no_padding()

    def count_special(self, texts: Sequence[str]) -> dict[int, Counter[str]]:
        """The special tokens that are written in texts, by the place of the text."""
        if self._special is None:
            return {}
        found = ((place, self._special.findall(text)) for place, text in enumerate(texts))
        return {place: Counter(tokens) for place, tokens in found if tokens}

    def split(self, texts: list[str]) -> list[list[int]]:
        """Token ids of each text."""
        if self._core is not None:
            return [
                encoding.ids
                for encoding in self._core.encode_batch_fast(texts, add_special_tokens=False)
            ]
        if self._parse or not texts:
            return self._slow_ids(texts, split_special_tokens=False)
        return [self._slow_text_ids(text) for text in texts]

    def _slow_text_ids(self, text: str) -> list[int]:
        """Split a text that special tokens are not recognised in; other added tokens are."""
        if self._other_tokens is None:
            return self._slow_ids([text], split_special_tokens=True)[0]
        ids: list[int] = []
        start = 0
        for match in self._other_tokens.finditer(text):
            before = text[start : match.start()]
            ids += self._slow_ids([before], split_special_tokens=True)[0] if before else []
            ids.append(self._other[match.group()])
            start = match.end()
        rest = text[start:]
        return ids + (self._slow_ids([rest], split_special_tokens=True)[0] if rest else [])

    def _slow_ids(self, texts: list[str], *, split_special_tokens: bool) -> list[list[int]]:
        ids: list[list[int]] = self.tokenizer(
            texts,
            add_special_tokens=False,
            split_special_tokens=split_special_tokens,
            return_attention_mask=False,
            verbose=False,
        )["input_ids"]
        return ids


def _any_of(tokens: Iterable[str]) -> re.Pattern[str] | None:
    """A pattern for any of the tokens, the longest where several fit; None where there are none."""
    longest_first = sorted(tokens, key=len, reverse=True)
    return re.compile("|".join(map(re.escape, longest_first))) if longest_first else None


def _without_special_tokens(core: Any) -> Any:
    """The same tokenizer (of `tokenizers`), in which no text becomes a special token.

    `encode_special_tokens` keeps special tokens from being looked for in the text, but not the
    model from finding the same characters in its vocabulary: Unigram, WordPiece and WordLevel take
    any entry that fits, and BPE one that merges lead to. SentencePiece itself does not, since they
    are control symbols there. So these entries get other names under the same ids: random ones, so
    that nobody can write a text that has them.
    """
    content = json.loads(core.to_str())
    model = content["model"]
    vocabulary = model["vocab"]
    listed = isinstance(vocabulary, list)
    secret = secrets.token_hex(16)
    entries = {entry for entry, _ in vocabulary} if listed else vocabulary.keys()
    names = {
        token["content"]: f"{secret}-{token['id']}"
        for token in content["added_tokens"]
        if token["special"] and token["content"] in entries
    }
    if listed:
        model["vocab"] = [[names.get(entry, entry), score] for entry, score in vocabulary]
    else:
        model["vocab"] = {names.get(entry, entry): i for entry, i in vocabulary.items()}
    if model.get("unk_token") in names:
        model["unk_token"] = names[model["unk_token"]]
    if "merges" in model:
        model["merges"] = [pair for pair in model["merges"] if not _names_any(pair, names)]
    for token in content["added_tokens"]:
        token["content"] = names.get(token["content"], token["content"])
    content["post_processor"] = None  # it has the old names, and nothing is added here
    # A tokenizer of its own: Transformers sets this flag back at every call of the one it holds.
    plain = type(core).from_str(json.dumps(content))
    plain.encode_special_tokens = True
    return plain


def _names_any(merge: Any, tokens: dict[str, str]) -> bool:
    """Whether a merge joins, or leads to, one of the tokens."""
    left, right = merge.split(" ", 1) if isinstance(merge, str) else merge
    return left in tokens or right in tokens or left + right in tokens


@functools.lru_cache(maxsize=1)
def _load(name: str, special_tokens: SpecialTokens) -> _Splitter:
    """Load a tokenizer once per process; forked workers inherit the one of their parent."""
    return _Splitter(load_tokenizer(name), special_tokens)


def load_tokenizer(name: str) -> Any:
    """Load a tokenizer with Transformers, without code of its own.

    Args:
        name: folder or Hub name.

    Raises:
        BadInput: it cannot be loaded.
    """
    from transformers import AutoTokenizer

    place, revision = split_revision(name)
    try:
        return AutoTokenizer.from_pretrained(place, revision=revision, trust_remote_code=False)
    except Exception as error:  # the tokenizers library raises bare Exception on a broken file
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise BadInput(
            f"the tokenizer {name} cannot be loaded ({reason}); name another in model.tokenizer"
        ) from error


def tokenizer_digest(name: str | Path) -> str:
    """A digest of 32 hexadecimal digits; equal digests mean equal tokens for every text.

    What marks the beginning and the end of documents is not part of it: blocks have the markers of
    the tokenizer that they were prepared with, whichever model reads them.

    Args:
        name: folder or Hub name.

    Raises:
        BadInput: it cannot be loaded.
    """
    return digest_of(load_tokenizer(str(name)))


def digest_of(tokenizer: Any) -> str:
    """The digest of a tokenizer that is loaded; see `tokenizer_digest`."""
    if tokenizer.is_fast:
        content = json.loads(tokenizer.backend_tokenizer.to_str())
        for part in ("post_processor", "truncation", "padding"):  # they do not split text
            content.pop(part)
    else:
        content = {"class": type(tokenizer).__name__, "vocab": tokenizer.get_vocab()}
    text = json.dumps(content, sort_keys=True)
    return hashlib.blake2b(text.encode(), digest_size=16).hexdigest()
