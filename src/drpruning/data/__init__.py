"""From text to tokenized blocks, and from blocks to the batches of a segment.

`prepare` turns domains of text into memory-mapped blocks of token ids, once; `PreparedData.open`
finds them again. `Mixture` says which blocks come next under the current data ratio, a segment (the
training between two evaluations) at a time. Nothing here imports torch.
"""

from drpruning.data.blocks import DomainBlocks, DomainCounts, PreparedData, TokenBlocks
from drpruning.data.document_format import DocumentFormat, describe_documents
from drpruning.data.mixture import Mixture, OnExhausted, Segment
from drpruning.data.permutation import keyed_permutation
from drpruning.data.preparation import check_prepared_folder, prepare
from drpruning.data.remote import is_address
from drpruning.data.sources import (
    DomainSource,
    check_sources,
    may_be_hub_name,
    skipped_lines,
)
from drpruning.data.token_bytes import InexactBytesError, TokenBytes
from drpruning.data.token_estimate import estimate_tokens
from drpruning.data.tokenization import tokenizer_digest

Blocks = TokenBlocks
"""The name that `TokenBlocks` had before."""

__all__ = [
    "Blocks",
    "DocumentFormat",
    "DomainBlocks",
    "DomainCounts",
    "DomainSource",
    "InexactBytesError",
    "Mixture",
    "OnExhausted",
    "PreparedData",
    "Segment",
    "TokenBlocks",
    "TokenBytes",
    "check_prepared_folder",
    "check_sources",
    "describe_documents",
    "estimate_tokens",
    "is_address",
    "keyed_permutation",
    "may_be_hub_name",
    "prepare",
    "skipped_lines",
    "tokenizer_digest",
]
