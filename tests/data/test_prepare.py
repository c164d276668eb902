import csv
import gzip
import io
import json
import multiprocessing
import os
import pickle
import shutil

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import zstandard
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from drpruning.common.errors import BadInput
from drpruning.common.files import folder_lock
from drpruning.data import DocumentFormat, DomainSource, PreparedData, TokenBlocks, prepare
from drpruning.data import preparation as preparing
from drpruning.data.readers import RowReader

WORDS = [f"w{number}" for number in range(200)]
EOS = 1


def save_tokenizer(folder, words=WORDS, **names):
    vocab = {"<unk>": 0, "</s>": EOS} | {word: 2 + i for i, word in enumerate(words)}
    tokenizer = Tokenizer(models.WordLevel(vocab, "<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.enable_truncation(5)  # saved with the tokenizer, and not wanted here
    names = {"eos_token": "</s>"} | names
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, **names).save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def tokenizer(tmp_path_factory):
    return save_tokenizer(tmp_path_factory.mktemp("tokenizer"))


def texts(count, first=0):
    """Different texts of 3 to 12 words: each begins with its own number in base 200."""
    rng = np.random.default_rng(first)
    return [
        " ".join([WORDS[i // 200], WORDS[i % 200], *rng.choice(WORDS, rng.integers(1, 11))])
        for i in range(first, first + count)
    ]


def write(file, documents, **fields):
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text("".join(json.dumps({"text": t, **fields}) + "\n" for t in documents))
    return file


def run(tokenizer, folder, *domains, **options):
    options = {
        "vocab_size": None,
        "sequence_length": 16,
        "validation_blocks": 3,
        "workers": 1,
    } | options
    return prepare(domains, tokenizer=tokenizer, folder=folder, **options)


def source(path, name="cc", **fields):
    return DomainSource(name=name, source=str(path), **fields)


def stream_of(blocks):
    return blocks[np.arange(len(blocks))].reshape(-1)


def documents_in(blocks):
    """The texts in a stream of blocks, without the last one, which may be cut."""
    stream = stream_of(blocks)
    parts = np.split(stream, np.flatnonzero(stream == EOS) + 1)
    return [" ".join(WORDS[i - 2] for i in part[:-1]) for part in parts[:-1]]


def test_documents_become_blocks_in_order(tokenizer, tmp_path):
    own, held = texts(100), texts(20, first=500)
    data = run(
        tokenizer,
        tmp_path / "out",
        source(write(tmp_path / "a.jsonl", own), validation=str(write(tmp_path / "v.jsonl", held))),
    )
    expected = []
    for text in own:
        expected += [2 + WORDS.index(word) for word in text.split()] + [EOS]
    domain = data.domains["cc"]
    stream = stream_of(domain.train)
    assert stream.dtype == np.int64
    assert stream.tolist() == expected[: len(stream)]
    assert 0 <= len(expected) - len(stream) < 16
    assert domain.train_tokens == len(stream)
    assert domain.documents == 100
    assert len(domain.validation) == 3
    assert documents_in(domain.validation) == held[: len(documents_in(domain.validation))]


def test_every_token_is_accounted_for(tokenizer, tmp_path):
    documents = [*texts(300), "", "  \n", *texts(3)]  # two empty ones, three repeated
    counts = run(tokenizer, tmp_path / "out", source(write(tmp_path / "a.jsonl", documents)))
    counts = counts.domains["cc"].counts
    assert counts.documents == 303
    assert counts.empty_documents == 2
    assert counts.tokens == sum(len(text.split()) + 1 for text in documents if text.strip())
    assert counts.tokens == 16 * (counts.train_blocks + counts.validation_blocks) + (
        counts.dropped_tokens
    )


def test_text_that_utf8_cannot_express_is_kept_readable(tokenizer, tmp_path):
    documents = ["w1 \ud800 w2", *texts(200)]
    data = run(tokenizer, tmp_path / "out", source(write(tmp_path / "a.jsonl", documents)))
    assert data.domains["cc"].documents == 201


def test_held_out_documents_are_in_no_train_block(tokenizer, tmp_path):
    documents = texts(400)
    data = run(tokenizer, tmp_path / "out", source(write(tmp_path / "a.jsonl", documents * 2)))
    domain = data.domains["cc"]
    assert len(domain.validation) == 3
    # One more text may be cut at the end of the last validation block.
    held_out = set(documents_in(domain.validation))
    assert held_out <= set(documents)
    assert not held_out & set(documents_in(domain.train))
    assert domain.counts.duplicates == domain.counts.validation_documents
    assert len(set(documents_in(domain.train))) >= 400 - domain.counts.validation_documents - 1


def test_text_of_the_validation_source_is_left_out_of_train(tokenizer, tmp_path):
    documents = texts(200)
    train = write(tmp_path / "a.jsonl", documents)
    validation = write(tmp_path / "v.jsonl", documents[50:60])
    data = run(tokenizer, tmp_path / "out", source(train, validation=str(validation)))
    domain = data.domains["cc"]
    assert domain.counts.duplicates == domain.counts.validation_documents > 0
    assert not set(documents_in(domain.validation)) & set(documents_in(domain.train))


def test_validation_is_at_most_a_tenth(tokenizer, tmp_path):
    file = write(tmp_path / "a.jsonl", texts(300))
    data = run(tokenizer, tmp_path / "out", source(file), validation_blocks=10_000)
    domain = data.domains["cc"]
    assert 0.08 < len(domain.validation) * 16 / domain.counts.tokens <= 0.1


def test_held_out_choice_depends_on_seed_and_text_only(tokenizer, tmp_path):
    documents = texts(300)
    whole = source(write(tmp_path / "whole/a.jsonl", documents))
    write(tmp_path / "parts/1.jsonl", documents[200:])
    write(tmp_path / "parts/2.jsonl", documents[:200])

    def validation(domain, name, seed):
        return stream_of(
            run(tokenizer, tmp_path / name, domain, seed=seed).domains["cc"].validation
        )

    first = validation(whole, "x", 0)
    assert (validation(source(tmp_path / "parts"), "y", 0) == first).all()
    assert (validation(whole, "z", 1) != first).any()


def test_long_documents_are_tokenized_in_parts(tokenizer, tmp_path, monkeypatch):
    documents = [" ".join(texts(40)), "\n".join(texts(40, first=100)), *texts(60)]
    own = source(write(tmp_path / "a.jsonl", documents), validation=str(write(
        tmp_path / "v.jsonl", texts(20, first=500))))  # fmt: skip
    whole = run(tokenizer, tmp_path / "whole", own).domains["cc"]
    monkeypatch.setattr("drpruning.data.tokenization._LONGEST_PART", 64)
    in_parts = run(tokenizer, tmp_path / "parts", own).domains["cc"]
    assert in_parts.counts == whole.counts
    assert stream_of(in_parts.train).tolist() == stream_of(whole.train).tolist()


COMPRESSIONS = {"": bytes, ".gz": gzip.compress, ".zst": zstandard.compress}


def separated(rows, delimiter):
    text = io.StringIO()
    writer = csv.DictWriter(text, ["id", "text"], delimiter=delimiter)
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()


def test_every_kind_of_source_gives_the_same_blocks(tokenizer, tmp_path, monkeypatch):
    documents = texts(150)
    rows = [{"text": text, "id": i} for i, text in enumerate(documents)]
    lines = "".join(json.dumps(row) + "\n" for row in rows).encode()
    half = len(b"".join(lines.splitlines(keepends=True)[:80]))
    kinds = tmp_path / "kinds"
    for name in ("folder/sub", "text"):
        (kinds / name).mkdir(parents=True)
    (kinds / "a.jsonl").write_bytes(b"\xef\xbb\xbf" + lines)
    (kinds / "a.jsonl.gz").write_bytes(gzip.compress(lines[:half]) + gzip.compress(lines[half:]))
    frames = [zstandard.compress(part) for part in (lines[:half], lines[half:])]
    (kinds / "a.jsonl.zst").write_bytes(b"".join(frames))
    pq.write_table(pa.Table.from_pylist(rows), kinds / "a.parquet", row_group_size=40)
    for i, text in enumerate(documents):
        (kinds / f"text/{i:03}.txt").write_text(text)
    for ending, compress in COMPRESSIONS.items():
        (kinds / f"lines.json{ending}").write_bytes(compress(lines))
        (kinds / f"array.json{ending}").write_bytes(compress(json.dumps(rows).encode()))
        (kinds / f"indented.JSON{ending}").write_bytes(
            compress(b"\xef\xbb\xbf \n" + json.dumps(rows, indent=2).encode())
        )
        (kinds / f"a.csv{ending}").write_bytes(compress(separated(rows, ",").encode()))
        (kinds / f"a.TSV{ending}").write_bytes(
            compress(b"\xef\xbb\xbf" + separated(rows, "\t").encode())
        )
    (kinds / "packed").mkdir()
    for i, text in enumerate(documents):
        ending = ("", ".gz", ".zst")[i % 3]
        (kinds / f"packed/{i:03}.txt{ending}").write_bytes(COMPRESSIONS[ending](text.encode()))
    (kinds / "folder/1.jsonl").write_bytes(lines[:half])
    (kinds / "folder/sub/2.jsonl.gz").write_bytes(gzip.compress(lines[half:]))
    dataset = datasets.Dataset.from_list(rows)
    dataset.save_to_disk(kinds / "saved")
    datasets.DatasetDict({"train": dataset}).save_to_disk(kinds / "saved-splits")

    def load_dataset(name, config, *, split):
        assert (name, config, split) == ("some-org/some-set", "en", "train")
        return dataset

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    sources = [
        "a.jsonl", "a.jsonl.gz", "a.jsonl.zst", "a.parquet", "text", "text/*.txt", "folder",
        "folder/**/*.jsonl*", "saved", "saved-splits", "packed",
        *(f"{name}{ending}" for ending in COMPRESSIONS for name in (
            "lines.json", "array.json", "indented.JSON", "a.csv", "a.TSV")),
    ]  # fmt: skip
    domains = [source(kinds / name) for name in sources]
    domains.append(source("some-org/some-set", config="en"))
    streams = []
    for i, domain in enumerate(domains):
        data = run(tokenizer, tmp_path / f"out{i}", domain)
        streams.append(stream_of(data.domains["cc"].train).tolist())
        assert data.domains["cc"].documents == 150
        assert len(data.domains["cc"].validation) == 3
    assert all(stream == streams[0] for stream in streams[1:])


def test_domains_of_one_source_are_told_apart_and_read_once(tokenizer, tmp_path, monkeypatch):
    documents = texts(300)
    rows = [
        {"body": {"text": text}, "meta": {"set": "abc"[i % 3]}} for i, text in enumerate(documents)
    ]
    path = tmp_path / "all.parquet"
    pq.write_table(pa.Table.from_pylist(rows), path)
    opened = []
    parquet_rows = RowReader._parquet_rows
    monkeypatch.setattr(
        RowReader,
        "_parquet_rows",
        lambda self, f, raw: opened.append(f) or parquet_rows(self, f, raw),
    )
    data = run(
        tokenizer,
        tmp_path / "out",
        source(path, "a", text_field="body.text", where={"meta.set": "a"}),
        source(path, "bc", text_field="body.text", where={"meta.set": ["b", "c"]}),
        validation_blocks=1,
    )
    assert opened == [path]
    assert [data.domains[name].documents for name in ("a", "bc")] == [100, 200]
    assert set(documents_in(data.domains["a"].train)) <= set(documents[::3])
    assert not set(documents_in(data.domains["bc"].train)) & set(documents[::3])


def test_where_tells_true_from_one_as_json_does(tokenizer, tmp_path):
    values = [True, 1, False, 0, 1.0]
    rows = [{"text": text, "n": values[i % 5]} for i, text in enumerate(texts(500))]
    path = tmp_path / "all.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    data = run(
        tokenizer,
        tmp_path / "out",
        source(path, "true", where={"n": True}),
        source(path, "one", where={"n": 1}),
        source(path, "zero", where={"n": [0]}),
        validation_blocks=1,
    )
    counts = {name: domain.documents for name, domain in data.domains.items()}
    assert counts == {"true": 100, "one": 200, "zero": 100}


def test_ids_beyond_16_bits_are_stored_without_loss(tmp_path):
    words = [f"x{i}" for i in range(70_000)]
    tokenizer = save_tokenizer(tmp_path / "tokenizer", words)
    documents = [" ".join(words[i : i + 7]) for i in range(69_000, 69_900, 7)]
    data = run(tokenizer, tmp_path / "out", source(write(tmp_path / "a.jsonl", documents)))
    blocks = data.domains["cc"].train
    assert blocks.dtype == np.uint32
    assert blocks.file.stat().st_size == len(blocks) * 16 * 4
    assert stream_of(blocks).max() > 69_800
    assert (tmp_path / "out/cc/train.bin").stat().st_size == data.domains["cc"].train_tokens * 4


def test_processes_change_nothing(tokenizer, tmp_path, monkeypatch):
    monkeypatch.setenv("TOKENIZERS_PARALLELISM", "true")
    long = " ".join(texts(300))
    file = write(tmp_path / "a.jsonl", [f"{text} {long}" for text in texts(300)])
    one = run(tokenizer, tmp_path / "one", source(file), workers=1)
    two = run(tokenizer, tmp_path / "two", source(file), workers=2)
    assert (stream_of(one.domains["cc"].train) == stream_of(two.domains["cc"].train)).all()
    assert (tmp_path / "one/manifest.json").read_bytes() == (
        tmp_path / "two/manifest.json"
    ).read_bytes()
    assert os.environ["TOKENIZERS_PARALLELISM"] == "true"
    assert not multiprocessing.active_children()


def test_nothing_but_the_result_is_left(tokenizer, tmp_path):
    calls = []
    run(
        tokenizer,
        tmp_path / "out",
        source(write(tmp_path / "a.jsonl", texts(100))),
        on_progress=lambda *call: calls.append(call),
    )
    left = sorted(str(f.relative_to(tmp_path / "out")) for f in (tmp_path / "out").rglob("*"))
    assert left == [".lock", "cc", "cc/train.bin", "cc/validation.bin", "manifest.json"]
    name, done, total = calls[-1]
    assert name == "cc"
    assert done == total == (tmp_path / "a.jsonl").stat().st_size


def test_prepared_data_is_not_read_again(tokenizer, tmp_path, monkeypatch):
    domain = source(write(tmp_path / "a.jsonl", texts(100)))
    first = run(tokenizer, tmp_path / "out", domain)
    (tmp_path / "a.jsonl").touch()
    shutil.move(tmp_path / "a.jsonl", tmp_path / "elsewhere.jsonl")
    (tmp_path / "moved").mkdir()
    shutil.copy(tmp_path / "elsewhere.jsonl", tmp_path / "moved/a.jsonl")
    monkeypatch.setattr(preparing, "RowReader", None)
    again = run(tokenizer, tmp_path / "out", source(tmp_path / "moved/a.jsonl"))
    assert again.fingerprint == first.fingerprint == PreparedData.open(tmp_path / "out").fingerprint
    assert again.summary() == first.summary()
    assert again.summary()[0]["domain"] == "cc"


def test_interrupted_preparation_is_resumed_with_the_rest(tokenizer, tmp_path, monkeypatch):
    domains = [
        source(write(tmp_path / f"{name}.jsonl", texts(100, first)), name)
        for name, first in (("a", 0), ("b", 1000), ("c", 2000))
    ]
    reference = run(tokenizer, tmp_path / "reference", *domains)
    read = []
    file_rows = RowReader._file_rows

    def interrupted_in_b(self, file):
        read.append(file.stem)
        for i, row in enumerate(file_rows(self, file)):
            if file.stem == "b" and i == 50 and read.count("b") == 1:
                raise KeyboardInterrupt
            yield row

    monkeypatch.setattr(RowReader, "_file_rows", interrupted_in_b)
    with pytest.raises(KeyboardInterrupt):
        run(tokenizer, tmp_path / "out", *domains)
    with pytest.raises(BadInput, match=r"not complete \(b, c missing\)"):
        PreparedData.open(tmp_path / "out")
    data = run(tokenizer, tmp_path / "out", *domains)
    assert read == ["a", "b", "b", "c"]
    assert data.fingerprint == reference.fingerprint
    for name in "abc":
        for part in ("train", "validation"):
            file = f"{name}/{part}.bin"
            assert (tmp_path / "out" / file).read_bytes() == (
                tmp_path / "reference" / file
            ).read_bytes()


@pytest.fixture
def opened(monkeypatch):
    """The names of the files that are read, in order."""
    names, file_rows = [], RowReader._file_rows
    monkeypatch.setattr(
        RowReader, "_file_rows", lambda self, file: names.append(file.name) or file_rows(self, file)
    )
    return names


def test_failed_preparation_is_resumed_with_a_corrected_recipe(tokenizer, tmp_path, opened):
    good = source(write(tmp_path / "a.jsonl", texts(100)), "a")
    path = write(tmp_path / "b.jsonl", texts(100, first=1000))
    with pytest.raises(BadInput, match="no field 'body'"):
        run(tokenizer, tmp_path / "out", source(path, "b", text_field="body"), good)
    with pytest.raises(BadInput, match="no field 'body'"):
        run(tokenizer, tmp_path / "out", good, source(path, "b", text_field="body"))
    for other, named in (
        ({"seed": 1}, "seed"),
        ({"document_format": DocumentFormat(special_tokens="parse")}, "special_tokens"),
        ({"document_format": DocumentFormat(eos="never")}, "eos_id"),
    ):
        with pytest.raises(BadInput, match=named):
            run(tokenizer, tmp_path / "out", good, source(path, "b"), **other)
    opened.clear()
    assert list(run(tokenizer, tmp_path / "out", good, source(path, "b")).domains) == ["a", "b"]
    assert opened == ["b.jsonl"]


def test_too_little_text_costs_only_its_own_domain(tokenizer, tmp_path, opened):
    good = source(write(tmp_path / "a.jsonl", texts(100)), "a")
    own = source(write(tmp_path / "o.jsonl", texts(50, first=700)), "own", validation=str(
        write(tmp_path / "v.jsonl", texts(20, first=500))))  # fmt: skip
    path = write(tmp_path / "b.jsonl", texts(3, first=1000))
    out = tmp_path / "out"
    with pytest.raises(
        BadInput, match=r"domains\.b: no complete documents .* lower data\.sequence"
    ):
        run(tokenizer, out, good, own, source(path, "b"), sequence_length=24)
    assert sorted(f.name for f in out.iterdir()) == [".cache", ".lock", "manifest.json"]
    write(path, texts(60, first=1000))
    opened.clear()
    data = run(tokenizer, out, good, own, source(path, "b"), sequence_length=24)
    assert opened == ["b.jsonl"]
    assert list(data.domains) == ["a", "own", "b"]
    reference = run(tokenizer, tmp_path / "other", good, own, source(path, "b"), sequence_length=24)
    assert data.summary() == reference.summary()


def test_another_block_length_reads_only_validation_sources_again(tokenizer, tmp_path, opened):
    good = source(write(tmp_path / "a.jsonl", texts(100)), "a")
    own = source(write(tmp_path / "o.jsonl", texts(50, first=700)), "own", validation=str(
        write(tmp_path / "v.jsonl", texts(60, first=500))))  # fmt: skip
    short = source(write(tmp_path / "b.jsonl", texts(25, first=1000)), "b")
    with pytest.raises(BadInput, match=r"domains\.b: no complete documents"):
        run(tokenizer, tmp_path / "out", good, own, short, sequence_length=64)
    opened.clear()
    data = run(tokenizer, tmp_path / "out", good, own, short, sequence_length=8)
    assert opened == ["o.jsonl", "v.jsonl", "b.jsonl"]
    reference = run(tokenizer, tmp_path / "other", good, own, short, sequence_length=8)
    assert data.summary() == reference.summary()


def test_tokens_that_are_damaged_before_they_are_packed_are_named(tokenizer, tmp_path):
    good = source(write(tmp_path / "a.jsonl", texts(100)), "a")
    short = write(tmp_path / "b.jsonl", texts(3, first=1000))
    with pytest.raises(BadInput, match="no complete documents"):
        run(tokenizer, tmp_path / "out", good, source(short, "b"))
    cached = tmp_path / "out/.cache/a/source"
    cached.write_bytes(cached.read_bytes()[:-2])
    write(short, texts(100, first=1000))
    with pytest.raises(
        BadInput, match=r"unfinished data in .* is damaged .*; delete .*out and prep"
    ):
        run(tokenizer, tmp_path / "out", good, source(short, "b"))


def test_other_data_in_the_folder_is_refused_and_the_difference_named(tokenizer, tmp_path):
    file = write(tmp_path / "a.jsonl", texts(100))
    run(tokenizer, tmp_path / "out", source(file))
    other = save_tokenizer(tmp_path / "other", [*WORDS, "more"])

    def refused(message, *domains, tokenizer=tokenizer, **options):
        with pytest.raises(BadInput, match=message) as caught:
            run(tokenizer, tmp_path / "out", *domains, **options)
        assert "data.prepared" in str(caught.value)

    refused("differs: the tokenizer. Give", source(file), tokenizer=other)
    refused(r"sequence_length \(saved 16, now 8\)\. Give", source(file), sequence_length=8)
    refused(r"seed \(saved 0, now 1\); domain c4 \(new\)", source(file),
            source(write(tmp_path / "b.jsonl", texts(9)), "c4"), seed=1)  # fmt: skip
    refused("the where of domain cc", source(file, where={"text": "x"}))
    write(file, [*texts(99), "w1 w2"])
    refused("differs: the source of domain cc. Give", source(file))
    (tmp_path / "full").mkdir()
    (tmp_path / "full/letter.doc").touch()
    with pytest.raises(BadInput, match="not empty and holds no prepared data"):
        run(tokenizer, tmp_path / "full", source(file))
    own = tmp_path / "home" / ".cache" / "other" / "file"
    own.parent.mkdir(parents=True)
    own.touch()
    with pytest.raises(BadInput, match="not empty and holds no prepared data"):
        run(tokenizer, tmp_path / "home", source(file))
    assert own.exists()


def test_a_change_anywhere_in_a_large_file_shows(tokenizer, tmp_path):
    file = write(tmp_path / "a.jsonl", texts(4000))
    first = run(tokenizer, tmp_path / "out", source(file)).fingerprint
    content = file.read_bytes()
    for place in (5, len(content) // 2, len(content) - 9):
        changed = bytearray(content)
        changed[place] ^= 1
        file.write_bytes(changed)
        with pytest.raises(BadInput, match="the source of domain cc"):
            run(tokenizer, tmp_path / "out", source(file))
    file.write_bytes(content)
    assert run(tokenizer, tmp_path / "out", source(file)).fingerprint == first


@pytest.mark.parametrize("damage", ["manifest", "version", "cut", "missing", "none"])
def test_damaged_data_is_refused(tokenizer, tmp_path, damage):
    out = tmp_path / "out"
    run(tokenizer, out, source(write(tmp_path / "a.jsonl", texts(100))))
    manifest, blocks = out / "manifest.json", out / "cc/train.bin"
    if damage == "manifest":
        manifest.write_text("{")
    elif damage == "version":
        manifest.write_text(manifest.read_text().replace('"version": 3', '"version": 2'))
    elif damage == "cut":
        blocks.write_bytes(blocks.read_bytes()[:-32])
    elif damage == "missing":
        blocks.unlink()
    else:
        shutil.rmtree(out)
    message = "run `drprune prepare`" if damage == "none" else "prepare again"
    with pytest.raises(BadInput, match=message):
        PreparedData.open(out)


def test_blocks_travel_to_other_processes_by_name(tokenizer, tmp_path):
    data = run(tokenizer, tmp_path / "out", source(write(tmp_path / "a.jsonl", texts(100))))
    blocks = data.domains["cc"].train
    ids = np.array([3, 0, 3])
    rows = blocks[ids]
    assert rows.shape == (3, 16)
    assert (rows[0] == rows[2]).all()
    travelled = pickle.dumps(blocks)
    assert len(travelled) < 1000
    assert (pickle.loads(travelled)[ids] == rows).all()  # noqa: S301


GOOD = b'{"text": "w1"}\n' * 300


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.jsonl", GOOD + b'{"text": \n', r"a\.jsonl:301: not valid JSON"),
        ("a.jsonl", GOOD + b"[1]\n", r"a\.jsonl:301: each line must be a JSON object"),
        ("a.jsonl", GOOD + b'{"text": "\xff"}\n', r"a\.jsonl:301: not valid UTF-8 at byte 10"),
        ("a.jsonl", GOOD + b'{"body": "x", "id": 3}\n', r":301 has no field 'text'; .* body, id"),
        ("a.jsonl", GOOD + b'{"text": 3}\n', r"cc\.text_field: .*:301 has 3 in 'text'"),
        ("a.jsonl", b'{"text": " "}\n{"text": null}\n', "all 2 documents are empty"),
        ("a.jsonl", b"\n\n", "there is no document"),
        ("a.jsonl", b'{"text": "w1 w2"}\n', "fill one validation block of 16; give .*validation"),
        ("a.jsonl.gz", gzip.compress(GOOD, mtime=0)[:-9], r"a\.jsonl\.gz cannot be read"),
        ("a.jsonl.gz", GOOD, r"a\.jsonl\.gz cannot be read"),
        ("a.jsonl.zst", zstandard.compress(GOOD)[:-9], r"a\.jsonl\.zst cannot be read"),
        ("a.jsonl.zst", GOOD, r"a\.jsonl\.zst cannot be read"),
        ("a.parquet", GOOD, r"a\.parquet is not a parquet file"),
        ("a.txt", b"w1 \xff", r"a\.txt: not valid UTF-8 at byte 3"),
        ("a.txt.gz", gzip.compress(b"w1 w2", mtime=0)[:-3], r"a\.txt\.gz cannot be read"),
        ("a.json", b'[{"text": "w1"}, {"text": "w2"}', r"a\.json:2: .*the array ends early"),
        ("a.json", b'[{"text": "w1"}, {"text": "w', r"a\.json:2: not valid JSON: Unterminated"),
        ("a.json", b'[{"text": "w1"},', r"a\.json:1: .*the array ends early"),
        ("a.json", b'[{"text": "w1"},]', r"a\.json:2: .*an object is expected"),
        ("a.json", b'[{"text": "w1"} {"text": "w2"}]', r"a\.json:1: .*without a comma"),
        ("a.json", b'[{"text": "w1"}] {"text": "w2"}', r"a\.json:1: .*more after the end"),
        ("a.json", b'[{"text": "w1"}, 3]', r"a\.json:2: .*object is expected; write an array"),
        ("a.json", b'"text"', r"a\.json:1: .*object is expected; write an array of objects"),
        ("a.json", b'[{"text": "w1" "id": 3}]', r"a\.json:1: not valid JSON: Expecting ','"),
        ("a.json", b"[" + GOOD.replace(b"\n", b",") + b'{"text": "\xff"}]', r"not valid UTF-8"),
        ("a.json", b'[{"text": ' + b"[" * 200_000, r"a\.json:1: .*nested too deeply"),
        ("a.json", b'[{"body": "w1"}]', r"a\.json:1 has no field 'text'; its fields are body"),
        ("a.json", b" []", "there is no document"),
        ("a.csv", b'id,text\n1,"w1\n2,w2\n', r"a\.csv:3: not valid CSV: unexpected end of data"),
        ("a.csv", b'id,text\n1,"w1"w2\n', r"a\.csv:2: not valid CSV: .*expected after"),
        ("a.csv", b"id,text\n1,w1\n2,w2,w3\n", r"a\.csv:3: 3 fields, where the header has 2"),
        ("a.csv", b"id,text\n1,w1\n2\n", r"a\.csv:3: 1 fields, where the header has 2; put"),
        ("a.csv", b"text,text\n1,w1\n", r"a\.csv: several columns have one name"),
        ("a.csv", b"id,body\n1,w1\n", r"a\.csv:2 has no field 'text'; its fields are id, body"),
        ("a.csv", b"id,text\n1,w1\n2,\xff\n", r"a\.csv:\d: .*not valid UTF-8"),
        ("a.csv", b"id,text\n", "there is no document"),
        ("a.tsv", b"id\ttext\n1\tw1\tw2\n", r"a\.tsv:2: 3 fields, where the header has 2"),
        ("a.csv.zst", zstandard.compress(b"id,text\n1,w1\n")[:-3], r"csv\.zst cannot be read"),
    ],
)
def test_broken_text_is_named(tokenizer, tmp_path, name, content, message):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(BadInput, match=message):
        run(tokenizer, tmp_path / "out", source(tmp_path / name))


def test_missing_columns_and_unknown_values_are_named(tokenizer, tmp_path):
    path = tmp_path / "a.parquet"
    pq.write_table(pa.table({"body": texts(50), "set": ["x", "y"] * 25}), path)
    with pytest.raises(BadInput, match=r"a\.parquet has no field 'text'; its fields are body, set"):
        run(tokenizer, tmp_path / "1", source(path))
    wrong = source(path, text_field="body", where={"set": "z"})
    with pytest.raises(BadInput, match="there are set = 'x', set = 'y'"):
        run(tokenizer, tmp_path / "2", wrong)


def test_a_dataset_that_cannot_be_loaded_is_named(tokenizer, tmp_path, monkeypatch):
    def load_dataset(name, config, *, split):
        raise FileNotFoundError(f"Dataset {name!r} doesn't exist ({config}, {split})")

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    with pytest.raises(BadInput, match=r"cc\.source: no/such is no file or folder here"):
        run(tokenizer, tmp_path / "1", source("no/such"))
    saved = datasets.DatasetDict({"train": datasets.Dataset.from_dict({"text": texts(9)})})
    saved.save_to_disk(tmp_path / "saved")
    with pytest.raises(BadInput, match="split test"):
        run(tokenizer, tmp_path / "2", source(tmp_path / "saved", split="test"))


def test_too_little_text_is_named(tokenizer, tmp_path):
    train = write(tmp_path / "a.jsonl", texts(2))
    enough, little = (str(write(tmp_path / f"v{n}.jsonl", texts(n, first=50))) for n in (30, 1))
    with pytest.raises(BadInput, match=r"cc: \d+ tokens are left .* block of 64"):
        run(tokenizer, tmp_path / "1", source(train, validation=enough), sequence_length=64)
    with pytest.raises(BadInput, match=r"cc\.validation: its text does not fill one block of 64"):
        run(tokenizer, tmp_path / "2", source(train, validation=little), sequence_length=64)


def test_only_one_process_prepares_in_a_folder(tokenizer, tmp_path):
    domain, out = source(write(tmp_path / "a.jsonl", texts(100))), tmp_path / "out"
    out.mkdir()
    with (
        folder_lock(out, "mine"),
        pytest.raises(BadInput, match=r"data\.prepared: another process is preparing data in"),
    ):
        run(tokenizer, out, domain)
    run(tokenizer, out, domain)
    with folder_lock(out, "mine"):  # what is complete, anyone may use
        run(tokenizer, out, domain)


def test_bad_settings_are_named(tokenizer, tmp_path):
    domain = source(write(tmp_path / "a.jsonl", texts(100)))
    out = tmp_path / "out"
    with pytest.raises(BadInput, match=r"sequence_length must be at least 2, got 1"):
        run(tokenizer, out, domain, sequence_length=1)
    with pytest.raises(BadInput, match=r"validation_blocks must be at least 1, got 0"):
        run(tokenizer, out, domain, validation_blocks=0)
    with pytest.raises(
        BadInput, match=r"fit the model: .* is 201, for .* has 200 entries .* in model\.tokenizer"
    ):
        run(tokenizer, out, domain, vocab_size=200)
    with pytest.raises(BadInput, match="no end-of-sequence token"):
        run(save_tokenizer(tmp_path / "bare", eos_token=None), out, domain)
    with pytest.raises(BadInput, match="nowhere cannot be loaded"):
        run(tmp_path / "nowhere", out, domain)
    assert not out.exists()


@pytest.mark.parametrize("surplus", [-1, 1, 31])
def test_blocks_that_are_not_whole_are_refused(surplus, tmp_path):
    file = tmp_path / "train.bin"
    file.write_bytes(bytes(3 * 16 * 2 + surplus))
    with pytest.raises(BadInput, match="cut off"):
        TokenBlocks(file, 16, "uint16")
    file.write_bytes(bytes(3 * 16 * 2))
    assert len(TokenBlocks(file, 16, "uint16")) == 3
