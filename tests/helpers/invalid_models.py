"""The table of models and tokenizers as people have them that are refused, with the remedy."""

import json
import shutil
from typing import Any

from helpers.damaged_places import Place, Row, both, config, field, file
from helpers.invalid_inputs import removed, renamed

WEIGHTS = "model/model.safetensors"


def tied_reference(place: Place) -> None:
    """A copy of the model as the reference model, tied by its config.json alone."""
    shutil.copytree(place / "model", place / "large")
    content = json.loads((place / "large/config.json").read_text())
    place.write("large/config.json", json.dumps(content | {"tie_word_embeddings": True}))
    field("scheduling.reference_loss", {"from_model": "large"})(place)


def full_vocabulary(**special: Any) -> Any:
    """A tokenizer with a token for each of the model's 32 entries."""
    vocab = {"</s>": 0} | {f"w{index}": index for index in range(1, 32)}
    return both(
        file("model/tokenizer.json", json.dumps({"model": {"vocab": vocab}})),
        file("model/tokenizer_config.json", json.dumps({"eos_token": "</s>"})),
        file("model/special_tokens_map.json", json.dumps(special)),
    )


FORMATS = [
    Row("pickled-weights", renamed(WEIGHTS, "model/pytorch_model.bin"),
        ("model.source: model has no safetensors weights", "pickles of PyTorch",
         "(pytorch_model.bin)", "from_pretrained('model').save_pretrained(NEW_FOLDER)")),
    Row("pickled-shards", both(
        removed(WEIGHTS), file("model/pytorch_model.bin.index.json", "{}"),
    ), ("model.source", "pickles of PyTorch", "(pytorch_model.bin.index.json)")),
    Row("pickled-checkpoint", renamed(WEIGHTS, "model/model.pt"),
        ("model.source", "pickles of PyTorch", "(model.pt)")),
    Row("weights-of-meta", renamed(WEIGHTS, "model/consolidated.00.pth"),
        ("model.source", "own format of Meta", "convert_llama_weights_to_hf.py")),
    Row("weights-of-mistral", both(
        removed("model/config.json"), renamed(WEIGHTS, "model/consolidated.safetensors"),
    ), ("model.source", "or Mistral (consolidated.safetensors)", "Transformers' format")),
    Row("weights-of-tensorflow", renamed(WEIGHTS, "model/tf_model.h5"),
        ("model.source", "TensorFlow", "Transformers 4", "from_tf=True")),
    Row("weights-of-flax", renamed(WEIGHTS, "model/flax_model.msgpack"),
        ("model.source", "Flax", "Transformers 4", "from_flax=True")),
    Row("weights-as-gguf", renamed(WEIGHTS, "model/q4.gguf"),
        ("model.source", "GGUF files of llama.cpp (q4.gguf)", "that they were made from")),
    Row("gguf-alone", both(field("model.source", "quantized"), file("quantized/q4.gguf", "GGUF")),
        ("model.source: quantized has no", "GGUF files", "that they were made from")),
    Row("gguf-file", both(field("model.source", "q4.gguf"), file("q4.gguf", "GGUF")),
        ("model.source: q4.gguf has no", "GGUF files", "that they were made from")),
    Row("model-is-a-weight-file", field("model.source", WEIGHTS),
        ("model.source", "model.safetensors is a file", "give the folder")),
    Row("adapter-alone", both(
        removed("model/config.json"), file("model/adapter_config.json", "{}"),
    ), ("model.source: model is an adapter", "merge_and_unload()")),
    Row("quantized-by-a-method", config(quantization_config={"quant_method": "awq", "bits": 4}),
        ("model.source", "quantization_config (awq)", "plain weights")),
    Row("quantized-by-mlx", config(quantization={"bits": 4}, quantization_config={"bits": 4}),
        ("model.source", "quantization of MLX", "mlx_lm.convert --dequantize")),
    Row("index-without-metadata", both(
        renamed(WEIGHTS, "model/a.safetensors"),
        file("model/model.safetensors.index.json", '{"weight_map": {"a": "a.safetensors"}}'),
    ), ("model.source", "index.json has no metadata", 'add "metadata": {}')),
    Row("index-with-null-metadata", both(
        renamed(WEIGHTS, "model/a.safetensors"),
        file("model/model.safetensors.index.json",
             '{"metadata": null, "weight_map": {"a": "a.safetensors"}}'),
    ), ("model.source", "index.json has no metadata")),
    Row("tied-with-another-output-matrix", config(tie_word_embeddings=True),
        ("model.source: model has lm_head.weight", "set tie_word_embeddings to false",
         "take lm_head.weight out")),
    Row("tied-reference-with-another-output-matrix", tied_reference,
        ("scheduling.reference_loss: large has lm_head.weight", "tie_word_embeddings")),
]  # fmt: skip

VALUES = [
    Row("config-type-of-weights", config(dtype="float33"),
        ("model.source: model: the config's dtype must be one of float32", "'float33'")),
    Row("config-type-of-weights-by-its-old-name", config(torch_dtype="torch.float16"),
        ("model.source: model: the config's torch_dtype must be one of float32",)),
    Row("config-encoder-decoder-as-text", config(is_encoder_decoder="yes"),
        ("model.source: model: the config's is_encoder_decoder must be true or false", "'yes'")),
    Row("config-scaling-by-its-old-name",
        config(rope_scaling={"type": "su", "short_factor": [1.0], "long_factor": [1.0]}),
        ("model.source: model: the config's rope_scaling.type must be longrope", "'su'")),
]  # fmt: skip

TOKENIZERS = [
    Row("tokenizer-adds-too-many", file("model/added_tokens.json", '{"<extra>": 32}'),
        ("model.source", "does not fit", "added_tokens.json adds '<extra>' with the id 32")),
    Row("tokenizer-decoder-adds-too-many", file("model/tokenizer_config.json", json.dumps(
        {"eos_token": "</s>", "added_tokens_decoder": {"40": {"content": "<extra>"}}})),
        ("model.source", "tokenizer_config.json adds '<extra>' with the id 40")),
    Row("tokenizer-adds-padding", full_vocabulary(pad_token={"content": "<pad>"}),
        ("model.source", "special_tokens_map.json adds '<pad>' with the id 32")),
    Row("tokenizer-config-broken", file("model/tokenizer_config.json", "[1]"),
        ("model.source", "tokenizer_config.json", "object")),
    Row("tokenizer-vocabulary-broken", both(
        removed("model/tokenizer.json"), file("model/vocab.json", '{"a": -1}'),
    ), ("model.source", "vocab.json is not a tokenizer file")),
]  # fmt: skip

REVISIONS = [
    Row("revision-of-a-folder", field("model.revision", "v1"),
        ("model.revision: v1", "model is on this machine", "leave it out")),
    Row("revision-is-a-path", field("model.revision", "../main"),
        ("model.revision", "branch or tag", "'../main'")),
    Row("revision-is-a-number", field("model.revision", 20240101),
        ("model.revision", "write text", "20240101")),
    Row("revision-twice", field("model", {"source": "a/b@v1", "revision": "v2"}),
        ("model", "`revision` beside a `source`")),
    Row("revision-of-a-tokenizer-folder", field("model.tokenizer", "model@v1"),
        ("model.tokenizer: model is on this machine", "leave @v1 out")),
    Row("revision-of-a-model-not-to-be-had",
        both(field("model.source", "nobody/none"), field("model.revision", "v1")),
        ("model.source: nobody/none@v1", "Hub", "give a folder")),
]  # fmt: skip

REFUSED_MODELS = [*FORMATS, *VALUES, *TOKENIZERS, *REVISIONS]
