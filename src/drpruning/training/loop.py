"""The training loop of both phases.

A segment is the training between two evaluations. At its end the validation losses give the ratio
of the next one, which is then planned as a whole. A checkpoint holds the state at the segment's
start and the steps done in it, so a run that goes on from it sees the same batches.
"""

import time
from collections.abc import Mapping
from contextlib import nullcontext
from dataclasses import asdict
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from accelerate import Accelerator
from torch import Tensor, nn

from drpruning.console import Reporter, Task
from drpruning.data import Mixture, PreparedData, Segment
from drpruning.errors import BadInput
from drpruning.recipe import Phase, Training
from drpruning.scheduling import Policy
from drpruning.training import provenance
from drpruning.training.checkpoint import list_checkpoints, load_checkpoint, save_checkpoint
from drpruning.training.interruption import Interrupted, InterruptGuard
from drpruning.training.messages import evaluation_text, step_text
from drpruning.training.metrics import MetricsLog
from drpruning.training.optimization import (
    MicroBatch,
    build_optimizer,
    learning_rate_factor,
    micro_batches,
    set_learning_rate,
    step_seed,
)
from drpruning.training.ranks import agreed_ratio
from drpruning.training.validation import autocast, domain_losses, language_modelling_loss


class Setting(NamedTuple):
    """What a phase works with besides its model."""

    settings: Phase
    training: Training
    data: PreparedData
    folder: Path
    accelerator: Accelerator
    reporter: Reporter


