"""Run a set of experiments: every variant of a recipe with every seed; any part can be resumed.

A set is a YAML file beside this one. Run folders lie under --work; what is finished there is not
run again, what was interrupted is resumed, and a variant or seed that is added later joins the
rest. Half of the validation text steers the runs, their results are measured on the other half
(held_out.py). The results of all that is finished are written as JSON to --results: losses, shares,
churn, what each run started from, commit, versions and machine. `table.py` prints them; `cost.py`
prints what scheduling costs.

Keys of a set:

    like: SET           another set, whose keys this one has unless it gives its own
    text: FOLDER        under --text
    source: MODEL       what runs start from: its name under --models, or a path
    prune: {recipe: FILE, source: MODEL, seed: N}
                        in place of `source`: they start from what a run of this recipe prunes,
                        once for each seed, or once for all with the seed that is named
    recipe: FILE        beside the set
    variants:           name -> changes of the recipe; beside them
      start: {one_shot: METHOD}    cut in one shot in place of `prune`, see one_shot.py
      start: {random: MODEL}       random weights of a model's shape, see random_weights.py

In values MODELS is --models, WORK the folder of the set's runs, and SOURCE_LOSSES the losses of the
model that the set prunes, which a run with a prune phase hands to its recovery by itself.

    python benchmarks/experiments/run.py pilot-en7 --models MODELS --text TEXT --work WORK \\
        --seeds 1 2 3 --variants constant sheared default --jobs 2
"""

import argparse
import json
import os
import platform
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from itertools import pairwise, product
from pathlib import Path
from typing import Any

import yaml
from held_out import BLOCKS, split_text, test_losses
from rich.progress import Progress

from drpruning.common.errors import BadInput
from drpruning.runs.counterfactuals import churns, mean
from drpruning.runs.folder import RunFolder
from drpruning.runs.records import RunRecord, load_phases

HERE = Path(__file__).parent
DRPRUNE = str(Path(sys.executable).with_name("drprune"))


@dataclass(frozen=True)
class Result:
    """One finished run.

    Attributes:
        variant: Its name in the set.
        seed: Of data order, masks and all else that is drawn.
        commit: Of the code that trained it.
        versions: Of the libraries.
        machine: On which the results were gathered: system, processor, cores.
        start: What training started from: `model`, `prune` (masks learned on a model), `one_shot`
            (a method) or `random` (a model's shape).
        finished: When, in UTC.
        seconds: Of training, on one thread of a machine that others used too.
        initial_ratio: Share of each domain that the recipe gives.
        validation: Loss by domain at the end, in nats, on the half that steers.
        loss: The same on the half that no run saw.
        source: That of the model that was pruned, on the same half; empty where none was.
        share: Mean share of training, by domain.
        churn: Mean over the evaluations of the sum of all changes of shares.
    """

    variant: str
    seed: int
    commit: str
    versions: dict[str, str]
    machine: str
    start: dict[str, str]
    finished: str
    seconds: float
    initial_ratio: dict[str, float]
    validation: dict[str, float]
    loss: dict[str, float]
    source: dict[str, float]
    share: dict[str, float]
    churn: float


