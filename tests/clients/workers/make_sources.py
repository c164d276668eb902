"""Write a source model of every family as people publish them: by Transformers 4.

Usage: python make_sources.py FOLDER. Each model gets `logits.npy`, what Transformers 4 computes for
the ids in FOLDER/ids.json.
"""

import io
import json
import pydoc_data.topics
import sys
from pathlib import Path

import numpy as np
import sentencepiece
import torch
import transformers
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

VOCABULARY = 512
COMMON = {
    "vocab_size": VOCABULARY, "hidden_size": 512, "intermediate_size": 512,
    "num_hidden_layers": 4, "num_attention_heads": 8, "num_key_value_heads": 4,
    "max_position_embeddings": 128, "initializer_range": 0.06, "tie_word_embeddings": False,
}  # fmt: skip
LLAMA3 = {
    "rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
    "original_max_position_embeddings": 32,
}  # fmt: skip
LONGROPE = {
    "type": "longrope",
    "short_factor": [1.0 + 0.02 * i for i in range(32)],
    "long_factor": [1.5 + 0.25 * i for i in range(32)],
}
SOURCES = {
    "llama": ("Llama", {"rope_theta": 5e5}),
    "llama3": ("Llama", {"rope_theta": 5e5, "rope_scaling": LLAMA3}),
    "mistral": ("Mistral", {"rope_theta": 1e6, "head_dim": 64, "sliding_window": None}),
    "qwen2": ("Qwen2", {"rope_theta": 1e6, "tie_word_embeddings": True}),
    "qwen3": ("Qwen3", {"rope_theta": 1e6, "head_dim": 64}),
    "gemma2": (
        "Gemma2",
        {"head_dim": 64, "query_pre_attn_scalar": 64, "sliding_window": 16,
         "tie_word_embeddings": True},
    ),
    "olmo2": ("Olmo2", {"rope_theta": 5e5}),
    "phi3": ("Phi3", {"sliding_window": 64}),
    "phi3-longrope": (
        "Phi3",
        {"rope_scaling": LONGROPE, "original_max_position_embeddings": 32, "sliding_window": 64},
    ),
    "gpt_neox": ("GPTNeoX", {"rotary_pct": 0.5}),
}  # fmt: skip
SENTENCE_PIECES = {"llama", "llama3", "mistral", "gemma2", "phi3", "phi3-longrope"}


def write_model(folder: Path, name: str, ids: list[int]) -> None:
    family, settings = SOURCES[name]
    pieces = name in SENTENCE_PIECES
    ends = (
        {"bos_token_id": 1, "eos_token_id": 2} if pieces else {"bos_token_id": 0, "eos_token_id": 0}
    )
    values = COMMON | ends | {"pad_token_id": None} | settings
    if name == "gpt_neox":
        del values["num_key_value_heads"]
    torch.manual_seed(0)
    config = getattr(transformers, f"{family}Config")(**values)
    config._attn_implementation = "eager"  # another would leave out Gemma 2's soft caps
    model = getattr(transformers, f"{family}ForCausalLM")(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim == 1:
                parameter.add_(0.1 * torch.randn_like(parameter))
        logits = model(torch.tensor([ids])).logits[0]
    model.save_pretrained(folder)
    np.save(folder / "logits.npy", logits.double().numpy())


def write_sentence_pieces(folder: Path, text: str) -> None:
    """A tokenizer as Llama 2 and Gemma have it: tokenizer.model, tokenizer.json, a BOS first."""
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(text.splitlines()), model_writer=model, vocab_size=VOCABULARY,
        model_type="bpe", byte_fallback=True, unk_id=0, bos_id=1, eos_id=2, pad_id=-1,
        max_sentence_length=10**6, minloglevel=2,
    )  # fmt: skip
    (folder / "tokenizer.model").write_bytes(model.getvalue())
    settings = {
        "add_bos_token": True, "add_eos_token": False, "legacy": False, "bos_token": "<s>",
        "eos_token": "</s>", "unk_token": "<unk>", "tokenizer_class": "LlamaTokenizer",
    }  # fmt: skip
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    fast = transformers.LlamaTokenizerFast.from_pretrained(folder)
    fast.backend_tokenizer.save(str(folder / "tokenizer.json"))


def write_byte_pairs(folder: Path, text: str) -> None:
    """A tokenizer as GPT-NeoX and Qwen have it: bytes, no BOS, one end-of-text token."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY - 8, special_tokens=["<|endoftext|>", "<|im_start|>", "<|im_end|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False,
    )  # fmt: skip
    tokenizer.train_from_iterator(text.splitlines(), trainer)
    fast = transformers.PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, eos_token="<|endoftext|>", bos_token="<|endoftext|>",
        unk_token="<|endoftext|>",
        additional_special_tokens=["<|im_start|>", "<|im_end|>"],
    )  # fmt: skip
    fast.save_pretrained(folder)


def main() -> None:
    transformers.utils.logging.set_verbosity_error()
    folder = Path(sys.argv[1])
    ids = json.loads((folder / "ids.json").read_text())
    text = "\n".join(pydoc_data.topics.topics.values())
    for name in SOURCES:
        (folder / name).mkdir()
        (write_sentence_pieces if name in SENTENCE_PIECES else write_byte_pairs)(
            folder / name, text
        )
        write_model(folder / name, name, ids)


if __name__ == "__main__":
    main()
