"""The bytes that a document's tokens stand for are those of the document."""

import json
import unicodedata
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, normalizers, pre_tokenizers

from drpruning.data import DocumentFormat, InexactBytesError, TokenBytes
from drpruning.data.tokenization import DocumentTokenizer, load_tokenizer
from helpers import tokenizer_kinds as kinds

HARD = [
    "the cat", "  two  spaces ", "one\ttab\nand\r\n\nlines", "Grüße, naïve café", "日本語 テキスト",
    "🙂👩‍👩‍👧 flags 🇩🇪", "\u0000\x7f control", "</s> and <s> and <0x0A> written out", "a",
    "مرحبا",
    "zero\u200bwidth \u00a0nbsp", "x" * 300,
]  # fmt: skip


def metaspace_first() -> Tokenizer:
    """As Transformers 5 makes Llama 2's: Metaspace that puts a space in front of a text alone."""
    core = kinds.byte_fallback_bpe()
    content = json.loads(core.to_str())
    content["normalizer"] = None
    content["pre_tokenizer"] = {
        "type": "Metaspace", "replacement": "▁", "prepend_scheme": "first", "split": False,
    }  # fmt: skip
    return Tokenizer.from_str(json.dumps(content))


def gemma_like() -> Tokenizer:
    """Spaces become `▁`, nothing is put in front."""
    core = kinds.byte_fallback_bpe()
    core.normalizer = normalizers.Replace(" ", "▁")
    core.pre_tokenizer = pre_tokenizers.Split(" ", "merged_with_previous")
    return core


def nfc_digits() -> Tokenizer:
    """As Qwen has: NFC, then pieces of digits, then bytes."""
    core = kinds.byte_level_bpe()
    core.normalizer = normalizers.NFC()
    core.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True),
         pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )  # fmt: skip
    return core


def prefix_space() -> Tokenizer:
    """Bytes, with a space in front of a text."""
    core = kinds.byte_level_bpe()
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
    return core


EXACT = {
    made.__name__: made
    for made in (
        kinds.byte_level_bpe, kinds.byte_fallback_bpe, metaspace_first, gemma_like, nfc_digits,
        prefix_space,
    )
}  # fmt: skip


def saved(core: Tokenizer, folder: Path) -> Path:
    return kinds.save(core, folder, bos_token="<s>", eos_token="</s>", unk_token="<unk>")


