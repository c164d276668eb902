"""The training loop of both phases.

A segment is the training between two evaluations. The validation losses at its end decide the data
ratio of the next one, whose batches are then all planned at once. A checkpoint holds the state at
the start of the segment and the steps done in it, so that a resumed run sees the same batches.
"""

import logging
import math
import time
from pathlib import Path

import torch
from torch import Tensor

from drpruning.common.console import Task
from drpruning.common.errors import BadInput, Interrupted, TrainingError
from drpruning.common.unknown import Unknown
from drpruning.data import Segment
from drpruning.runs import provenance
from drpruning.runs.lines import End, EvalPoint, SkippedPoint, Start, StepPoint, Warned
from drpruning.training import messages
from drpruning.training.checkpoint import read_state
from drpruning.training.distributed import (
    any_rank,
    broadcast_ratio,
    clip_gradients,
    hardware,
)
from drpruning.training.identity import check_identity
from drpruning.training.objective import Losses
from drpruning.training.optimizer import (
    MicroBatch,
    learning_rate_factor,
    set_learning_rate,
    step_seed,
    step_unless,
)
from drpruning.training.rows import Rows
from drpruning.training.signals import InterruptGuard
from drpruning.training.skipped_steps import failure_text, skipped_text
from drpruning.training.tensors import read_tensors, write_tensors
from drpruning.training.trainer_state import TrainerState
from drpruning.training.validation import domain_losses

logger = logging.getLogger(__name__)


