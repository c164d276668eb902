"""Text -> token ids, in parallel processes."""

import functools
import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from drpruning.common.errors import BadInput
from drpruning.common.files import split_revision
from drpruning.data.workers import worker_processes

_PACKET_BYTES = 1 << 18
_LONGEST_PART = 1 << 20  # characters; a tokenizer takes some hundred bytes for each
_WORKER_BYTES = 1 << 20  # less text than this is not worth a process
_PIECE_BYTES_PER_WORKER = 32 << 20
_PIECE_BYTES_MAX = 1 << 30


@dataclass(frozen=True, kw_only=True)
class DocumentTokenizer:
    """A tokenizer that encodes documents without special tokens but for EOS at the end.

    Attributes:
        name: folder or Hub name.
        eos_id: id that ends a document.
        largest_id: of the vocabulary including added tokens.
        digest: of everything that decides how text is split into tokens.
    """

    name: str
    eos_id: int
    largest_id: int
    digest: str

    @property
    def dtype(self) -> np.dtype[Any]:
        """The smallest of uint16 and uint32 that holds every id."""
        return np.dtype(np.uint16 if self.largest_id < 1 << 16 else np.uint32)

    @classmethod
    def load(cls, name: str | Path, vocab_size: int | None) -> "DocumentTokenizer":
        """Load and check a tokenizer.

        Args:
            name: folder or Hub name.
            vocab_size: rows of the model's embedding, None where no model is at hand.

        Raises:
            BadInput: it cannot be loaded, has no EOS token or does not fit the model.
        """
        _load.cache_clear()  # the folder may have changed
        tokenizer = _load(str(name))
        if tokenizer.eos_token_id is None:
            raise BadInput(
                f"the tokenizer {name} has no end-of-sequence token to end documents with; set "
                "eos_token in its tokenizer_config.json"
            )
        largest = max(tokenizer.get_vocab().values())
        if vocab_size is not None and largest >= vocab_size:
            raise BadInput(
                f"the tokenizer does not fit the model: the largest token id of {name} is "
                f"{largest}, the model's vocabulary has {vocab_size} entries (ids up to "
                f"{vocab_size - 1}); use the tokenizer that belongs to the model"
            )
        return cls(
            name=str(name),
            eos_id=int(tokenizer.eos_token_id),
            largest_id=int(largest),
            digest=_digest(tokenizer),
        )

    def encode(
        self, texts: Sequence[bytes], workers: int
    ) -> tuple[NDArray[np.unsignedinteger[Any]], NDArray[np.int64]]:
        """Encode documents, each followed by EOS.

        Args:
            texts: UTF-8 of the documents.
            workers: processes at most; little text is encoded in this one.

        Returns:
            All ids one after the other (`dtype`), and the length of each document, EOS included.
        """
        packets = _packets(texts)
        processes = min(workers, len(packets), sum(map(len, texts)) // _WORKER_BYTES)
        encode = functools.partial(
            _encode_packet, name=self.name, eos_id=self.eos_id, dtype=self.dtype.name
        )
        if processes > 1:
            with worker_processes(processes) as pool:
                encoded = list(pool.map(encode, packets))
        else:
            encoded = list(map(encode, packets))
        tokens, lengths = zip(*encoded, strict=True)
        return np.concatenate(tokens), np.concatenate(lengths)


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


def _encode_packet(
    packet: Sequence[bytes], name: str, eos_id: int, dtype: str
) -> tuple[NDArray[Any], NDArray[np.int64]]:
    """Ids and lengths of some documents (runs in the worker processes)."""
    texts, tokenizer = [text.decode() for text in packet], _load(name)
    if max(map(len, texts)) > _LONGEST_PART:
        documents = [_long_ids(tokenizer, text, eos_id, dtype) for text in texts]
        lengths = np.array([len(document) for document in documents], dtype=np.int64)
        return np.concatenate(documents), lengths
    ids = _token_ids(tokenizer, texts)
    for document in ids:
        document.append(eos_id)
    lengths = np.fromiter(map(len, ids), dtype=np.int64, count=len(ids))
    return np.fromiter(chain.from_iterable(ids), dtype=dtype, count=int(lengths.sum())), lengths


def _long_ids(tokenizer: Any, text: str, eos_id: int, dtype: str) -> NDArray[Any]:
    """Encode a text of any length in parts, split before white space, that take little memory."""
    parts, start = [], 0
    while start < len(text):
        end = start + _LONGEST_PART
        if end < len(text):
            spaces = (text.rfind(space, start + 1, end) for space in "\n ")
            end = next((place for place in spaces if place > 0), end)
        parts.append(np.array(_token_ids(tokenizer, [text[start:end]])[0], dtype=dtype))
        start = end
    return np.concatenate([*parts, np.array([eos_id], dtype=dtype)])


def _token_ids(tokenizer: Any, texts: list[str]) -> list[list[int]]:
    if tokenizer.is_fast:
        encodings = tokenizer.backend_tokenizer.encode_batch_fast(texts, add_special_tokens=False)
        return [encoding.ids for encoding in encodings]
    ids: list[list[int]] = tokenizer(
        texts, add_special_tokens=False, return_attention_mask=False, verbose=False
    )["input_ids"]
    return ids


@functools.lru_cache(maxsize=1)
def _load(name: str) -> Any:
    """Load a tokenizer once per process; forked workers inherit the one of their parent."""
    from transformers import AutoTokenizer

    place, revision = split_revision(name)
    try:
        tokenizer = AutoTokenizer.from_pretrained(place, revision=revision, trust_remote_code=False)
    except Exception as error:  # the tokenizers library raises bare Exception on a broken file
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise BadInput(
            f"the tokenizer {name} cannot be loaded ({reason}); name another in model.tokenizer"
        ) from error
    if tokenizer.is_fast:
        tokenizer.backend_tokenizer.no_truncation()
        tokenizer.backend_tokenizer.no_padding()
    return tokenizer


def tokenizer_digest(name: str | Path) -> str:
    """A digest of 32 hexadecimal digits; equal digests mean equal tokens for every text.

    Args:
        name: folder or Hub name.

    Raises:
        BadInput: it cannot be loaded or has no EOS token.
    """
    return DocumentTokenizer.load(name, vocab_size=None).digest


def _digest(tokenizer: Any) -> str:
    if tokenizer.is_fast:
        content = json.loads(tokenizer.backend_tokenizer.to_str())
        content.pop("post_processor")  # adds special tokens, which are not used
    else:
        content = {"class": type(tokenizer).__name__, "vocab": tokenizer.get_vocab()}
    text = json.dumps([content, tokenizer.eos_token_id], sort_keys=True)
    return hashlib.blake2b(text.encode(), digest_size=16).hexdigest()