def main() -> None:
    """Run what the arguments name, then write the results."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("set", help="name of a set, without .yaml")
    parser.add_argument("--models", type=Path, required=True, help="folder with the models")
    parser.add_argument("--text", type=Path, required=True, help="folder with the text sets")
    parser.add_argument("--work", type=Path, required=True, help="where run folders lie")
    parser.add_argument("--seeds", type=int, nargs="*", default=[1])
    parser.add_argument("--variants", nargs="*", help="by default all")
    parser.add_argument("--jobs", type=int, default=2, help="runs at a time, one thread each")
    parser.add_argument("--results", type=Path, help="by default results/SET.json beside this file")
    args = parser.parse_args()
    try:
        experiments = Experiments(args.set, args.models.resolve(), args.text.resolve(), args.work)
        chosen = args.variants or list(experiments.variants)
        if unknown := [name for name in chosen if name not in experiments.variants]:
            raise BadInput(f"{args.set}.yaml has no variant {unknown[0]!r}")
        experiments.run(args.seeds, chosen, args.jobs)
    except BadInput as error:
        parser.error(str(error))
    found = experiments.results()
    path = args.results or HERE / "results" / f"{args.set}.json"
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps([asdict(result) for result in found], indent=1) + "\n")
    print(f"{len(found)} results: {path}")


class Experiments:
    """The runs of one set under one work folder."""

    def __init__(self, name: str, models: Path, text: Path, work: Path) -> None:
        self.given = read_set(name)
        self.variants: dict[str, dict[str, Any]] = self.given["variants"]
        self.models, self.text = models, text / self.given["text"]
        self.work = (work / name).resolve()
        self.work.mkdir(parents=True, exist_ok=True)
        self.data, self.test_data = self.work / "data", self.work / "test"

    def run(self, seeds: list[int], variants: list[str], jobs: int) -> None:
        """Make what the variants start from, then run them; stops at the first that fails."""
        made = self.starts(seeds, variants)
        starts = {model: command for model, command in made.items() if not _is_finished(model)}
        runs = [(v, s) for s in seeds for v in variants if not _is_finished(self._folder(v, s))]
        if starts or runs:
            self._prepare()
        _execute("starts", starts, jobs)
        # Only now are the losses known that some commands name.
        commands = {self._folder(*run): self.command(*run) for run in runs}
        _execute("variants", commands, jobs)

    def starts(self, seeds: list[int], variants: list[str]) -> dict[Path, list[str]]:
        """The commands that make what variants start from, by the model that each makes."""
        commands: dict[Path, list[str]] = {}
        for seed in seeds if "prune" in self.given else ():
            run = self._pruned(seed)
            recipe = self._pruning_recipe(int(run.path.name), output=run.path)
            commands[run.pruned] = [DRPRUNE, "run", *recipe]
        for variant, seed in product(variants, seeds):
            ((kind, name),) = self.start_of(variant).items()
            model = self._source(variant, seed)
            if kind == "one_shot":
                recipe = self._pruning_recipe(seed, output=model.parent)
                commands[model] = [sys.executable, str(HERE / "one_shot.py"), name, *recipe]
            elif kind == "random":
                place = [str(self.models / name), str(model), "--seed", str(seed)]
                commands[model] = [sys.executable, str(HERE / "random_weights.py"), *place]
        return commands

    def command(self, variant: str, seed: int) -> list[str]:
        """The command that runs a variant with a seed, once what it starts from is there."""
        changes = {key: v for key, v in self.variants[variant].items() if key != "start"}
        fields = {"model.source": self._source(variant, seed), **changes}
        output = self._folder(variant, seed)
        return [DRPRUNE, "run", *self._recipe(self.given["recipe"], seed, output, fields)]

    def start_of(self, variant: str) -> dict[str, str]:
        """What a variant starts from, see `Result.start`."""
        pruned, own = self.given.get("prune", {}).get("source"), self.variants[variant]
        if "start" not in own:
            model = own.get("model.source", self.given.get("source"))
            return {"prune": pruned} if model is None else {"model": str(model)}
        start, kinds = own["start"], ["random", *(["one_shot"] if pruned else [])]
        if not isinstance(start, dict) or len(start) != 1 or next(iter(start)) not in kinds:
            raise BadInput(
                f"variants.{variant}.start: write {' or '.join(f'{{{k}: NAME}}' for k in kinds)}, "
                f"not {start}{'' if pruned else '; one_shot needs prune in the set'}"
            )
        return {kind: str(name) for kind, name in start.items()}

    def results(self) -> list[Result]:
        """Those of all finished runs in the work folder, by variant and seed."""
        folders = [(v, int(f.name)) for v in self.variants for f in (self.work / v).glob("*")]
        return [
            self._result(variant, seed)
            for variant, seed in sorted(folders)
            if _is_finished(self._folder(variant, seed))
        ]

    def _folder(self, name: str, seed: int) -> Path:
        return self.work / name / str(seed)

    def _pruned(self, seed: int) -> RunFolder:
        """The run that pruned: one for each seed, or one for all where the set names its seed."""
        return RunFolder(self._folder("prune", self.given["prune"].get("seed", seed)))

    def _source(self, variant: str, seed: int) -> Path:
        """The model that a variant starts from."""
        ((kind, name),) = self.start_of(variant).items()
        if kind == "model":
            return Path(self.models, self._filled(name, seed))
        if kind == "prune":
            return self._pruned(seed).pruned
        made = RunFolder(self._folder(f"starts/{kind}-{name}", seed))
        return made.pruned if kind == "one_shot" else made.model

    def _pruning_recipe(self, seed: int, output: Path) -> list[str]:
        given = self.given["prune"]
        changes = {"model.source": self.models / given["source"]}
        return self._recipe(given["recipe"], seed, output, changes)

    def _recipe(
        self, recipe: str, seed: int, output: Path, changes: Mapping[str, Any]
    ) -> list[str]:
        """A recipe and its changes, as arguments of a command."""
        fields = {
            "data.root": self.work / "text",
            "data.prepared": self.data,
            "training.seed": seed,
            "output": output,
            **changes,
        }
        arguments = [str(HERE / recipe)]
        for key, value in fields.items():
            arguments += ["--set", f"{key}={json.dumps(self._filled(value, seed))}"]
        return arguments

    def _prepare(self) -> None:
        """Prepare all data once, not by several runs that start together."""
        first = self.given.get("prune", self.given)
        tests = split_text(HERE / first["recipe"], self.text, self.work / "text")
        changes = {"model.source": self.models / self._filled(first["source"], 0)}
        test_changes = {
            "data.prepared": self.test_data,
            "data.validation_blocks": BLOCKS,
            **{f"data.domains.{name}.validation": file for name, file in tests.items()},
        }
        for more in ({}, test_changes):
            with tempfile.TemporaryDirectory() as output:
                recipe = self._recipe(first["recipe"], 0, Path(output, "run"), changes | more)
                prepared = _run([DRPRUNE, "prepare", *recipe])
            if prepared.returncode:
                raise SystemExit(prepared.stderr[-2000:])

    def _filled(self, value: Any, seed: int) -> Any:
        """A value with the set's placeholders replaced."""
        if value == "SOURCE_LOSSES":
            return self._source_losses(seed)
        if isinstance(value, Mapping):
            return {key: self._filled(v, seed) for key, v in value.items()}
        if isinstance(value, str | Path):
            return str(value).replace("MODELS", str(self.models)).replace("WORK", str(self.work))
        return value

    def _source_losses(self, seed: int) -> dict[str, float]:
        """Those of the model before pruning, as the run that pruned it measured them at step 0."""
        return dict(load_phases(self._pruned(seed).path).phases["prune"].first_loss)

    def _original(self, record: RunRecord) -> Path | None:
        """The model that was pruned, if any was."""
        if "prune" in record.phases:
            return Path(record.recipe["model"]["source"])
        return self.models / self.given["prune"]["source"] if "prune" in self.given else None

    def _test_losses(self, model: Path, name: str) -> dict[str, float]:
        return dict(test_losses(model, self.test_data, self.work / "tested" / f"{name}.json"))

    def _result(self, variant: str, seed: int) -> Result:
        folder = self._folder(variant, seed)
        record = load_phases(folder)
        phase = next(reversed(record.phases.values()))
        evals, start = phase.evals, phase.start
        assert start is not None
        original = self._original(record)
        ratio = [point.ratio for point in evals]
        length = [after.step - point.step for point, after in pairwise(evals)]
        return Result(
            variant=variant,
            seed=seed,
            commit=start.commit or "",
            versions=dict(start.versions),
            machine=f"{platform.system()} {platform.machine()}, {os.cpu_count()} cores",
            start=self.start_of(variant),
            finished=f"{datetime.fromtimestamp(evals[-1].time, UTC):%Y-%m-%d %H:%M}",
            seconds=round(phase.seconds, 1),
            initial_ratio=record.initial_ratio,
            validation=dict(evals[-1].loss),
            loss=self._test_losses(RunFolder(folder).model, f"{variant}/{seed}"),
            source=self._test_losses(original, "original") if original else {},
            share={
                d: sum(n * q[d] for n, q in zip(length, ratio, strict=False)) / evals[-1].step
                for d in ratio[0]
            },
            churn=mean(churns(evals)[1:-1]),
        )


