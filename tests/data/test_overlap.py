"""Text for validation is in the training blocks of no domain, whatever the order of domains."""

import itertools
import json
import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from drpruning.common.errors import BadInput
from drpruning.data import DomainSource, PreparedData, TokenBlocks, prepare
from drpruning.data.readers import RowReader

EOS = 0
LENGTH = 8
WORDS = [f"w{number}" for number in range(3000)]


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Path:
    core = Tokenizer(models.WordLevel({"</s>": EOS, **{w: i + 1 for i, w in enumerate(WORDS)}}))
    core.pre_tokenizer = pre_tokenizers.Whitespace()
    folder = tmp_path_factory.mktemp("tokenizer")
    PreTrainedTokenizerFast(tokenizer_object=core, eos_token="</s>").save_pretrained(folder)
    return folder


def texts(first: int, count: int) -> list[str]:
    """Different texts: each begins with a word of its own."""
    rng = random.Random(first)
    return [
        " ".join([WORDS[i], *rng.choices(WORDS[-50:], k=rng.randint(2, 8))])
        for i in range(first, first + count)
    ]


def write(file: Path, documents: list[str], **fields: str) -> str:
    with file.open("a") as stream:
        stream.writelines(json.dumps({"text": text, **fields}) + "\n" for text in documents)
    return str(file)


def run(tokenizer: Path, folder: Path, *domains: DomainSource, **options: Any) -> PreparedData:
    settings: dict[str, Any] = {
        "sequence_length": LENGTH, "validation_blocks": 4, "workers": 1, "vocab_size": None,
    }  # fmt: skip
    return prepare(domains, tokenizer=tokenizer, folder=folder, **settings | options)


def documents(blocks: TokenBlocks) -> set[str]:
    """The texts in blocks, without the first and the last, which may be cut."""
    stream = blocks[np.arange(len(blocks))].reshape(-1)
    parts = np.split(stream, np.flatnonzero(stream == EOS) + 1)
    return {" ".join(WORDS[i - 1] for i in part[:-1]) for part in parts[:-1]}


def validation(data: PreparedData) -> set[str]:
    return set().union(*(documents(domain.validation) for domain in data.domains.values()))


def blocks(data: PreparedData) -> dict[str, bytes]:
    return {
        f"{name}/{part.file.name}": part.file.read_bytes()
        for name, domain in data.domains.items()
        for part in (domain.train, domain.validation)
    }


@pytest.fixture
def overlapping(tmp_path: Path) -> list[DomainSource]:
    """Domains that share texts in every way: held out, with a validation source, by `where`."""
    shared = texts(0, 150)
    held = texts(2000, 40)
    mixed = tmp_path / "mixed.jsonl"
    write(mixed, [*texts(1500, 100), *shared[100:]], set="x")
    write(mixed, [*texts(1700, 100), *held[:20]], set="y")
    return [
        DomainSource(name="web", source=write(tmp_path / "web.jsonl", shared + texts(200, 900))),
        DomainSource(name="wiki", source=write(tmp_path / "wiki.jsonl", shared)),
        DomainSource(
            name="code",
            source=write(tmp_path / "code.jsonl", texts(1200, 200) + shared[:30]),
            validation=write(tmp_path / "held.jsonl", held + shared[50:60]),
        ),
        DomainSource(name="x", source=str(mixed), where={"set": "x"}),
        DomainSource(name="xy", source=str(mixed), where={"set": ["x", "y"]}),
    ]


def test_no_validation_text_is_trained_on_in_any_domain(
    tokenizer: Path, tmp_path: Path, overlapping: list[DomainSource]
) -> None:
    data = run(tokenizer, tmp_path / "out", *overlapping)
    held_out = validation(data)
    assert len(held_out) > 15
    for domain in data.domains.values():
        assert not held_out & documents(domain.train)
    counts = {name: domain.counts for name, domain in data.domains.items()}
    assert sum(count.in_other_validation > 0 for count in counts.values()) >= 3
    for name, count in counts.items():
        blocks_of = count.train_blocks + count.validation_blocks
        assert count.tokens == LENGTH * blocks_of + count.dropped_tokens, name


def test_only_what_is_for_validation_is_left_out(
    tokenizer: Path, tmp_path: Path, overlapping: list[DomainSource]
) -> None:
    data = run(tokenizer, tmp_path / "out", *overlapping)
    for own in overlapping:
        rows = [json.loads(line) for line in Path(own.source).read_text().splitlines()]
        allowed = own.where.get("set", "")
        given = [row["text"] for row in rows if not own.where or row["set"] in allowed]  # type: ignore[operator]
        counts = data.domains[own.name].counts
        chosen = 0 if own.validation else counts.validation_documents
        kept = len(given) - chosen - counts.duplicates - counts.in_other_validation
        # A document is cut at the end, or a few that fill no block are dropped.
        assert 0 <= kept - len(documents(data.domains[own.name].train)) <= LENGTH


def test_validation_sets_do_not_depend_on_the_other_domains(
    tokenizer: Path, tmp_path: Path, overlapping: list[DomainSource]
) -> None:
    together = run(tokenizer, tmp_path / "out", *overlapping)
    for own in overlapping:
        alone = run(tokenizer, tmp_path / own.name, own).domains[own.name]
        other = together.domains[own.name]
        assert alone.validation.file.read_bytes() == other.validation.file.read_bytes()
        assert alone.counts.duplicates == other.counts.duplicates
        assert alone.counts.in_other_validation == 0


