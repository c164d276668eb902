"""Run a set of experiments: every variant of a recipe with every seed; any part can be resumed.

A set is a YAML file beside this one (`pilot-en7.yaml` explains the keys). Run folders lie under
--work; what is finished there is not run again, what was interrupted is resumed, and a variant or
seed that is added later joins the rest. The results of all that is finished are written as JSON to
--results: losses, shares, churn, commit and versions. `table.py` prints them.

    python benchmarks/experiments/run.py pilot-en7 --models MODELS --text TEXT --work WORK \\
        --seeds 1 2 3 --variants constant sheared default --jobs 2
"""

import argparse
import json
import os
import subprocess
import sys
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from itertools import pairwise
from pathlib import Path
from typing import Any

import yaml
from rich.progress import Progress

from drpruning.runs.counterfactuals import churns, mean
from drpruning.runs.folder import RunFolder
from drpruning.runs.records import load_phases

HERE = Path(__file__).parent


@dataclass(frozen=True)
class Result:
    """One finished run.

    Attributes:
        variant: Its name in the set.
        seed: Of data order, masks and all else that is drawn.
        commit: Of the code that trained it.
        versions: Of the libraries.
        finished: When, in UTC.
        seconds: Of training, on one thread of a machine that others used too.
        initial_ratio: Share of each domain that the recipe gives.
        first: Loss by domain before the first step, in nats.
        loss: At the end.
        source: Of the model that was pruned; empty where none was.
        share: Mean share of training, by domain.
        churn: Mean over the evaluations of the sum of all changes of shares.
    """

    variant: str
    seed: int
    commit: str
    versions: dict[str, str]
    finished: str
    seconds: float
    initial_ratio: dict[str, float]
    first: dict[str, float]
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
    experiments = Experiments(args.set, args.models.resolve(), args.text.resolve(), args.work)
    chosen = args.variants or list(experiments.variants)
    if unknown := [name for name in chosen if name not in experiments.variants]:
        parser.error(f"{args.set}.yaml has no variant {unknown[0]!r}")
    experiments.run(args.seeds, chosen, args.jobs)
    found = experiments.results()
    path = args.results or HERE / "results" / f"{args.set}.json"
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps([asdict(result) for result in found], indent=1) + "\n")
    print(f"{len(found)} results: {path}")


class Experiments:
    """The runs of one set under one work folder."""

    def __init__(self, name: str, models: Path, text: Path, work: Path) -> None:
        self.given: dict[str, Any] = yaml.safe_load((HERE / f"{name}.yaml").read_text())
        self.variants: dict[str, dict[str, Any]] = self.given["variants"]
        self.models, self.text = models, text / self.given["text"]
        self.work = (work / name).resolve()
        self.work.mkdir(parents=True, exist_ok=True)

    def run(self, seeds: list[int], variants: list[str], jobs: int) -> None:
        """Prune once a seed, then run the variants; stops at the first that fails."""
        if "prune" in self.given:
            pruned = {self._pruned(seed): self._pruning(seed) for seed in seeds}
            self._train("pruning", pruned, jobs)
        runs = {
            self._folder(variant, seed): self._variant(variant, seed)
            for seed in seeds
            for variant in variants
        }
        self._train("variants", runs, jobs)

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

    def _pruned(self, seed: int) -> Path:
        """The run that pruned: one for each seed, or one for all where the set names its seed."""
        return self._folder("prune", self.given["prune"].get("seed", seed))

    def _pruning(self, seed: int) -> list[str]:
        given = self.given["prune"]
        changes = {"model.source": self.models / given["source"]}
        return self._command(given["recipe"], given.get("seed", seed), "prune", changes)

    def _variant(self, variant: str, seed: int) -> list[str]:
        if "prune" in self.given:
            source = RunFolder(self._pruned(seed)).pruned
        else:
            source = self.models / self.given["source"]
        changes = {"model.source": source, **self.variants[variant]}
        return self._command(self.given["recipe"], seed, variant, changes)

    def _command(self, recipe: str, seed: int, name: str, changes: Mapping[str, Any]) -> list[str]:
        fields = {
            "data.root": self.text,
            "data.prepared": self.work / "data",
            "training.seed": seed,
            "output": self._folder(name, seed),
            **changes,
        }
        command = [str(Path(sys.executable).with_name("drprune")), "run", str(HERE / recipe)]
        for key, value in fields.items():
            command += ["--set", f"{key}={json.dumps(self._filled(value, seed))}"]
        return command

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
        """Those of the model before pruning, as its run measured them at step 0."""
        if "prune" not in self.given:
            return {}
        return dict(load_phases(self._pruned(seed)).phases["prune"].evals[0].loss)

    def _train(self, what: str, runs: Mapping[Path, list[str]], jobs: int) -> None:
        missing = {folder: cmd for folder, cmd in runs.items() if not _is_finished(folder)}
        if missing:  # the data are prepared once, not by several runs that start together
            drprune, _, *recipe = next(iter(missing.values()))
            prepared = _run((self.work, [drprune, "prepare", *recipe]))
            if prepared.returncode:
                raise SystemExit(prepared.stderr[-2000:])
        with Progress() as progress, ThreadPoolExecutor(jobs) as pool:
            bar = progress.add_task(what, total=len(missing))
            for folder, ended in zip(missing, pool.map(_run, missing.items()), strict=True):
                progress.advance(bar)
                if ended.returncode:
                    pool.shutdown(cancel_futures=True)
                    raise SystemExit(f"{folder}: {ended.stderr[-2000:]}")

    def _result(self, variant: str, seed: int) -> Result:
        folder = self._folder(variant, seed)
        record = load_phases(folder)
        phase = next(reversed(record.phases.values()))
        evals, start = phase.evals, phase.start
        assert start is not None
        ratio = [point.ratio for point in evals]
        length = [after.step - point.step for point, after in pairwise(evals)]
        return Result(
            variant=variant,
            seed=seed,
            commit=start.commit or "",
            versions=dict(start.versions),
            finished=f"{datetime.fromtimestamp(evals[-1].time, UTC):%Y-%m-%d %H:%M}",
            seconds=round(phase.seconds, 1),
            initial_ratio=record.initial_ratio,
            first=dict(evals[0].loss),
            loss=dict(evals[-1].loss),
            source=self._source_losses(seed),
            share={
                d: sum(n * q[d] for n, q in zip(length, ratio, strict=False)) / evals[-1].step
                for d in ratio[0]
            },
            churn=mean(churns(evals)[1:-1]),
        )


def _is_finished(folder: Path) -> bool:
    phases = load_phases(folder).phases if RunFolder(folder).metrics.is_file() else {}
    return bool(phases) and all(phase.end is not None for phase in phases.values())


def _run(item: tuple[Path, list[str]]) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.run(item[1], env=environment, capture_output=True, text=True, check=False)


if __name__ == "__main__":
    main()