def read_set(name: str) -> dict[str, Any]:
    """The content of a set, with what it has from the set that it is `like`."""
    file = HERE / f"{name}.yaml"
    given: dict[str, Any] = yaml.safe_load(file.read_text()) if file.is_file() else {}
    if "like" in given:
        given = read_set(given["like"]) | given
    if "variants" not in given:
        raise BadInput(f"{file}: no set; name a file that has variants")
    return given


def _is_finished(folder: Path) -> bool:
    if (folder / "config.json").is_file():  # a model, which appears complete or not at all
        return True
    if not RunFolder(folder).metrics.is_file():
        return False
    record = load_phases(folder)
    phases = [name for name in ("prune", "pretrain") if record.recipe.get(name)]
    return all(name in record.phases and record.phases[name].end is not None for name in phases)


def _execute(what: str, commands: Mapping[Path, list[str]], jobs: int) -> None:
    with Progress() as progress, ThreadPoolExecutor(jobs) as pool:
        bar = progress.add_task(what, total=len(commands))
        for folder, ended in zip(commands, pool.map(_run, commands.values()), strict=True):
            progress.advance(bar)
            if ended.returncode:
                pool.shutdown(cancel_futures=True)
                raise SystemExit(f"{folder}: {ended.stderr[-2000:]}")


def _run(command: list[str]) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.run(command, env=environment, capture_output=True, text=True, check=False)


if __name__ == "__main__":
    main()
