"""Tokens per second of `prepare` against the tokenizer's own batch encoding of the same text.

Both use all processors. They take turns in one run, so that a busy machine slows both. The
tokenizer's side has the text in memory and keeps its encodings as they are; `prepare` reads files,
encodes, packs and writes blocks.

    python benchmarks/prepare_speed.py TEXT_FOLDER TOKENIZER_FOLDER [--megabytes 16] [--rounds 3]
"""

import argparse
import json
import os
import statistics
import tempfile
import time
from pathlib import Path

from tokenizers import Tokenizer

from drpruning.data import DocumentFormat, DomainSource, PreparedData, prepare


def read_texts(folder: Path, field: str, limit: int) -> list[str]:
    """Documents of all .jsonl files of a folder, up to about `limit` bytes from each in turn."""
    files = sorted(folder.rglob("*.jsonl"))
    if not files:
        raise SystemExit(f"no .jsonl file in {folder}")
    texts = []
    for file in files:
        size = 0
        with file.open(encoding="utf-8") as lines:
            for line in lines:
                texts.append(json.loads(line)[field])
                size += len(line)
                if size > limit / len(files):
                    break
    return texts


def time_batch_encoding(tokenizer: Tokenizer, texts: list[str]) -> tuple[float, int]:
    os.environ["TOKENIZERS_PARALLELISM"] = "true"
    start = time.perf_counter()
    encodings = tokenizer.encode_batch(texts, add_special_tokens=False)
    seconds = time.perf_counter() - start
    return seconds, sum(map(len, encodings))


def time_prepare(source: Path, tokenizer: Path, folder: Path) -> tuple[float, PreparedData]:
    domain = DomainSource(name="text", source=str(source))
    start = time.perf_counter()
    data = prepare(
        [domain],
        tokenizer=tokenizer,
        document_format=DocumentFormat(bos="never", eos="always"),
        vocab_size=None,
        sequence_length=512,
        validation_blocks=8,
        folder=folder,
    )
    return time.perf_counter() - start, data


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("texts", type=Path, help="folder with .jsonl files")
    parser.add_argument("tokenizer", type=Path, help="folder with tokenizer.json")
    parser.add_argument("--text-field", default="text")
    parser.add_argument("--megabytes", type=float, default=16.0, help="how much text")
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()

    texts = read_texts(options.texts, options.text_field, int(options.megabytes * 1e6))
    tokenizer = Tokenizer.from_file(str(options.tokenizer / "tokenizer.json"))
    tokenizer.encode_special_tokens = True
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        source = folder / "text.jsonl"
        source.write_text(
            "".join(json.dumps({"text": text}) + "\n" for text in texts), encoding="utf-8"
        )
        time_prepare(source, options.tokenizer, folder / "warm-up")
        own, ours = [], []
        for number in range(options.rounds):
            seconds, tokens = time_batch_encoding(tokenizer, texts)
            own.append(tokens / seconds)
            seconds, data = time_prepare(source, options.tokenizer, folder / str(number))
            counts = data.domains["text"].counts
            if counts.tokens - counts.documents - counts.empty_documents > tokens:
                raise SystemExit("prepare found more tokens than the tokenizer")
            ours.append((counts.tokens - counts.documents) / seconds)
    ratios = [a / b for a, b in zip(ours, own, strict=True)]
    print(
        json.dumps(
            {
                "processors": os.cpu_count(),
                "documents": len(texts),
                "tokens": tokens,
                "tokens_per_second": {
                    "prepare": round(statistics.median(ours)),
                    "encode_batch": round(statistics.median(own)),
                },
                "ratio": round(statistics.median(ratios), 3),
                "ratios": [round(ratio, 3) for ratio in ratios],
            },
            indent=1,
        )
    )


if __name__ == "__main__":
    main()