class Loop:
    """One phase of training of a plain causal language model; pruning adds to it."""

    phase = "pretrain"
    parts = 1

    def __init__(self, setting: Setting, model: nn.Module, policy: Policy, mixture: Mixture):
        """Set the phase up at step 0.

        Args:
            setting: Recipe sections, data, run folder, devices, terminal.
            model: The model, float32 parameters; it is trained in place.
            policy: Gives the ratio; asked at every evaluation.
            mixture: Gives the blocks; at the place where this phase begins.
        """
        self.settings, self.training, self.data, self.folder = setting[:4]
        self.accelerator, self.reporter = setting.accelerator, setting.reporter
        self.model, self.policy, self.mixture = model, policy, mixture
        self.device = self.accelerator.device
        self.micro_batches = micro_batches(
            self.settings.global_batch,
            self.training.micro_batch,
            self.parts,
            self.accelerator.process_index,
            self.accelerator.num_processes,
        )
        self.parameters = {n: p for n, p in self.trained().named_parameters() if p.requires_grad}
        self.optimizer = build_optimizer(self.parameter_groups(), self.settings)
        self.wrap()
        self.metrics = MetricsLog(self.folder, self.phase)
        self.step = 0
        self.evaluated = -1
        self.saved = 0
        self.resumed_at: float | None = None
        self.ratio = dict(policy.ratio)
        self.segment: Segment | None = None
        self.stopped: str | None = None
        self.sums: dict[str, float | Tensor] = {}
        self.seconds = {"training": 0.0, "logged": 0.0, "total": 0.0}

    # What pruning does differently.

    def trained(self) -> nn.Module:
        """The module whose parameters are trained and saved."""
        return self.model

    def parameter_groups(self) -> list[dict[str, Any]]:
        """The optimizer's groups."""
        decay = self.settings.weight_decay
        return [{"params": list(self.parameters.values()), "weight_decay": decay}]

    def wrap(self) -> None:
        """Move the model to its device and, with several ranks, synchronise its gradients."""
        self.model = self._wrapped(self.model)

    def _wrapped(self, model: nn.Module) -> nn.Module:
        if self.training.gradient_checkpointing:
            # Transformers renamed it within version 5.
            newer = getattr(model, "activation_checkpointing_enable", None)
            (newer or model.gradient_checkpointing_enable)({"use_reentrant": False})  # type: ignore[operator]
        if self.training.compile:
            model.compile()
        wrapped: nn.Module = self.accelerator.prepare_model(model)
        return wrapped

    def synchronised(self) -> nn.Module:
        """The module that synchronises gradients across ranks."""
        return self.model

    def start_afresh(self) -> None:
        """Called before step 0, not where a checkpoint is gone on from."""

    def prepare_step(self) -> None:
        """Called before a step."""

    def prepare_pass(self, part: int) -> None:
        """Called before the forward pass of a micro-batch of this mask part."""

    def finish_gradients(self) -> dict[str, Tensor]:
        """Add what does not come from the data; returns what to log."""
        return {}

    def step_fields(self) -> dict[str, Any]:
        """What this phase adds to a record of kind `step`."""
        return {}

    def parameter_count(self) -> float:
        """Parameters of the model as it is now."""
        return float(sum(p.numel() for p in self.parameters.values()))

    def final_parameter_count(self) -> float:
        """Parameters of the model at the end of the phase."""
        return self.parameter_count()

    def after_evaluation(self) -> None:
        """Called when an evaluation has been logged; `self.stopped` may be given a reason now."""

    def extra_state(self) -> dict[str, Any]:
        """What this phase adds to a checkpoint."""
        return {}

    def load_extra_state(self, state: Mapping[str, Any]) -> None:
        """Take back what `extra_state` gave."""

    # The loop.

    def run(self) -> None:
        """Train to the last step or until `stopped`, from the newest checkpoint if there is one.

        Raises:
            Interrupted: A signal asked to stop; the state is saved.
        """
        self._begin()
        start = time.monotonic() - self.seconds["total"]
        total = self.settings.steps
        with InterruptGuard() as guard, self.reporter.task(self.phase, total, self.step) as task:
            while True:
                if self.evaluated < self.step and self.step == self._segment_end():
                    self._evaluate(task)
                self.seconds["total"] = time.monotonic() - start
                stop = self.on_any_rank(guard.requested)
                done = self.step == total or self.stopped is not None
                due = self.step % self.training.checkpoint.every_steps == 0 or done
                if (due or stop) and self.step > self.saved:
                    self._save()
                if stop:
                    raise Interrupted
                if done:
                    break
                self._train_step()
                if self.step % self.training.log_every == 0 or self.step == total:
                    self._log(task)
                else:
                    task.update(self.step)
        if self.accelerator.is_main_process:
            seconds, tokens = self.seconds["total"], self._tokens()
            self.metrics.record(
                "end", self.step, total_seconds=seconds, tokens=tokens, stopped=self.stopped
            )

    def _begin(self) -> None:
        checkpoints = list_checkpoints(self.folder / "checkpoints", self.phase)
        if checkpoints:
            self._load(checkpoints[-1])
            self.reporter.line(f"{self.phase}: going on from step {self.step}")
        else:
            self.start_afresh()
            if self.accelerator.is_main_process:
                self._record_start()
        self.accelerator.wait_for_everyone()

    def _record_start(self) -> None:
        self.metrics.forget_phase()
        self.metrics.record(
            "start",
            0,
            total_steps=self.settings.steps,
            global_batch=self.settings.global_batch,
            sequence_length=self.data.sequence_length,
            parameters=self.parameter_count(),
            final_parameters=self.final_parameter_count(),
            versions=provenance.versions(),
            commit=provenance.commit(),
        )

    def on_any_rank(self, here: bool) -> bool:  # noqa: FBT001 - an answer, not an option
        """Whether it is so on any rank; every rank gets the same answer."""
        if self.accelerator.num_processes == 1:
            return here
        flag = torch.tensor(float(here), device=self.device)
        return bool(self.accelerator.reduce(flag).item())

    def _segment_end(self) -> int:
        return 0 if self.segment is None else self.evaluated + self.segment.steps

    def own_blocks(self, segment: Segment, index: int) -> Tensor:
        """This rank's rows of a segment's global batch [B, T]; those of others are not read."""
        domains, ids = segment.batch(index)
        rows = slice(self.micro_batches[0].rows.start, self.micro_batches[-1].rows.stop)
        blocks_BT = torch.from_numpy(self.data.train_blocks(domains[rows], ids[rows]))
        return blocks_BT.to(self.device, non_blocking=True)

    def _train_step(self) -> None:
        if self.resumed_at is None:
            self.resumed_at = time.monotonic()
        assert self.segment is not None  # noqa: S101 - planned by the evaluation before
        batch_BT = self.own_blocks(self.segment, self.step - self.evaluated)
        torch.manual_seed(step_seed(self.training.seed, self.step, self.accelerator.process_index))
        self.prepare_step()
        self.trained().train()
        self.optimizer.zero_grad(set_to_none=True)
        loss = torch.zeros((), dtype=torch.float64, device=self.device)
        first = self.micro_batches[0].rows.start
        for piece in self.micro_batches:
            rows = batch_BT[piece.rows.start - first : piece.rows.stop - first]
            loss += self._backward(piece, rows, share=len(rows) / len(batch_BT))
        loss = self.accelerator.reduce(loss, reduction="mean")
        logged = {"loss": loss} | self.finish_gradients()
        norm = torch.nn.utils.clip_grad_norm_(
            self.parameters.values(), self.settings.gradient_clip, error_if_nonfinite=False
        )
        set_learning_rate(self.optimizer, learning_rate_factor(self.step, self.settings))
        self.optimizer.step()
        for name, value in (logged | {"gradient_norm": norm}).items():
            self.sums[name] = self.sums.get(name, 0.0) + value.double()
        self.step += 1

    def _backward(self, piece: MicroBatch, rows_BT: Tensor, share: float) -> Tensor:
        """Gradients of one micro-batch; returns its part of the step's mean loss."""
        last = piece is self.micro_batches[-1]
        context = nullcontext() if last else self.accelerator.no_sync(self.synchronised())
        with context:
            self.prepare_pass(piece.part)
            with autocast(self.device, self.training.precision):
                loss = language_modelling_loss(self.model, rows_BT) * share
            loss.backward()  # type: ignore[no-untyped-call]
        return loss.detach().double()

    def _tokens(self) -> int:
        return self.step * self.settings.global_batch * self.data.sequence_length

    def _log(self, task: Task) -> None:
        self._pause_clock()
        self._check_finite()
        steps = (self.step - 1) % self.training.log_every + 1
        means = {name: float(value) / steps for name, value in self.sums.items()}
        self.sums = {}
        seconds = self.seconds["training"] - self.seconds["logged"]
        self.seconds["logged"] = self.seconds["training"]
        tokens = steps * self.settings.global_batch * self.data.sequence_length
        fields = {
            **means,
            "learning_rate": self.optimizer.param_groups[0]["lr"],
            "tokens": self._tokens(),
            "tokens_per_second": tokens / seconds,
            **self.step_fields(),
        }
        if self.accelerator.is_main_process:
            self.metrics.record("step", self.step, **fields)
        task.update(self.step, step_text(fields, self.ratio))

    def _pause_clock(self) -> None:
        """Add the time since training went on, once the device has done what it was given."""
        if self.resumed_at is not None:
            if self.device.type == "cuda":
                torch.cuda.synchronize()
            self.seconds["training"] += time.monotonic() - self.resumed_at
            self.resumed_at = None

    def _check_finite(self) -> None:
        if not all(np.isfinite(float(value)) for value in self.sums.values()):
            raise FloatingPointError(
                f"{self.phase}: the loss or its gradient is not finite at or just before step "
                f"{self.step}; the last checkpoint stands; lower learning_rate or check the data"
            )

    # Evaluation and the ratio.

    def _evaluate(self, task: Task) -> None:
        self._pause_clock()
        realised = None
        if self.segment is not None:
            realised = self.segment.realised_share
            self.mixture.advance(self.segment)
        begin = time.monotonic()
        self.trained().eval()
        losses = domain_losses(
            self.model,
            {name: domain.validation for name, domain in self.data.domains.items()},
            self.accelerator,
            batch_size=self.training.micro_batch,
            precision=self.training.precision,
            on_progress=lambda done, total: task.update(
                self.step, f"evaluating {done}/{total} blocks" if self.reporter.live else ""
            ),
        )
        evaluated = time.monotonic()
        count = self.parameter_count()
        decision = self.policy.update(step=self.step, losses=losses, params=count)
        self.ratio = agreed_ratio(decision.ratio)
        decided = time.monotonic()
        if self.accelerator.is_main_process:
            self.metrics.record(
                "eval",
                self.step,
                loss=losses,
                **asdict(decision),
                realised_share=realised,
                epochs=self.mixture.epochs,
                parameters=count,
                evaluation_seconds=evaluated - begin,
                update_seconds=decided - evaluated,
            )
        self.evaluated = self.step
        steps = min(self.settings.evaluate_every, self.settings.steps - self.step)
        self.segment = self.mixture.plan_segment(self.ratio, steps) if steps else None
        where = f"{self.phase} {self.step}/{self.settings.steps}"
        self.reporter.line(f"{where}  {evaluation_text(losses, self.ratio)}")
        self.after_evaluation()

    # Checkpoints.

    def _save(self) -> None:
        self._pause_clock()
        self._check_finite()
        self.saved = self.step
        if not self.accelerator.is_main_process:
            self.accelerator.wait_for_everyone()
            return
        state = {
            "evaluated": self.evaluated,
            "ratio": self.ratio,
            "policy": self.policy.state_dict(),
            "mixture": self.mixture.state_dict(),
            "segment_steps": self.segment.steps if self.segment else None,
            "stopped": self.stopped,
            "sums": {name: float(value) for name, value in self.sums.items()},
            "seconds": self.seconds,
            "metrics_bytes": self.metrics.size(),
            **self.extra_state(),
        }
        save_checkpoint(
            self.folder / "checkpoints",
            self.phase,
            self.step,
            parameters=self.parameters,
            optimizer=self.optimizer,
            state=state,
            keep=self.training.checkpoint.keep,
        )
        self.accelerator.wait_for_everyone()

    def _load(self, path: Path) -> None:
        state = load_checkpoint(path, self.parameters, self.optimizer)
        self.step = self.saved = state["step"]
        self.evaluated, self.stopped = state["evaluated"], state["stopped"]
        self.ratio, self.sums, self.seconds = state["ratio"], state["sums"], state["seconds"]
        try:
            self.policy.load_state_dict(state["policy"])
            self.mixture.load_state_dict(state["mixture"])
        except ValueError as error:
            raise BadInput(f"{path} does not fit: {error}") from None
        if state["segment_steps"] is not None:
            self.segment = self.mixture.plan_segment(self.ratio, state["segment_steps"])
        self.load_extra_state(state)
        if self.accelerator.is_main_process:
            self.metrics.cut(state["metrics_bytes"])
