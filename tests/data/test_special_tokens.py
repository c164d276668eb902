"""Special tokens that are written in text are text, unless somebody means them."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from transformers import AutoTokenizer, ByT5Tokenizer

from drpruning.common.errors import BadInput
from drpruning.data import DocumentFormat, DomainSource, PreparedData, prepare
from drpruning.data.tokenization import DocumentTokenizer, tokenizer_digest
from helpers.tokenizer_kinds import KINDS, SPECIAL, TEXTS, save, template, with_added

NAMES = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>", "pad_token": "<pad>"}
UNKNOWN = SPECIAL.index("<unk>")
NOTHING = DocumentFormat(bos="never", eos="never")
WRITTEN = [
    "the <s> cat </s> sat <pad> <unk> on <|im_start|> the mat",
    "<s>the cat</s>",
    "</s>",
    "a <s><s></s> b",
    "</s>! the cat",
    "the cat sat",
]


def made(kind: str, folder: Path, **names: Any) -> Path:
    core = with_added(KINDS[kind](), special=True, tokens=["<|im_start|>"])
    core = with_added(core, special=False, tokens=["<tool>"])
    return save(core, folder, **NAMES | names)


def encoded(folder: Path, texts: list[str], wanted: DocumentFormat = NOTHING) -> list[list[int]]:
    tokenizer = DocumentTokenizer.load(folder, None, wanted)
    found = tokenizer.encode([text.encode() for text in texts], workers=1)
    return [part.tolist() for part in np.split(found.tokens, np.cumsum(found.lengths)[:-1])]


@pytest.mark.parametrize("kind", KINDS)
def test_text_gives_no_special_token_and_is_the_text_again(kind: str, tmp_path: Path) -> None:
    folder = made(kind, tmp_path / kind)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    special = {i for i, token in tokenizer.added_tokens_decoder.items() if token.special}
    for text, ids in zip(WRITTEN, encoded(folder, WRITTEN), strict=True):
        assert not (special - {UNKNOWN}) & set(ids), text
        if kind != "word_level":  # a word that it does not have is unknown
            assert UNKNOWN not in ids, text
        if kind in {"byte_level_bpe", "byte_fallback_bpe", "unigram"}:
            assert tokenizer.decode(ids).strip() == text
        if kind == "word_piece":
            assert tokenizer.decode(ids).split() == text.split()


@pytest.mark.parametrize("kind", KINDS)
def test_other_text_and_added_tokens_that_are_not_special_stay_as_they_were(
    kind: str, tmp_path: Path
) -> None:
    folder = made(kind, tmp_path / kind)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    texts = [*TEXTS[:3], "the <tool> cat", "<tool>", "Zürich, 東京", "  two  spaces\n\nlines "]
    expected = [tokenizer(text, add_special_tokens=False)["input_ids"] for text in texts]
    assert encoded(folder, texts) == expected
    tool = tokenizer.convert_tokens_to_ids("<tool>")
    assert tool in encoded(folder, ["the <tool> cat </s>"])[0]


@pytest.mark.parametrize("kind", KINDS)
def test_no_text_can_be_made_to_become_a_special_token(kind: str, tmp_path: Path) -> None:
    from drpruning.data import tokenization

    folder = made(kind, tmp_path / kind)
    vocabularies = []
    for _ in range(2):
        tokenization._load.cache_clear()
        core = tokenization._load(str(folder), "text")._core
        vocabularies.append({index: token for token, index in core.get_vocab(False).items()})
    hidden = [{vocabulary[SPECIAL.index(t)] for t in SPECIAL[1:]} for vocabulary in vocabularies]
    assert not hidden[0] & hidden[1], "each process has names of its own"
    ids = core.encode(" ".join(sorted(hidden[0])), add_special_tokens=False).ids
    assert not {SPECIAL.index(t) for t in SPECIAL[1:]} & set(ids)


@pytest.mark.parametrize("kind", KINDS)
def test_parsed_text_is_what_the_tokenizer_makes_of_it(kind: str, tmp_path: Path) -> None:
    folder = made(kind, tmp_path / kind)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    parse = DocumentFormat(special_tokens="parse", bos="never", eos="never")
    expected = [tokenizer(text, add_special_tokens=False)["input_ids"] for text in WRITTEN]
    assert encoded(folder, WRITTEN, parse) == expected
    assert SPECIAL.index("</s>") in expected[0]


@pytest.mark.parametrize("special_tokens", ["text", "parse"])
def test_settings_of_the_tokenizers_file_neither_cut_nor_fill_documents(
    tmp_path: Path, special_tokens: Any
) -> None:
    wanted = DocumentFormat(special_tokens=special_tokens, bos="never", eos="never")
    core = KINDS["byte_level_bpe"]()
    plain = save(core, tmp_path / "plain", **NAMES)
    core.enable_truncation(3)
    core.enable_padding(pad_id=SPECIAL.index("<pad>"), pad_token="<pad>", length=40)
    other = save(core, tmp_path / "other", **NAMES)
    assert encoded(other, WRITTEN, wanted) == encoded(plain, WRITTEN, wanted)


def test_a_slow_tokenizer_keeps_text_as_text(tmp_path: Path) -> None:
    ByT5Tokenizer(extra_ids=0).save_pretrained(tmp_path)
    tokenizer = AutoTokenizer.from_pretrained(tmp_path)
    tokenizer.add_tokens(["<tool>"])
    tokenizer.save_pretrained(tmp_path)
    assert not tokenizer.is_fast
    (text, tool) = encoded(tmp_path, ["the cat</s> sat <pad>", "a <tool> b</s>"])
    assert bytes(i - 3 for i in text).decode() == "the cat</s> sat <pad>"
    (at,) = [place for place, i in enumerate(tool) if i == tokenizer.get_vocab()["<tool>"]]
    assert bytes(i - 3 for i in tool[:at]) == b"a "
    assert bytes(i - 3 for i in tool[at + 1 :]) == b" b</s>"
    parse = DocumentFormat(special_tokens="parse", bos="never", eos="never")
    assert tokenizer.eos_token_id in encoded(tmp_path, ["the cat</s> sat"], parse)[0]


def test_using_the_tokenizer_elsewhere_does_not_change_it(tmp_path: Path) -> None:
    folder = made("byte_level_bpe", tmp_path)
    tokenizer = DocumentTokenizer.load(folder, None, NOTHING)
    before = tokenizer.encode([b"a </s> b"], 1).tokens.tolist()
    from drpruning.data import tokenization

    tokenization._load(str(folder), "text").tokenizer("a </s> b")  # resets a flag of its own
    assert tokenizer.encode([b"a </s> b"], 1).tokens.tolist() == before


def prepared(folder: Path, tokenizer: Path, texts: list[str], **options: Any) -> PreparedData:
    folder.mkdir()
    (folder / "a.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    (folder / "b.jsonl").write_text(
        "".join(json.dumps({"text": f"{text} <pad>"}) + "\n" for text in texts[:9])
    )
    domains = [DomainSource(name="cc", source=str(folder / "a.jsonl"),
                            validation=str(folder / "b.jsonl"))]  # fmt: skip
    return prepare(
        domains, tokenizer=tokenizer, vocab_size=None, sequence_length=16, validation_blocks=2,
        folder=folder / "out", **options,
    )  # fmt: skip


def test_what_is_written_is_counted(tmp_path: Path) -> None:
    tokenizer = made("byte_level_bpe", tmp_path / "tokenizer")
    texts = [f"{number} the cat <s></s> sat </s> <tool>" for number in range(50)]
    for special_tokens, became in (("text", "encoded as text"), ("parse", "became these tokens")):
        data = prepared(
            tmp_path / special_tokens, tokenizer, [*texts, "", "</s", "plain"], workers=2,
            document_format=DocumentFormat(special_tokens=special_tokens),
        )  # fmt: skip
        counts = data.domains["cc"].counts
        read = counts.validation_documents  # reading stops once there is enough
        assert counts.special_tokens == {"</s>": 100 + 2 * read, "<s>": 50 + read, "<pad>": read}
        (line,) = data.special_token_lines()
        assert line.startswith(f"special tokens written in the text of cc: </s> {100 + 2 * read}, ")
        assert became in line
    data = prepared(tmp_path / "plain", tokenizer, ["the cat sat on the mat"] * 30 + ["x y z"] * 30)
    assert data.domains["cc"].counts.special_tokens == {
        "<pad>": data.domains["cc"].counts.validation_documents
    }


def test_it_is_counted_by_document_however_documents_are_grouped(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tokenizer = DocumentTokenizer.load(made("byte_level_bpe", tmp_path), None, NOTHING)
    texts = [b"the cat", b"</s> sat </s>", b"on <s>", b"the mat", b"<s> and <pad>"]
    for packet in (1, 20, 1 << 18):
        monkeypatch.setattr("drpruning.data.tokenization._PACKET_BYTES", packet)
        assert tokenizer.encode(texts, workers=1).special == {
            1: {"</s>": 2}, 2: {"<s>": 1}, 4: {"<s>": 1, "<pad>": 1},
        }  # fmt: skip


def test_domains_of_one_source_have_the_counts_of_their_own_documents(tmp_path: Path) -> None:
    tokenizer = made("byte_level_bpe", tmp_path / "tokenizer")
    rows = [
        {"text": f"{number} the cat {'</s> sat' if number % 3 else '<s><pad>'}", "n": number % 3}
        for number in range(90)
    ]
    (tmp_path / "all.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    domains = [
        DomainSource(name=f"n{n}", source=str(tmp_path / "all.jsonl"), where={"n": n})
        for n in (0, 1)
    ]
    data = prepare(
        domains, tokenizer=tokenizer, vocab_size=None, sequence_length=16, validation_blocks=2,
        folder=tmp_path / "out",
    )  # fmt: skip
    assert data.domains["n0"].counts.special_tokens == {"<s>": 30, "<pad>": 30}
    assert data.domains["n1"].counts.special_tokens == {"</s>": 30}


def test_another_treatment_of_special_tokens_is_other_data(tmp_path: Path) -> None:
    tokenizer = made("byte_level_bpe", tmp_path / "tokenizer")
    texts = [f"{number} the cat </s> sat" for number in range(50)]
    text = prepared(tmp_path / "data", tokenizer, texts)
    assert "special_tokens" in text.identity["settings"]
    with pytest.raises(BadInput, match=r"special_tokens \(saved text, now parse\)"):
        prepare(
            [DomainSource(name="cc", source=str(tmp_path / "data/a.jsonl"),
                          validation=str(tmp_path / "data/b.jsonl"))],
            tokenizer=tokenizer, vocab_size=None, sequence_length=16, validation_blocks=2,
            folder=tmp_path / "data/out", document_format=DocumentFormat(special_tokens="parse"),
        )  # fmt: skip


def test_markers_are_no_part_of_how_text_is_split(tmp_path: Path) -> None:
    plain = made("byte_fallback_bpe", tmp_path / "plain")
    core = with_added(KINDS["byte_fallback_bpe"](), special=True, tokens=["<|im_start|>"])
    core = with_added(core, special=False, tokens=["<tool>"])
    core.post_processor = template(first=["<s>"])
    core.enable_truncation(5)
    other = save(core, tmp_path / "other", **NAMES | {"eos_token": "<pad>", "bos_token": None})
    assert tokenizer_digest(plain) == tokenizer_digest(other)
    assert tokenizer_digest(plain) != tokenizer_digest(made("unigram", tmp_path / "unigram"))