@pytest.fixture(scope="module", params=EXACT)
def exact(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> tuple[str, DocumentTokenizer, TokenBytes]:
    folder = saved(EXACT[request.param](), tmp_path_factory.mktemp("exact"))
    wanted = DocumentFormat(bos="never", eos="always")
    tokenizer = DocumentTokenizer.load(folder, None, wanted)
    return request.param, tokenizer, TokenBytes.of(load_tokenizer(str(folder)))


def expected(kind: str, text: str) -> bytes:
    """The bytes of a text, but for two things that are the same tokens as another text's.

    Some kinds put a space in front of a text only if it does not begin with one. And where `▁` is
    a space, it is one in the text too.
    """
    if kind in {"prefix_space", "metaspace_first"}:
        text = text.removeprefix(" ")
    marks = {"byte_fallback_bpe", "metaspace_first", "gemma_like"}
    return (text.replace("▁", " ") if kind in marks else text).encode()


def block(tokenizer: DocumentTokenizer, texts: list[str]) -> np.ndarray[Any, Any]:
    """Documents after the end of another one, as one block."""
    assert tokenizer.markers.eos is not None
    encoded = tokenizer.encode([text.encode() for text in texts], 1)
    ids = np.array([tokenizer.markers.eos.id, *encoded.tokens.tolist()], dtype=np.int64)
    return ids[None]


@pytest.mark.parametrize("text", HARD)
def test_a_documents_tokens_stand_for_its_bytes(
    exact: tuple[str, DocumentTokenizer, TokenBytes], text: str
) -> None:
    kind, tokenizer, table = exact
    assert table.scored(block(tokenizer, [text])).tolist() == [len(expected(kind, text))]
    pieces = [table.pieces[index] for index in block(tokenizer, [text])[0].tolist()]
    found = b"".join(piece for piece in pieces if piece is not None)
    assert found.endswith(expected(kind, text))
    assert len(found) <= len(expected(kind, text)) + 1, "but for a space in front"


@settings(max_examples=60)
@given(texts=st.lists(st.text(min_size=1), min_size=1, max_size=4))
def test_so_do_the_tokens_of_any_documents_in_a_row(
    exact: tuple[str, DocumentTokenizer, TokenBytes], texts: list[str]
) -> None:
    kind, tokenizer, table = exact
    if kind == "nfc_digits":
        texts = [unicodedata.normalize("NFC", text) for text in texts]
    wanted = sum(len(expected(kind, text)) for text in texts)
    assert table.scored(block(tokenizer, texts)).tolist() == [wanted]


def test_the_first_token_of_a_block_is_not_scored(
    exact: tuple[str, DocumentTokenizer, TokenBytes],
) -> None:
    _, tokenizer, table = exact
    ids = block(tokenizer, ["the cat sat on the mat"])
    later = ids[:, 3:]
    assert table.scored(later)[0] == table.lengths[later[0, 1:]].sum()
    assert table.scored(np.repeat(ids, 3, axis=0)).tolist() == [22, 22, 22]


@pytest.mark.parametrize(
    ("kind", "reason"),
    [("word_piece", "leaves out characters between tokens (WhitespaceSplit)"),
     ("word_level", "WhitespaceSplit"),
     ("lower_case", "changes text before it is split (Lowercase)"),
     ("no_alphabet", "no tokens for 2"), ("spaces_everywhere", "spaces between pieces"),
     ("drops", "leaves out characters that are not in its vocabulary")],
)  # fmt: skip
def test_a_tokenizer_that_does_not_tell_says_why(tmp_path: Path, kind: str, reason: str) -> None:
    if kind in kinds.KINDS:
        core = kinds.KINDS[kind]()
    elif kind == "lower_case":
        core = kinds.byte_level_bpe()
        core.normalizer = normalizers.Lowercase()
    elif kind == "spaces_everywhere":
        core = kinds.byte_level_bpe()
        core.pre_tokenizer = pre_tokenizers.Sequence(
            [pre_tokenizers.Digits(individual_digits=True),
             pre_tokenizers.ByteLevel(add_prefix_space=True)]
        )  # fmt: skip
    else:
        content = json.loads(kinds.byte_level_bpe().to_str())
        if kind == "no_alphabet":
            model = content["model"]
            for letter in "Ā", "q":
                del model["vocab"][letter]
            model["merges"] = [m for m in model["merges"] if "q" not in "".join(m)]
        else:
            content["pre_tokenizer"] = None
        core = Tokenizer.from_str(json.dumps(content))
    with pytest.raises(InexactBytesError) as raised:
        TokenBytes.of(load_tokenizer(str(saved(core, tmp_path / "t"))))
    assert reason in str(raised.value)


def test_text_that_the_vocabulary_does_not_know_has_no_number(tmp_path: Path) -> None:
    folder = saved(kinds.unigram(), tmp_path / "t")
    tokenizer = DocumentTokenizer.load(folder, None, DocumentFormat(bos="never", eos="always"))
    table = TokenBytes.of(load_tokenizer(str(folder)))
    assert table.scored(block(tokenizer, ["the cat"])).tolist() == [7]
    assert table.scored(block(tokenizer, ["the 日"])).tolist() == [-1]


def test_added_tokens_stand_for_their_text_and_special_ones_for_nothing(tmp_path: Path) -> None:
    core = kinds.with_added(kinds.byte_level_bpe(), special=False, tokens=["<naïve>"])
    core = kinds.with_added(core, special=True, tokens=["<turn>"])
    tokenizer = load_tokenizer(str(saved(core, tmp_path / "t")))
    table = TokenBytes.of(tokenizer)
    ids = tokenizer.convert_tokens_to_ids(["<s>", "<naïve>", "<turn>", "a", "</s>"])
    assert [table.pieces[i] for i in ids] == [b"", "<naïve>".encode(), b"", b"a", b""]
