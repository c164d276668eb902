"""Other people's software reads our results and computes the same numbers.

The figures are those of docs/clients.md.
"""

import json
import pydoc_data.topics
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F  # noqa: N812
from asking import NAMES, TEXTS, ask, cut, difference, own_logits
from transformers import AutoModelForCausalLM, AutoTokenizer

from drpruning.pruning import ModelShape
from drpruning.pruning.clients import client_limits

pytestmark = [pytest.mark.clients, pytest.mark.timeout(3600)]
CTRANSLATE2 = ("llama", "mistral", "qwen2", "qwen3", "gpt_neox")
"""The families that CTranslate2 converts and computes rightly."""


def test_sources_are_read_as_transformers_4_reads_them(sources):
    for name, folder in sources.items():
        assert difference(own_logits(folder), np.load(folder / "logits.npy")) < 1e-5, name


@pytest.mark.parametrize("environment", ["older", "lowest"])
def test_transformers_old_and_new(environment, sources, results, expected, tmp_path):
    found = ask(environment, "transformers_logits", results, tmp_path / "results")
    at_source = ask(environment, "transformers_logits", sources, tmp_path / "sources")
    for name in NAMES:
        assert found[name]["keys"] == [], name
        assert difference(found[name]["logits"], expected[name]) < 1e-5, name
        assert found[name]["tokens"] == at_source[name]["tokens"], name


def test_llama_cpp(sources, results, expected, converter, tmp_path):
    found = ask("older", "llama_cpp_logits", results, tmp_path / "results", source=converter)
    at_source = ask("older", "llama_cpp_logits", sources, tmp_path / "sources", source=converter)
    for name in NAMES:
        assert "logits" in found[name], (name, found[name])
        noise = difference(at_source[name]["logits"], np.load(sources[name] / "logits.npy"))
        assert noise < 0.02, name
        assert difference(found[name]["logits"], expected[name]) < noise, name
        assert found[name]["tokens"] == at_source[name]["tokens"], name


def test_ctranslate2(results, expected, tmp_path):
    models = {name: results[name] for name in CTRANSLATE2}
    found = ask("older", "ctranslate2_logits", models, tmp_path / "out")
    for name in CTRANSLATE2:
        assert "logits" in found[name], (name, found[name])
        assert difference(found[name]["logits"], expected[name]) < 1e-4, name


@pytest.mark.parametrize("name", NAMES)
def test_vllm(name, results, expected, tmp_path):
    found = ask("vllm", "vllm_logits", {name: results[name]}, tmp_path / "out")[name]
    assert "logits" in found, found
    log_probabilities = torch.tensor(expected[name]).log_softmax(-1).numpy()
    assert difference(found["logits"], log_probabilities[:-1]) < 1e-4
    tokenizer = AutoTokenizer.from_pretrained(results[name])
    assert found["tokens"] == [tokenizer(text)["input_ids"] for text in TEXTS]


def test_adapters_and_the_evaluation_harness(results, tmp_path):
    tasks = tmp_path / "tasks"
    tasks.mkdir()
    documents = [text[:100] for text in list(pydoc_data.topics.topics.values())[:4]]
    lines = [json.dumps({"text": text}) + "\n" for text in documents]
    (tasks / "documents.jsonl").write_text("".join(lines))
    (tasks / "local.yaml").write_text(
        f"""task: local
dataset_path: json
dataset_kwargs: {{data_files: {{test: {tasks / "documents.jsonl"}}}}}
test_split: test
output_type: loglikelihood_rolling
doc_to_text: ""
doc_to_target: "{{{{text}}}}"
metric_list: [{{metric: word_perplexity}}]
"""
    )
    models = {name: results[name] for name in ("llama", "qwen2", "gpt_neox")}
    found = ask("harness", "harness_checks", models, tmp_path / "out", tasks=str(tasks))
    for name, folder in models.items():
        sums = [loglikelihood(folder, text) for text in documents]
        assert found[name]["samples"] == pytest.approx(sums, rel=1e-5), name
        adapter = found[name]["adapter"]
        assert adapter["untrained"] == 0, name
        assert adapter["changed"] > 0.01, name
        assert max(adapter["again"], adapter["merged"]) < 1e-4, name


def loglikelihood(folder: Path, text: str) -> float:
    """The log-probability of a text, a BOS of its own included, after another BOS; in nats."""
    tokenizer = AutoTokenizer.from_pretrained(folder)
    ids = tokenizer(text)["input_ids"]
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    assert len(ids) < model.config.max_position_embeddings
    with torch.no_grad():
        logits = model(torch.tensor([[tokenizer.bos_token_id, *ids[:-1]]])).logits[0]
    return -float(F.cross_entropy(logits, torch.tensor(ids), reduction="sum"))


LIMITED = ("llama", "mistral", "qwen2", "qwen3", "olmo2", "phi3")
"""Families in which heads x head size may be another number than the hidden size."""


@pytest.fixture(scope="session")
def narrow(sources, tmp_path_factory) -> dict[str, Path]:
    """Results whose heads are fewer than fill the hidden size."""
    folder = tmp_path_factory.mktemp("narrow")
    target = {"num_layers": 2, "hidden_size": 256, "num_heads": 2, "num_kv_heads": 1}
    for name in LIMITED:
        cut(sources[name], folder / name, target)
    return {name: folder / name for name in LIMITED}


def refusing(folder: Path) -> str:
    """What the package says of the clients that do not load a model, or compute it wrongly."""
    limits = [limit for limit in client_limits(ModelShape.of(folder)) if limit.severe]
    return "; ".join(effect for limit in limits for effect in limit.effects)


def test_limits_of_llama_cpp_and_ctranslate2(narrow, converter, tmp_path):
    for client, worker in (
        ("llama.cpp", "llama_cpp_logits"),
        ("CTranslate2", "ctranslate2_logits"),
    ):
        names = CTRANSLATE2 if client == "CTranslate2" else LIMITED
        models = {name: narrow[name] for name in LIMITED if name in names}
        found = ask("older", worker, models, tmp_path / client, source=converter)
        for name, folder in models.items():
            logits = found[name].get("logits")
            works = logits is not None and difference(logits, own_logits(folder)) < 0.05
            assert works != (client in refusing(folder)), (client, name, found[name])


@pytest.mark.parametrize("name", LIMITED)
def test_limits_of_vllm(name, narrow, tmp_path):
    found = ask("vllm", "vllm_logits", {name: narrow[name]}, tmp_path / "out")[name]
    works = "logits" in found
    if works:
        own = torch.tensor(own_logits(narrow[name])).log_softmax(-1).numpy()
        works = difference(found["logits"], own[:-1]) < 1e-3
    assert works != ("vLLM" in refusing(narrow[name])), found


@pytest.mark.parametrize(
    ("width", "types"), [(256, {"Q4_K", "Q6_K"}), (224, {"Q5_0", "Q8_0"}), (200, {"F16"})]
)
def test_types_of_quantized_weights(width, types, sources, converter, tmp_path):
    cut(sources["llama"], tmp_path / "model", {"num_layers": 2, "intermediate_size": width})
    models = {"model": tmp_path / "model"}
    found = ask("older", "llama_cpp_types", models, tmp_path / "out", source=converter)["model"]
    assert {found[f"blk.{layer}.ffn_down.weight"] for layer in range(2)} <= types
    rules = {limit.rule for limit in client_limits(ModelShape.of(tmp_path / "model"))}
    for multiple in (32, 256):
        said = f"intermediate size is a multiple of {multiple}" in rules
        assert said == (width % multiple != 0)
