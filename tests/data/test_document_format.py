"""What documents begin and end with, and what a plan says of it without Transformers."""

import itertools
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tokenizers import Tokenizer, processors
from transformers import AutoTokenizer, GemmaTokenizer, GPT2Tokenizer, LlamaTokenizer

from drpruning.common.errors import BadInput
from drpruning.data import DocumentFormat, describe_documents
from drpruning.data.document_format import TokenizerMarkers, markers_of
from drpruning.data.tokenization import DocumentTokenizer
from helpers.tokenizer_kinds import KINDS, SPECIAL, save, template

BOS, EOS = SPECIAL.index("<s>"), SPECIAL.index("</s>")
BOTH = {"bos_token": "<s>", "eos_token": "</s>"}


def processed(processor: Any, kind: str = "byte_level_bpe") -> Tokenizer:
    core = KINDS[kind]()
    if processor is not None:
        core.post_processor = processor
    return core


BYTES = processors.ByteLevel(trim_offsets=False)
LLAMA = template(first=["<s>"])
MADE: dict[str, Callable[[Path], object]] = {
    "nothing": lambda to: save(processed(None), to),
    "no-bos": lambda to: save(processed(None), to, eos_token="</s>"),
    "bos-is-null": lambda to: save(processed(LLAMA), to, eos_token="</s>", bos_token=None),
    "not-used": lambda to: save(processed(BYTES), to, **BOTH),
    "llama": lambda to: save(processed(LLAMA, "byte_fallback_bpe"), to, **BOTH),
    "as-objects": lambda to: save(
        processed(LLAMA), to,
        **{key: {"content": token, "__type": "AddedToken", "lstrip": False, "rstrip": False,
                 "normalized": False, "single_word": False, "special": True}
           for key, token in BOTH.items()},
    ),
    "llama-3": lambda to: save(processed(processors.Sequence([BYTES, LLAMA])), to, **BOTH),
    "both": lambda to: save(processed(template(["<s>"], ["</s>"])), to, **BOTH),
    "only-eos": lambda to: save(processed(template([], ["</s>"])), to, **BOTH),
    "bos-last": lambda to: save(processed(template([], ["<s>"])), to, **BOTH),
    "another-first": lambda to: save(processed(template(["<pad>"])), to, **BOTH),
    "bert": lambda to: save(
        processed(processors.BertProcessing(("</s>", EOS), ("<pad>", 3)), "word_piece"), to,
        eos_token="</s>",
    ),
    "roberta": lambda to: save(
        processed(processors.RobertaProcessing(("</s>", EOS), ("<s>", BOS))), to, **BOTH
    ),
    "roberta-another-first": lambda to: save(
        processed(processors.RobertaProcessing(("</s>", EOS), ("<pad>", 3))), to, **BOTH
    ),
    "gpt-2": lambda to: save(processed(BYTES), to, bos_token="</s>", eos_token="</s>"),
    "opt": lambda to: save(
        processed(template(["</s>"])), to, bos_token="</s>", eos_token="</s>"
    ),
    "add-bos-is-false": lambda to: save(processed(LLAMA), to, add_bos_token=False, **BOTH),
    "add-bos-is-true": lambda to: save(processed(None), to, add_bos_token=True, **BOTH),
    "add-eos-is-true": lambda to: save(processed(LLAMA), to, add_eos_token=True, **BOTH),
    "unigram": lambda to: save(processed(LLAMA, "unigram"), to, **BOTH),
    "legacy-map": lambda to: (
        save(processed(LLAMA), to),
        (to / "special_tokens_map.json").write_text(json.dumps(BOTH)),
    ),
    "llama-class": lambda to: save(
        processed(LLAMA, "byte_fallback_bpe"), to, tokenizer_class="LlamaTokenizer", **BOTH
    ),
    "llama-class-saved": lambda to: LlamaTokenizer().save_pretrained(to),
    "gemma-class-saved": lambda to: GemmaTokenizer().save_pretrained(to),
    "gpt-2-class-saved": lambda to: GPT2Tokenizer().save_pretrained(to),
    "saved-again": lambda to: AutoTokenizer.from_pretrained(
        save(processed(LLAMA), to, **BOTH)
    ).save_pretrained(to),
}  # fmt: skip


