"""`drprune demo`: all stages on a laptop, offline, in minutes."""

import json
import shutil
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from drpruning.common.console import Reporter, seconds_text
from drpruning.common.errors import BadInput
from drpruning.common.files import atomic_folder, check_folder
from drpruning.pipeline.demo_text import write_demo_text
from drpruning.pipeline.run import Run, show_table
from drpruning.recipe import Recipe, parse_recipe
from drpruning.recipe.paths import escape_path
from drpruning.report import write_report
from drpruning.runs.folder import RunFolder

VOCABULARY = 2048
SHARES = {"code": 0.55, "docstrings": 0.25, "reference": 0.1, "unicode": 0.1}
SOURCE = {
    "hidden_size": 128,
    "intermediate_size": 352,
    "num_hidden_layers": 6,
    "num_attention_heads": 4,
    "num_key_value_heads": 4,
    "head_dim": 32,
    "max_position_embeddings": 512,
}
TARGET = {"num_layers": 3, "hidden_size": 96, "intermediate_size": 208, "num_heads": 3}
"""A quarter of the source's parameters outside the embeddings."""
EOS = "</s>"


def _texts(folder: Path) -> Iterator[str]:
    for name in SHARES:
        with (folder / f"{name}.jsonl").open(encoding="utf-8") as file:
            for line in file:
                yield json.loads(line)["text"]


def _write_untrained_model(text: Path, folder: Path) -> None:
    """A byte-level BPE tokenizer fitted to the text, and a Llama with random weights."""
    import torch
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        special_tokens=[EOS],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(_texts(text), trainer)
    torch.manual_seed(0)
    config = LlamaConfig(vocab_size=VOCABULARY, bos_token_id=None, eos_token_id=0, **SOURCE)
    model = LlamaForCausalLM(config)
    temporary = folder.with_name(f".{folder.name}.partial")
    model.save_pretrained(temporary)
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token=EOS).save_pretrained(temporary)
    temporary.rename(folder)


def _recipe(folder: Path, name: str, source: Path, policy: str, **phases: Any) -> Recipe:
    """One of the demo's runs; `name` is its folder, and in tables what it differs by."""
    domains = {
        domain: {"source": f"{domain}.jsonl", "share": share} for domain, share in SHARES.items()
    }
    model = escape_path(str(source))
    values = {
        "model": {"source": model},
        "data": {
            "root": escape_path(str(folder / "text")),
            "prepared": escape_path(str(folder / "data")),
            "sequence_length": 128,
            "validation_blocks": 40,
            "domains": domains,
        },
        "scheduling": {"policy": policy},
        "training": {"micro_batch": 16, "precision": "fp32", "checkpoint": {"every_steps": 100}},
        "output": escape_path(str(folder / name)),
        **phases,
    }
    if "prune" in phases:
        values["model"] = {"source": model, "target": TARGET}
    return parse_recipe(values, origin="demo")


def _has_text(folder: Path) -> bool:
    """Whether a folder has the text of an earlier demo.

    Raises:
        BadInput: It holds something else, which the demo could replace, or cannot be written to.
    """
    check_folder(folder, "--output")
    if all((folder / "text" / f"{name}.jsonl").is_file() for name in SHARES):
        return True
    if folder.is_dir() and any(path.name[0] != "." for path in folder.iterdir()):
        raise BadInput(f"--output {folder}: is not empty and holds no demo; name another folder")
    return False


def _collect(folder: Path, reporter: Reporter) -> Path:
    """Write text and an untrained model, where they are missing; returns the model."""
    text, untrained = folder / "text", folder / "untrained"
    if not _has_text(folder):
        reporter.line("demo: collecting text from this Python installation")
        with atomic_folder(text) as draft:
            written = write_demo_text(draft)
        for name, characters in written.items():
            reporter.line(f"  {name}: {characters:,} characters")
    if not untrained.is_dir():
        reporter.line("demo: fitting a tokenizer")
        from drpruning.models.loading import quiet_libraries

        quiet_libraries()
        _write_untrained_model(text, untrained)
    return untrained


def run_demo(folder: Path) -> None:
    """Make text and a model, prune it, recover it in three ways, and show the results.

    Args:
        folder: Where everything goes; what an earlier call has finished is not made again.

    Raises:
        BadInput: The folder holds something else, or cannot be written to.
    """
    begin = time.monotonic()
    reporter = Reporter()
    untrained = _collect(folder, reporter)
    batch = {"global_batch": 16, "learning_rate": 1e-3}
    reporter.line("demo 1/5: training the source model")
    base_phase = {**batch, "steps": 1200, "evaluate_every": 400, "learning_rate": 3e-3}
    base = _recipe(folder, "source", untrained, "constant", pretrain=base_phase)
    with Run(base).session("drprune demo") as run:
        run.run(("prepare", "pretrain"))

    prune = {**batch, "steps": 220, "evaluate_every": 10}
    recover = {**batch, "steps": 200, "evaluate_every": 10}
    source = RunFolder(folder / "source").model
    steered = _recipe(folder, "drpruning", source, "drpruning", prune=prune, pretrain=recover)
    with Run(steered).session("drprune demo") as run:
        reporter.line("demo 2/5: pruning it to a quarter")
        run.run(("prune",))
        reporter.line("demo 3/5: recovering it, taught by the source, steered by DRPruning")
        run.run(("pretrain", "evaluate"))
    pruned = RunFolder(folder / "drpruning")

    alone = {**recover, "distill": "none"}
    others = {
        "constant": ("demo 4/5: the same under a constant ratio", "constant", recover),
        "no-teacher": ("demo 5/5: steered, from the text alone", "drpruning", alone),
    }
    for name, (title, policy, phase) in others.items():
        reporter.line(title)
        recipe = _recipe(folder, name, source, policy, prune=prune, pretrain=phase)
        with Run(recipe).session("drprune demo") as run:
            _copy_once(pruned.prune, run.files.prune)
            _copy_once(pruned.pruned, run.files.pruned)
            run.run(("pretrain", "evaluate"))

    folders = [folder / "drpruning", *(folder / name for name in others)]
    report = write_report(folders, RunFolder(folder).report)
    show_table(folders, reporter)
    reporter.line(f"model:  {RunFolder(folder / 'drpruning').model}")
    reporter.line(f"report: {report}")
    reporter.line(f"demo: done in {seconds_text(time.monotonic() - begin)}")


def _copy_once(source: Path, target: Path) -> None:
    if not target.exists():
        temporary = target.with_name(f".{target.name}.partial")
        shutil.copytree(source, temporary, dirs_exist_ok=True)
        temporary.rename(target)