class Trainer(TrainerState):
    """One phase of training of a plain causal language model; pruning adds to it."""

    # The loop.

    def run(self) -> None:
        """Train to the last step or until `stopped`, from the latest checkpoint if there is one.

        Evaluation comes before saving, so that a checkpoint at the end of a segment already holds
        the next one's ratio and plan, and before the question whether the phase is done, because
        it may set `stopped`. Whether to stop for a signal is agreed on by all ranks once a step,
        as a rank that left alone would leave the others waiting for it.

        Raises:
            Interrupted: A signal asked to stop; the state is saved.
            TrainingError: The numbers are not finite, or nothing can be saved.
        """
        self._begin()
        self.watch.start()
        total = self.settings.steps
        with (
            InterruptGuard() as guard,
            self.reporter.task(self.phase, total, self.step, view=self.reporter.view) as task,
        ):
            while True:
                if self.evaluated < self.step and self.step == self._segment_end():
                    self._evaluate(task)
                self.watch.read_total()
                stop = any_rank(self.accelerator, guard.requested)
                done = self.step == total or self.stopped is not None
                if self.step > self.saved and (done or stop or self._is_due()):
                    # Where the phase is done, its model keeps the weights without a checkpoint.
                    self._save(resumable=stop)
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
            seconds, tokens = self.watch.total, self._tokens()
            self.record(End, total_seconds=seconds, tokens=tokens, stopped=self.stopped)
            self.metrics.size()  # on the disk before the phase's result is

    def _begin(self) -> None:
        """Resume from the latest checkpoint, or start from scratch.

        The warm-up comes after the weights are in place, as DDP keeps the buckets of its first
        pass, and all ranks wait for the slowest before the first step is timed.
        """
        path = self.checkpoints.latest()
        if path is not None:
            self._resume(path)
            self.reporter.line(f"{self.phase}: resuming from step {self.step}")
        else:
            self.start_from_scratch()
            if self.accelerator.is_main_process:
                self.metrics.drop_phase()
                self._record_start()
        rows = self.micro_batches[0].rows
        self.distributed.warm_up(rows.stop - rows.start, self.data.sequence_length)
        self.accelerator.wait_for_everyone()

    def _record_start(self) -> None:
        self.record(
            Start,
            total_steps=self.settings.steps,
            global_batch=self.settings.global_batch,
            sequence_length=self.data.sequence_length,
            parameters=self.parameter_count(),
            final_parameters=self.final_parameter_count(),
            versions=provenance.versions(),
            commit=provenance.commit(),
            teachers=self.objective.teachers,
            hardware=hardware(self.accelerator.device, self.accelerator.num_processes),
        )

    def _segment_end(self) -> int:
        return 0 if self.segment is None else self.evaluated + self.segment.steps

    def own_rows(self, segment: Segment, index: int) -> Rows:
        """This rank's rows of a segment's global batch; those of others are not read."""
        rows = slice(self.micro_batches[0].rows.start, self.micro_batches[-1].rows.stop)
        domains, ids = (column[rows] for column in segment.batch(index))
        blocks_BT = torch.from_numpy(self.data.train_blocks(segment.domains, domains, ids))
        blocks_BT = blocks_BT.to(self.device, non_blocking=True)
        return Rows(blocks_BT, segment.domains, domains, ids)

    def _train_step(self) -> None:
        self.watch.resume()
        assert self.segment is not None  # noqa: S101 - planned by the evaluation before
        batch = self.own_rows(self.segment, self.step - self.evaluated)
        torch.manual_seed(step_seed(self.training.seed, self.step, self.accelerator.process_index))
        self.prepare_step()
        self.model.train()
        self.optimizer.zero_grad(set_to_none=True)
        first = self.micro_batches[0].rows.start
        numbers: dict[str, Tensor] = {}
        by_domain = torch.zeros((), dtype=torch.float64, device=self.device)
        for piece in self.micro_batches:
            rows = batch[piece.rows.start - first : piece.rows.stop - first]
            share = len(rows) / len(batch)
            losses = self._backward(piece, rows, share)
            for name, value in losses.parts.items():
                numbers[name] = numbers.get(name, 0.0) + (share * value).double()
            by_domain = by_domain + losses.by_domain
        numbers |= self.finish_gradients()
        numbers["gradient_norm"] = clip_gradients(
            self.parameters.values(), self.settings.gradient_clip
        )
        set_learning_rate(self.optimizer, learning_rate_factor(self.step, self.settings))
        self.step += 1
        values = torch.stack([value.double() for value in numbers.values()])
        values = self.accelerator.reduce(torch.cat([values, by_domain.flatten()]), reduction="mean")
        skipped = self.numbers.add(self.step, list(numbers), values[: len(numbers)])
        if by_domain.numel():
            ranks = self.accelerator.num_processes
            self.divergence.add(values[len(numbers) :].view(2, -1), skipped, ranks)
        step_unless(self.optimizer, skipped)

    def _backward(self, piece: MicroBatch, rows: Rows, share: float) -> Losses:
        """Gradients of one micro-batch, which is a share of this rank's rows."""
        last = piece is self.micro_batches[-1]
        progress = self.step / max(1, self.settings.steps - 1)
        with self.distributed.gradients_shared(last=last):
            self.prepare_pass(piece.part)
            losses = self.objective.losses(
                self.model, rows, self.distributed.precision, share=share, progress=progress
            )
            losses.total.backward()  # type: ignore[no-untyped-call]
        return losses

    def _tokens(self) -> int:
        return self.step * self.settings.global_batch * self.data.sequence_length

    def _log(self, task: Task) -> None:
        self.watch.pause()
        self._synchronize()
        steps = self.numbers.counted + self.numbers.skipped
        tokens = steps * self.settings.global_batch * self.data.sequence_length
        fields = {
            **self.numbers.means(),
            "skipped": self.numbers.skipped,
            "learning_rate": self.optimizer.param_groups[0]["lr"],
            "tokens": self._tokens(),
            "tokens_per_second": tokens / self.watch.lap(),
            **self.step_fields(),
        }
        self.numbers.reset()
        if self.accelerator.is_main_process:
            self.record(StepPoint, **fields)
        task.update(self.step, messages.step_text(fields, self.ratio))

    def _synchronize(self) -> None:
        """Wait for the device and record which steps were skipped.

        Raises:
            TrainingError: Too many in a row.
        """
        found = self.numbers.synchronize()
        for skipped in found:
            assert self.segment is not None  # noqa: S101 - synchronized before the next one is planned
            blocks = self.segment.blocks(skipped.step - 1 - self.evaluated)
            if self.accelerator.is_main_process:
                self.record(SkippedPoint, skipped.step, **skipped.numbers, blocks=blocks)
            if skipped.in_a_row == self.training.skip_limit:
                raise TrainingError(failure_text(self.phase, skipped, blocks, self.saved))
        if found:
            self.warn(skipped_text(found), record=False)

    # Evaluation and the ratio.

    def _evaluate(self, task: Task) -> None:
        self.watch.pause()
        self._synchronize()
        ended = self.segment
        used_up = {} if ended is None else ended.used_up
        if ended is not None:
            self.mixture.advance(ended)
        begin = time.monotonic()
        self.model.eval()
        losses = domain_losses(
            self.model,
            {name: domain.validation for name, domain in self.data.domains.items()},
            self.accelerator,
            batch_size=self.training.micro_batch,
            precision=self.distributed.precision,
            on_progress=lambda done, total: task.show_activity(
                f"validation: {done} of {total} blocks"
            ),
        )
        task.show_activity("")
        steered = {name: losses[name] for name in self.policy.domains}  # not those of share 0
        if not any(map(math.isfinite, steered.values())):
            reason = messages.no_finite_loss_text(self.phase, self.step, losses, self.saved)
            raise TrainingError(reason)
        evaluated = time.monotonic()
        count = self.parameter_count()
        # The shares of the batches themselves, which are the same on every rank: counts are whole,
        # and a domain that is exhausted may get less than its share of the ratio.
        realised = None if ended is None else ended.realised_share
        divergence = None if ended is None else self.divergence.take(ended.domains)
        decision = self.policy.update(self.step, steered, params=count, shares=realised)
        self.ratio = broadcast_ratio(decision.ratio)
        decided = time.monotonic()
        if self.accelerator.is_main_process:
            self.record(
                EvalPoint,
                loss=losses,
                **EvalPoint.decided(decision, self.untrained_reference_loss),
                realised_share=Unknown() if realised is None else realised,
                epochs=self.mixture.epochs,
                used_up=used_up,
                parameters=count,
                evaluation_seconds=evaluated - begin,
                update_seconds=decided - evaluated,
                divergence=divergence,
            )
        self.evaluated = self.step
        where = f"{self.phase} {self.step}/{self.settings.steps}"
        above = messages.above_teacher(steered, self.teacher_loss)
        self.reporter.line(f"{where}  {messages.evaluation_text(losses, self.ratio, above)}")
        vocabulary = self.vocabulary_size if self.step == 0 else None
        for message in messages.evaluation_warnings(losses, self.ratio, used_up, vocabulary):
            self.warn(message)
        self._begin_segment()
        if self.segment is None and above is not None and above < messages.LEVEL_WITH_TEACHER:
            self.warn(messages.level_with_teacher_text(self.phase, above))

    def _begin_segment(self) -> None:
        """Plan the data up to the next evaluation, unless the phase ends here."""
        left = self.settings.steps - self.step
        self.stopped = self.mixture.exhausted() if left else None
        self.after_evaluation()
        self.segment = None
        if self.stopped is not None:
            self.reporter.line(f"{self.phase}: ends at step {self.step}: {self.stopped}")
        elif left:
            steps = min(self.settings.evaluate_every, left)
            self.segment = self.mixture.plan_segment(self.ratio, steps)

    # Checkpoints.

    def _resume(self, path: Path) -> None:
        """Restore a verified checkpoint of this phase, tensors and logs included.

        Identity and step are checked first: nothing changes, and no log is cut back, unless the
        checkpoint is one of this run.

        Raises:
            BadInput: The checkpoint is of another run, or of a later step than there will be.
        """
        state = read_state(path)
        accept = self.training.checkpoint.accept_changes
        changes = check_identity(path, state["identity"], self.identity, accept=accept)
        if state["step"] > self.settings.steps:
            raise BadInput(
                f"{self.phase}.steps: {self.settings.steps}, but {path} has done {state['step']}; "
                "write more, or remove it to resume from an earlier one"
            )
        read_tensors(path, self.parameters, self.optimizer)
        try:
            self.load_state_dict(state)
        except ValueError as error:
            raise BadInput(f"{path} is of another run: {error}") from None
        if self.accelerator.is_main_process and not self.metrics.truncate(state["metrics_bytes"]):
            lost = f"{self.metrics.path} has lost lines from before step {self.step}"
            self.warn(lost, record=False)
        if changes and self.accelerator.is_main_process:
            self._record_start()
            self.record(Warned, message=f"resumed in spite of changes: {'; '.join(changes)}")

    def _is_due(self) -> bool:
        """Whether to save now; after a skipped step, saving waits for the next one that is not."""
        self.save_due = self.checkpoints.is_due(self.step) or self.save_due
        if not self.save_due:
            return False
        self._synchronize()
        return self.numbers.in_a_row == 0

    def _save(self, *, resumable: bool) -> None:
        """Save a checkpoint; where that fails, training continues.

        Args:
            resumable: Whether the command ends after it, so that only a checkpoint keeps the steps.

        Raises:
            TrainingError: The weights are not finite, or the command ends and they are not saved.
        """
        self.watch.pause()
        self._synchronize()
        # Before anything is written: a checkpoint of such weights would push out a good one.
        if lost := self.distributed.nonfinite_parameters():
            raise TrainingError(
                messages.nonfinite_weights_text(self.phase, self.step, lost, self.saved)
            )
        self.save_due = False
        error = self.checkpoints.save(
            self.step,
            self.state_dict,
            lambda folder: write_tensors(folder, self.parameters, self.optimizer),
        )
        if error is None:
            self.saved = self.step
            return
        message = messages.unsaved_text(
            self.phase, self.step, error, self.saved, self.folder.checkpoints, resumable=resumable
        )
        if resumable:
            raise TrainingError(message)
        if self.accelerator.is_main_process:
            logger.warning(message)