def test_the_order_of_the_domains_and_interruptions_change_nothing(
    tokenizer: Path,
    tmp_path: Path,
    overlapping: list[DomainSource],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    expected = blocks(run(tokenizer, tmp_path / "out", *overlapping))
    for number, order in enumerate(
        itertools.islice(itertools.permutations(overlapping), 1, 120, 30)
    ):
        assert blocks(run(tokenizer, tmp_path / str(number), *order)) == expected
    file_rows = RowReader._file_rows
    left = {"web.jsonl", "held.jsonl", "mixed.jsonl"}

    def interrupted(self: RowReader, file: Path) -> Any:
        if file.name in left:
            left.remove(file.name)
            raise KeyboardInterrupt
        return file_rows(self, file)

    monkeypatch.setattr(RowReader, "_file_rows", interrupted)
    for _ in range(3):
        with pytest.raises(KeyboardInterrupt):
            run(tokenizer, tmp_path / "again", *overlapping)
    assert blocks(run(tokenizer, tmp_path / "again", *overlapping)) == expected


@pytest.mark.parametrize("after", range(1, 11))
def test_an_interruption_while_blocks_are_written_changes_nothing(
    tokenizer: Path,
    tmp_path: Path,
    overlapping: list[DomainSource],
    monkeypatch: pytest.MonkeyPatch,
    after: int,
) -> None:
    from drpruning.data import packing

    expected = blocks(run(tokenizer, tmp_path / "out", *overlapping))
    write_blocks, calls = packing._write, 0

    def interrupted(*arguments: Any) -> None:
        nonlocal calls
        calls += 1
        if calls == after:
            raise KeyboardInterrupt
        write_blocks(*arguments)

    monkeypatch.setattr(packing, "_write", interrupted)
    with pytest.raises(KeyboardInterrupt):
        run(tokenizer, tmp_path / "again", *overlapping)
    with pytest.raises(BadInput, match=r"is not complete \(blocks missing\)"):
        PreparedData.open(tmp_path / "again")
    monkeypatch.setattr(packing, "_write", write_blocks)
    monkeypatch.setattr(RowReader, "__iter__", None)  # nothing is read again
    data = run(tokenizer, tmp_path / "again", *overlapping)
    assert blocks(data) == expected
    left = {path.name for path in (tmp_path / "again").iterdir()}
    assert left == {".lock", "manifest.json", *(domain.name for domain in overlapping)}


def test_a_domain_of_which_nothing_is_left_is_named(tokenizer: Path, tmp_path: Path) -> None:
    same = texts(0, 20)
    domains = [
        DomainSource(
            name="a",
            source=write(tmp_path / "a.jsonl", texts(100, 50)),
            validation=write(tmp_path / "v.jsonl", same),
        ),
        DomainSource(
            name="b",
            source=write(tmp_path / "b.jsonl", same),
            validation=write(tmp_path / "w.jsonl", texts(300, 20)),
        ),
    ]
    with pytest.raises(
        BadInput,
        match=r"domains\.b: 0 tokens are left for training once text that is in any domain's",
    ):
        run(tokenizer, tmp_path / "out", *domains, validation_blocks=100)


def test_what_was_left_out_is_put_into_words(
    tokenizer: Path, tmp_path: Path, overlapping: list[DomainSource]
) -> None:
    data = run(tokenizer, tmp_path / "out", *overlapping)
    lines = data.overlap_warnings()
    assert len(lines) == sum(d.counts.in_other_validation > 0 for d in data.domains.values())
    count = data.domains["web"].counts.in_other_validation
    assert any(
        f"domains.web: {count} of 1,050 documents are not trained on" in line for line in lines
    )
    assert run(tokenizer, tmp_path / "alone", overlapping[0]).overlap_warnings() == []


CHANGES = {
    "removed": lambda file: file.unlink(),
    "shortened": lambda file: file.write_bytes(
        file.read_bytes()[: 40 * file.stat().st_size // 100]
    ),
    "replaced": lambda file: file.write_text(file.read_text().replace("w296", "w297")),
    "added": lambda file: write(file.with_name("z.jsonl"), ["w1 w2"]),
    "folder": lambda file: (file.unlink(), file.mkdir()),
}


@pytest.mark.parametrize("moment", ["before", "during", "after"])
@pytest.mark.parametrize("part", ["source", "validation"])
@pytest.mark.parametrize("change", CHANGES)
def test_text_that_changes_during_the_preparation_is_named(
    tokenizer: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    change: str,
    part: str,
    moment: str,
) -> None:
    for name in ("train", "held"):
        (tmp_path / name).mkdir()
        write(tmp_path / name / "b.jsonl", texts(0 if name == "train" else 500, 100))
    first = DomainSource(name="first", source=write(tmp_path / "a.jsonl", texts(1000, 100)))
    second = DomainSource(
        name="second", source=str(tmp_path / "train"), validation=str(tmp_path / "held")
    )
    changed = tmp_path / ("train" if part == "source" else "held") / "b.jsonl"
    file_rows = RowReader._file_rows

    def rows(self: RowReader, file: Path) -> Any:
        for number, row in enumerate(file_rows(self, file)):
            if (moment, file.name, number) == ("before", "a.jsonl", 0):
                CHANGES[change](changed)
            if (moment, file, number) == ("during", changed, 1):
                CHANGES[change](changed)
            yield row
        if moment == "after" and file == changed:
            CHANGES[change](changed)

    monkeypatch.setattr(RowReader, "_file_rows", rows)
    with pytest.raises(BadInput) as caught:
        run(tokenizer, tmp_path / "out", first, second, validation_blocks=1000)
    message = str(caught.value)
    assert "\n" not in message
    assert f"domains.second.{part}" in message or str(changed) in message
    manifest = json.loads((tmp_path / "out/manifest.json").read_text())
    assert list(manifest["tokenized"]) == ["first"]
    assert not (tmp_path / "out/.cache/second").exists()
