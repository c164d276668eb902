"""Estimates of tokens are near the count, whatever the script, the kind of file and its size."""

import argparse
import csv
import gzip
import io
import json
import random
import sys
import textwrap
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import zstandard
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

from drpruning.data import DomainSource, estimate_tokens, token_estimate

RNG = random.Random(0)
LETTERS = "etaoinshrdlu"
WORDS = ["".join(RNG.choices(LETTERS, k=RNG.randint(2, 9))) for _ in range(400)]
HAN = [chr(0x4E00 + 7 * number) for number in range(600)]
WEIGHTS = [1 / (1 + rank) for rank in range(600)]
CODE = Path(argparse.__file__).read_text(encoding="utf-8").split("\n\n")


def english(rng: random.Random) -> str:
    words = rng.choices(WORDS, WEIGHTS[:400], k=rng.randint(5, 400))
    return textwrap.fill(" ".join(words).capitalize() + ".")


def chinese(rng: random.Random) -> str:
    return "".join(rng.choices(HAN, WEIGHTS, k=rng.randint(5, 400))) + "。"


def code(rng: random.Random) -> str:
    return "\n\n".join(rng.choices(CODE, k=rng.randint(1, 5)))


SCRIPTS: dict[str, Callable[[random.Random], str]] = {
    "english": english,
    "chinese": chinese,
    "code": code,
}


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A byte-level BPE as Llama and Qwen have, saved with settings that must not count."""
    rng = random.Random(1)
    core = Tokenizer(models.BPE())
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.decoder = decoders.ByteLevel()
    texts = [script(rng) for script in SCRIPTS.values() for _ in range(60)]
    core.train_from_iterator(texts, trainers.BpeTrainer(vocab_size=900, show_progress=False))
    core.enable_truncation(5)
    folder = tmp_path_factory.mktemp("tokenizer")
    core.save(str(folder / "tokenizer.json"))
    return folder


def counted(tokenizer: Path, texts: list[str]) -> int:
    core = Tokenizer.from_file(str(tokenizer / "tokenizer.json"))
    core.no_truncation()
    return sum(len(found.ids) + 1 for found in core.encode_batch_fast(texts))


PACKED: dict[str, Callable[[bytes], bytes]] = {
    "jsonl": bytes, "jsonl.gz": gzip.compress, "jsonl.zst": zstandard.compress,
    "json": bytes, "json.gz": gzip.compress, "csv": bytes, "tsv.zst": zstandard.compress,
}  # fmt: skip


def write(place: Path, kind: str, texts: list[str]) -> Path:
    lines = "".join(
        json.dumps({"id": index, "text": text}, ensure_ascii=index % 2 == 0) + "\n"
        for index, text in enumerate(texts)
    ).encode()
    if kind == "txt":
        place.mkdir()
        for index in range(0, len(texts), 40):
            (place / f"{index:05}.txt").write_text("\n".join(texts[index : index + 40]))
        return place
    file = place.with_name(f"{place.name}.{kind}")
    if kind == "parquet":
        columns = {"id": list(range(len(texts))), "text": texts}
        pq.write_table(pa.table(columns), file, row_group_size=200)
    else:
        if kind.partition(".")[0] == "json":
            lines = json.dumps([json.loads(line) for line in lines.splitlines()]).encode()
        elif kind.partition(".")[0] in {"csv", "tsv"}:
            stream = io.StringIO()
            writer = csv.writer(stream, delimiter="\t" if kind[0] == "t" else ",")
            writer.writerows([["id", "text"], *enumerate(texts)])
            lines = stream.getvalue().encode()
        file.write_bytes(PACKED[kind](lines))
    return file


@pytest.mark.parametrize("kind", ["parquet", "txt", *PACKED])
@pytest.mark.parametrize("script", SCRIPTS)
@pytest.mark.parametrize("documents", [20, 300])
def test_estimates_are_near_the_count(
    tokenizer: Path, tmp_path: Path, script: str, kind: str, documents: int
) -> None:
    rng = random.Random(2)
    texts = [SCRIPTS[script](rng) for _ in range(documents)]
    file = write(tmp_path / "text", kind, texts)
    estimate = estimate_tokens(DomainSource(name="a", source=str(file)), tokenizer)
    assert estimate == pytest.approx(counted(tokenizer, texts), rel=0.15)


def test_files_of_several_kinds_add_up(tokenizer: Path, tmp_path: Path) -> None:
    rng = random.Random(3)
    texts = {kind: [english(rng) for _ in range(300)] for kind in ("jsonl", "jsonl.gz", "parquet")}
    (tmp_path / "all").mkdir()
    for kind, some in texts.items():
        write(tmp_path / "all/part", kind, some)
    domain = DomainSource(name="a", source=str(tmp_path / "all"))
    count = counted(tokenizer, [text for some in texts.values() for text in some])
    assert estimate_tokens(domain, tokenizer) == pytest.approx(count, rel=0.15)


def test_a_document_of_many_megabytes_counts_in_full(tokenizer: Path, tmp_path: Path) -> None:
    rng = random.Random(4)
    parts = [english(rng) for _ in range(700)]
    file = write(tmp_path / "text", "jsonl", ["\n".join(parts)])
    estimate = estimate_tokens(DomainSource(name="a", source=str(file)), tokenizer)
    assert estimate == pytest.approx(counted(tokenizer, parts), rel=0.15)


@pytest.mark.parametrize("kind", ["json", "csv"])
def test_files_that_are_read_from_their_start_are_near_the_count(
    tokenizer: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    rng = random.Random(8)
    texts = [english(rng) for _ in range(400)]
    file = write(tmp_path / "text", kind, texts)
    monkeypatch.setattr(token_estimate, "_HEAD", 1 << 11)
    monkeypatch.setattr(token_estimate, "_LONGEST_LINE", 1 << 12)
    estimate = estimate_tokens(DomainSource(name="a", source=str(file)), tokenizer)
    assert estimate == pytest.approx(counted(tokenizer, texts), rel=0.25)


@pytest.mark.parametrize("period", [2, 3, 50, 200])
def test_rows_that_alternate_are_near_the_count(
    tokenizer: Path, tmp_path: Path, period: int
) -> None:
    rng = random.Random(9)
    texts = [english(rng) if number % period < period / 2 else "a b" for number in range(3000)]
    file = tmp_path / "text.parquet"
    pq.write_table(pa.table({"text": texts}), file, row_group_size=200)
    estimate = estimate_tokens(DomainSource(name="a", source=str(file)), tokenizer)
    assert estimate == pytest.approx(counted(tokenizer, texts), rel=0.2)


@pytest.mark.parametrize("kind", ["jsonl", "jsonl.gz", "jsonl.zst"])
def test_only_a_little_of_a_large_file_is_read(tmp_path: Path, kind: str) -> None:
    rng = random.Random(5)
    texts = [english(rng) for _ in range(200)] * 20
    file = write(tmp_path / "text", kind, texts)
    loads, seen = json.loads, []

    def noticed(line: bytes) -> object:
        seen.append(len(line))
        return loads(line)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(json, "loads", noticed)
        estimate = estimate_tokens(DomainSource(name="a", source=str(file)))
    assert estimate is not None
    assert sum(seen) < 500_000 < sum(map(len, texts))


def test_without_a_tokenizer_the_script_tells(
    tokenizer: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rng = random.Random(6)
    domains = {}
    for script, make in SCRIPTS.items():
        texts = [make(rng) for _ in range(200)]
        file = write(tmp_path / script, "jsonl", texts)
        domains[script] = DomainSource(name=script, source=str(file)), texts
    guesses = {}
    for script, (domain, texts) in domains.items():
        characters = sum(map(len, texts))
        guesses[script] = (estimate_tokens(domain) or 0) / characters
    assert guesses["chinese"] == pytest.approx(1, rel=0.1)
    assert guesses["english"] == pytest.approx(1 / 4, rel=0.1)
    assert guesses["code"] == pytest.approx(1 / 4, rel=0.1)
    # The same without the library, for a name that is not in the cache, or for a broken file.
    domain, _ = domains["chinese"]
    same = estimate_tokens(domain)
    assert estimate_tokens(domain, "some-org/not-in-the-cache") == same
    (tmp_path / "tokenizer.json").write_text("{")
    assert estimate_tokens(domain, tmp_path) == same
    monkeypatch.setitem(sys.modules, "tokenizers", None)
    token_estimate._load.cache_clear()
    assert estimate_tokens(domain, tokenizer) == same


def test_what_a_sample_does_not_tell_is_left_open(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rng = random.Random(7)
    texts = [english(rng) for _ in range(20)]
    files = {kind: write(tmp_path / "a", kind, texts) for kind in ("jsonl", "jsonl.zst", "parquet")}

    def estimate(kind: str, **fields: object) -> int | None:
        domain = DomainSource(name="a", source=str(files[kind]), **fields)  # type: ignore[arg-type]
        return estimate_tokens(domain)

    assert estimate("jsonl", where={"id": 1}) is None
    assert estimate_tokens(DomainSource(name="a", source="some-org/some-dataset")) is None
    assert estimate("parquet", text_field="body") is None
    files["damaged"] = tmp_path / "b.jsonl.gz"
    files["damaged"].write_bytes(b"no gzip")
    assert estimate("damaged") is None
    for library in ("zstandard", "pyarrow.parquet"):
        monkeypatch.setitem(sys.modules, library, None)
    assert estimate("jsonl.zst") is None
    assert estimate("parquet") is None
