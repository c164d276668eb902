"""Small tokenizers of every kind that causal language models have, as folders to load."""

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from tokenizers import (
    AddedToken,
    Tokenizer,
    decoders,
    models,
    normalizers,
    pre_tokenizers,
    processors,
    trainers,
)

SPECIAL = ["<unk>", "<s>", "</s>", "<pad>"]
TEXTS = [
    "the cat sat on the mat and the dog sat on the cat",
    "one two three four five six seven eight nine ten",
    "def f(x): return x + 1  # <b> bold </b> and [list] | pipes | s/a/b",
] * 20
ASCII = [chr(code) for code in range(32, 127)]


def byte_level_bpe() -> Tokenizer:
    """As GPT-2, GPT-NeoX, Llama 3 and Qwen have."""
    core = Tokenizer(models.BPE())
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=400, special_tokens=SPECIAL, initial_alphabet=alphabet, show_progress=False
    )
    core.train_from_iterator(TEXTS, trainer)
    return core


def byte_fallback_bpe() -> Tokenizer:
    """As Llama 2, Mistral and Gemma have: SentencePiece's BPE, with merges to and from `</s>`."""
    core = Tokenizer(models.BPE(unk_token="<unk>", fuse_unk=True, byte_fallback=True))
    core.normalizer = normalizers.Sequence(
        [normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")]
    )
    core.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(),
         decoders.Strip(" ", 1, 0)]
    )  # fmt: skip
    pieces = [f"<0x{byte:02X}>" for byte in range(256)]
    trainer = trainers.BpeTrainer(
        vocab_size=700, special_tokens=[*SPECIAL, *pieces], initial_alphabet=ASCII,
        show_progress=False,
    )  # fmt: skip
    core.train_from_iterator(TEXTS, trainer)
    content = json.loads(core.to_str())
    content["added_tokens"] = content["added_tokens"][: len(SPECIAL)]
    vocabulary, merges = content["model"]["vocab"], content["model"]["merges"]
    for left, right in (("s", ">"), ("<", "/"), ("</", "s>"), ("<", "s>"), ("</s>", "!")):
        vocabulary.setdefault(left + right, len(vocabulary))
        merges.insert(0, [left, right])
    merges.sort(key=lambda pair: len("".join(pair)) > 2)  # parts before what is made of them
    return Tokenizer.from_str(json.dumps(content))


def unigram() -> Tokenizer:
    """As SentencePiece's own default: any entry of the vocabulary that fits is taken."""
    core = Tokenizer(models.Unigram())
    core.pre_tokenizer = pre_tokenizers.Metaspace()
    core.decoder = decoders.Metaspace()
    trainer = trainers.UnigramTrainer(
        vocab_size=300, special_tokens=SPECIAL, unk_token="<unk>", initial_alphabet=ASCII,
        show_progress=False,
    )  # fmt: skip
    core.train_from_iterator(TEXTS, trainer)
    return core


def word_piece() -> Tokenizer:
    """As BERT has, cut at spaces alone, so that a special token is a word like any other."""
    core = Tokenizer(models.WordPiece(unk_token="<unk>"))
    core.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    core.decoder = decoders.WordPiece(prefix="##", cleanup=False)
    trainer = trainers.WordPieceTrainer(
        vocab_size=500, special_tokens=SPECIAL, show_progress=False,
        initial_alphabet=[*ASCII, *(f"##{letter}" for letter in ASCII)],
    )  # fmt: skip
    core.train_from_iterator(TEXTS, trainer)
    content = json.loads(core.to_str())
    vocabulary = content["model"]["vocab"]
    for letter in ASCII:
        vocabulary.setdefault(f"##{letter}", len(vocabulary))
    return Tokenizer.from_str(json.dumps(content))


def word_level() -> Tokenizer:
    """Whole words; what is not among them is unknown."""
    core = Tokenizer(models.WordLevel(unk_token="<unk>"))
    core.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    trainer = trainers.WordLevelTrainer(special_tokens=SPECIAL, show_progress=False)
    core.train_from_iterator(TEXTS, trainer)
    return core


KINDS: dict[str, Callable[[], Tokenizer]] = {
    made.__name__: made
    for made in (byte_level_bpe, byte_fallback_bpe, unigram, word_piece, word_level)
}


def template(first: Sequence[str] = (), last: Sequence[str] = ()) -> processors.PostProcessor:
    """A post-processor that puts special tokens before and after a text."""
    single = " ".join([*first, "$A", *last])
    tokens = [(token, SPECIAL.index(token)) for token in (*first, *last)]
    return processors.TemplateProcessing(single=single, special_tokens=tokens)


def save(core: Tokenizer, folder: Path, **config: Any) -> Path:
    """Write tokenizer.json and tokenizer_config.json, without what Transformers would add."""
    folder.mkdir(parents=True, exist_ok=True)
    core.save(str(folder / "tokenizer.json"))
    config = {"tokenizer_class": "PreTrainedTokenizerFast"} | config
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    return folder


def with_added(core: Tokenizer, *, special: bool, tokens: Sequence[str]) -> Tokenizer:
    """The tokenizer with further tokens."""
    core.add_tokens([AddedToken(token, special=special, normalized=False) for token in tokens])
    return core
