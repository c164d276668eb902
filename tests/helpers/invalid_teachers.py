"""The table of teachers that are refused before torch is imported, with the remedy."""

import json
import shutil
from typing import Any

from helpers.damaged_places import Place, Row, Spoil, both, field

UNPRUNED = both(field("prune", ...), field("model.target", ...))


def taught(phase: str = "pretrain", **settings: Any) -> Spoil:
    """A phase with a teacher."""
    return field(f"{phase}.distill", settings)


def teacher(**config: Any) -> Spoil:
    """A copy of the model in `large`, with other values in its config.json, that teaches."""

    def spoil(place: Place) -> None:
        shutil.copytree(place / "model", place / "large")
        content = json.loads((place / "large/config.json").read_text())
        place.write("large/config.json", json.dumps(content | config))
        taught(teacher="large")(place)

    return spoil


def of_another_vocabulary(*, padded: bool) -> Spoil:
    """A teacher of more logits than the model, with its tokens or with others."""

    def spoil(place: Place) -> None:
        from safetensors.numpy import load_file, save_file

        shutil.copytree(place / "model", place / "large")
        weights = load_file(place / "large/model.safetensors")
        config = json.loads((place / "large/config.json").read_text())
        config["vocab_size"] += 8
        for name, matrix in weights.items():
            if "embed_tokens" in name or "lm_head" in name:
                weights[name] = matrix.repeat(2, axis=0)[: config["vocab_size"]].copy()
        save_file(weights, place / "large/model.safetensors", {"format": "pt"})
        place.write("large/config.json", json.dumps(config))
        if not padded:
            text = (place / "large/tokenizer.json").read_text()
            place.write("large/tokenizer.json", text.replace('"green"', '"orange"'))
        taught(teacher="large")(place)

    return spoil


def of_another_tokenizer(place: Place) -> None:
    teacher()(place)
    text = (place / "large/tokenizer.json").read_text()
    place.write("large/tokenizer.json", text.replace('"green"', '"orange"'))


def without_weights(place: Place) -> None:
    teacher()(place)
    (place / "large/model.safetensors").unlink()


WHERE = "pretrain.distill"
REFUSED_TEACHERS = [
    Row("distill-as-a-flag", field(WHERE, True), (f"{WHERE}: write none, or settings", "True")),
    Row("distill-unknown-key", taught(temprature=2), (f"{WHERE}.temprature", "'temperature'")),
    Row("distill-weight-of-nothing", taught(weight=0), (f"{WHERE}.weight", "greater than 0")),
    Row("distill-weight-above-one", taught(final_weight=1.5),
        (f"{WHERE}.final_weight", "less than or equal to 1")),
    Row("distill-temperature-nan", taught(temperature=float("nan")), (f"{WHERE}.temperature",)),
    Row("distill-no-top-tokens", taught(top_k=0), (f"{WHERE}.top_k", "greater than 0")),
    Row("distill-top-k-of-all", taught(top_k=32),
        (f"{WHERE}.top_k: 32 tokens of a vocabulary of 32", "leave top_k out")),
    Row("distill-type-unknown", taught(dtype="fp8"), (f"{WHERE}.dtype", "'int8'", "'fp8'")),
    Row("distill-fp32-and-kernel",
        both(taught(dtype="fp32"), field("training.precision", "bf16"),
             field("training.attention", "flash_attention_2")),
        (f"{WHERE}.dtype", "flash_attention_2 has no float32", "write dtype: bf16")),
    Row("distill-int8-in-shards", taught(dtype="int8", shard=True),
        (f"{WHERE}: shard: int8 weights are not sharded", "write dtype: bf16")),
    Row("distill-cache-of-all", taught(cache=True), (f"{WHERE}: cache", "write top_k")),
    Row("teacher-and-teachers", taught(teacher="a", teachers={"b": 1}),
        (f"{WHERE}: write either teacher or teachers",)),
    Row("teachers-none", taught(teachers={}), (f"{WHERE}.teachers", "at least one model")),
    Row("teachers-twice", taught(teachers={"$HOME": 1, "~": 1}),
        (f"{WHERE}.teachers", "two names stand for one model")),
    Row("teachers-as-a-list", taught(teachers=["a"]), (f"{WHERE}.teachers", "write a mapping")),
    Row("teacher-of-weight-nan", taught(teachers={"a": float("nan")}), (f"{WHERE}.teachers.a",)),
    Row("teacher-of-weight-below-0", taught(teachers={"a": {"numbers": -1}}),
        (f"{WHERE}.teachers.a.numbers", "greater than or equal to 0")),
    Row("teacher-of-no-weight", taught(teachers={"a": 1, "b": 0}),
        (f"{WHERE}.teachers: b has no weight above 0", "leave it out")),
    Row("teacher-of-another-domain", taught(teachers={"a": {"web": 1}}),
        (f"{WHERE}.teachers: a has a weight for web", "animals, colours, numbers")),
    Row("domain-without-a-teacher", taught(teachers={"a": {"numbers": 1, "colours": 2}}),
        (f"{WHERE}.teachers: the domain animals has none", "give it a weight")),
    Row("teacher-self-in-recovery", taught(teacher="self"),
        (f"{WHERE}.teacher: self is the model under masks", "name a model")),
    Row("teacher-self-of-several", taught("prune", teachers={"self": 1}),
        ("prune.distill.teachers: self", "write teacher: self")),
    Row("teacher-self-cached", taught("prune", teacher="self", top_k=4, cache=True),
        ("prune.distill: cache: the teacher self changes", "leave cache out")),
    Row("teacher-self-in-int8", taught("prune", teacher="self", dtype="int8"),
        ("prune.distill: the teacher self has no weights", "leave dtype and shard out")),
    Row("teacher-missing", both(UNPRUNED, taught()),
        (f"{WHERE}.teacher: missing, as no model is pruned", "distill: none")),
    Row("teacher-is-the-model", both(UNPRUNED, taught(teacher="./model")),
        (f"{WHERE}.teacher: ./model is the model that pretrain trains", "name another")),
    Row("teacher-is-a-result", taught(teacher="out/pruned"),
        (f"{WHERE}.teacher: out/pruned is the model that pretrain trains",)),
    Row("teacher-is-nowhere", taught(teacher="none/at/all"),
        (f"{WHERE}.teacher: none/at/all is no folder with a config.json",)),
    Row("teacher-without-weights", without_weights,
        (f"{WHERE}.teacher: large has no safetensors weights",)),
    Row("teacher-of-another-tokenizer", of_another_tokenizer,
        (f"{WHERE}.teacher: the tokenizer of large", "source's family")),
    Row("teacher-of-another-vocabulary", of_another_vocabulary(padded=False),
        (f"{WHERE}.teacher: the tokenizer of large",)),
    Row("teacher-with-padding", of_another_vocabulary(padded=True),
        (f"{WHERE}.teacher: large has a vocabulary of 40 entries and model one of 32",
         "from_pretrained('large')", "resize_token_embeddings(32)", "NEW_FOLDER")),
    Row("teacher-of-short-blocks", teacher(max_position_embeddings=8),
        ("data.sequence_length: 16 is beyond the 8 positions that large was made for",
         f"({WHERE}.teacher)", "sequence_length: 8 or less", f"write {WHERE}: none")),
    Row("teacher-holds-the-output", both(teacher(), field("output", "large/out")),
        ("output: large/out lies in large", WHERE)),
    Row("first-teacher-holds-the-output",
        both(teacher(), taught(teachers={"large": 1, "other": 1}), field("output", "large/out")),
        ("output: large/out lies in large", WHERE)),
]  # fmt: skip