@pytest.fixture(params=MADE)
def folder(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    MADE[request.param](tmp_path / request.param)
    return tmp_path / request.param


def test_the_files_say_what_transformers_does(folder: Path) -> None:
    """The reader for plans agrees with the tokenizer that preparing loads."""
    tokenizer = AutoTokenizer.from_pretrained(folder)
    found = TokenizerMarkers.of_files(str(folder))
    assert found == markers_of(tokenizer)
    for text in ("the cat sat", "a", "</s>"):
        prompt = tokenizer(text)["input_ids"]
        alone = tokenizer(text, add_special_tokens=False)["input_ids"]
        first = found.bos is not None and prompt[: 1 + len(alone)] == [found.bos.id, *alone]
        assert found.prompts_begin_with_bos == first, text


@pytest.mark.parametrize(
    "wanted", itertools.product(("auto", "always", "never"), repeat=2), ids="-".join
)
def test_plan_and_preparation_say_and_do_the_same(folder: Path, wanted: tuple[Any, Any]) -> None:
    settings = DocumentFormat(bos=wanted[0], eos=wanted[1])
    refusals = []
    for attempt in (
        lambda: DocumentTokenizer.load(folder, None, settings),
        lambda: describe_documents(str(folder), settings),
    ):
        try:
            attempt()
        except BadInput as refusal:
            refusals.append(str(refusal))
    assert len(refusals) in {0, 2}
    assert len(set(refusals)) <= 1
    if refusals:
        return
    tokenizer = DocumentTokenizer.load(folder, None, settings)
    line = describe_documents(str(folder), settings)
    found = tokenizer.encode([b"the cat", b"sat"], 1)
    one, two = np.split(found.tokens, np.cumsum(found.lengths)[:-1])
    bos, eos = tokenizer.markers.bos, tokenizer.markers.eos
    plain = AutoTokenizer.from_pretrained(folder)(["the cat", "sat"], add_special_tokens=False)
    for ids, alone in zip((one, two), plain["input_ids"], strict=True):
        first = [] if bos is None else [bos.id]
        last = [] if eos is None else [eos.id]
        assert ids.tolist() == [*first, *alone, *last]
    assert (f"{bos.token} first" in line) if bos else (" first" not in line)
    assert (f"{eos.token} last" in line) if eos else (" last" not in line)
    assert ("run together" in line) == (bos is None and eos is None)


def test_auto_is_what_inference_does_and_one_separator() -> None:
    chosen = {
        "no-bos": (None, "</s>"),
        "not-used": (None, "</s>"),  # Qwen2, GPT-NeoX
        "llama": ("<s>", "</s>"),
        "both": ("<s>", "</s>"),
        "gpt-2": (None, "</s>"),
        "opt": (None, "</s>"),
        "add-bos-is-true": (None, "</s>"),  # Transformers goes by tokenizer.json
    }
    for name, (bos, eos) in chosen.items():
        assert automatic(name) == (bos, eos), name


def automatic(name: str) -> tuple[str | None, str | None]:
    import tempfile

    with tempfile.TemporaryDirectory() as place:
        MADE[name](Path(place))
        markers = DocumentTokenizer.load(place, None, DocumentFormat()).markers
    return (
        markers.bos.token if markers.bos else None,
        markers.eos.token if markers.eos else None,
    )


def test_one_token_for_both_stands_where_it_is_asked_for(tmp_path: Path) -> None:
    MADE["opt"](tmp_path)

    def ids(**settings: Any) -> list[int]:
        tokenizer = DocumentTokenizer.load(tmp_path, None, DocumentFormat(**settings))
        found = tokenizer.encode([b"cat", b"cat"], 1).tokens
        return (found == EOS).tolist()

    word = ids(bos="never", eos="never")[: len(ids(bos="never", eos="never")) // 2]
    assert ids() == [*word, True, *word, True]
    assert ids(bos="always") == [True, *word, True, *word]
    assert ids(eos="never") == [True, *word, True, *word]
    assert ids(bos="always", eos="always") == [True, *word, True, True, *word, True]


def test_documents_in_parts_have_each_marker_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    MADE["llama-3"](tmp_path)
    tokenizer = DocumentTokenizer.load(tmp_path, None, DocumentFormat())
    texts = [b"the cat sat on the mat " * 9, b"cat", b"one two three four five six seven eight"]
    whole = tokenizer.encode(texts, 1)
    monkeypatch.setattr("drpruning.data.tokenization._LONGEST_PART", 24)
    parts = tokenizer.encode(texts, 1)
    assert parts.tokens.tolist() == whole.tokens.tolist()
    assert parts.lengths.tolist() == whole.lengths.tolist()
    assert (whole.tokens == BOS).sum() == (whole.tokens == EOS).sum() == len(texts)


def test_markers_that_parsed_text_has_already_are_not_doubled(tmp_path: Path) -> None:
    MADE["llama"](tmp_path)
    parse = DocumentFormat(special_tokens="parse")
    tokens = DocumentTokenizer.load(tmp_path, None, parse).encode([b"<s>the cat</s>", b"cat"], 1)
    assert (tokens.tokens == BOS).sum() == (tokens.tokens == EOS).sum() == 2


@pytest.mark.parametrize(
    ("name", "settings", "message"),
    [
        ("no-bos", {"bos": "always"}, r"data\.bos: .* has no BOS token; .* or write `bos: never`"),
        ("nothing", {"eos": "always"}, r"data\.eos: .* has no EOS token; .* or write `eos: never`"),
        ("nothing", {}, r"data\.eos: .* has no end-of-sequence token .*`eos: never` to let"),
    ],
)
def test_tokens_that_are_not_there_are_named(
    tmp_path: Path, name: str, settings: dict[str, Any], message: str
) -> None:
    MADE[name](tmp_path)
    with pytest.raises(BadInput, match=message):
        DocumentTokenizer.load(tmp_path, None, DocumentFormat(**settings))


def test_documents_without_an_eos_may_begin_with_a_bos(tmp_path: Path) -> None:
    save(processed(LLAMA), tmp_path, bos_token="<s>")
    line = describe_documents(str(tmp_path), DocumentFormat())
    assert line == "documents: <s> first; special tokens written in the text are text"


@pytest.mark.parametrize("damage", ["missing", "no-json", "no-vocabulary", "class", "no-token"])
def test_what_the_files_do_not_tell_is_left_open(tmp_path: Path, damage: str) -> None:
    save(processed(LLAMA), tmp_path, **BOTH)
    file, config = tmp_path / "tokenizer.json", tmp_path / "tokenizer_config.json"
    if damage == "missing":
        file.unlink()
    elif damage == "no-json":
        config.write_text("[")
    elif damage == "no-vocabulary":
        file.write_text('{"added_tokens": []}')
    elif damage == "class":  # whose own defaults would count
        config.write_text('{"tokenizer_class": "LlamaTokenizer"}')
    else:
        config.write_text('{"tokenizer_class": "TokenizersBackend", "eos_token": "<end>"}')
    line = describe_documents(str(tmp_path), DocumentFormat())
    assert "known once the tokenizer is loaded" in line
