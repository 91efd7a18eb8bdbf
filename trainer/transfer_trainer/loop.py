"""The training loop: the same run whatever the membership.

The global batch is fixed. Step s reads rows [sG, (s+1)G) of the run (rows.py); worker r of w takes its share; the loss is the
sum of token losses over the global number of labels, times w where sharding averages gradients over the workers.
Every worker makes the same number of passes; where its rows run out a pass has weight zero. So in float32 the losses
agree through any sequence of world sizes, up to the rounding of sums in another order.
"""

from __future__ import annotations

import contextlib
import logging
import math
import time
from collections.abc import Callable, Mapping
from typing import Any, cast

import torch
from torch import nn
from transformers import AutoTokenizer, PreTrainedModel

from transfer_api.cost import micro_batch_tokens
from transfer_api.errors import ExitCode, TransferError
from transfer_api.progress import Activity, Progress
from transfer_api.spec import AnomalyAction, CheckpointInterval, Compilation, Float8, Sharding
from transfer_api.stage import StageKind, TrainingParameters
from transfer_pod.artifact import ArtifactStore, write_atomically
from transfer_pod.context import PodContext
from transfer_pod.documents import iter_documents
from transfer_pod.model import model_folder
from transfer_trainer.activations import checkpoint_activations, checkpointed_layers
from transfer_trainer.anomaly import Anomaly, AnomalyWatch
from transfer_trainer.attention import choose_attention
from transfer_trainer.batch import BatchReader
from transfer_trainer.checkpoint import Checkpoints
from transfer_trainer.compilation import as_it_is, compile_layers
from transfer_trainer.ema import Ema
from transfer_trainer.events import EventFiles, events_folder
from transfer_trainer.export import export, full_weights, write_model
from transfer_trainer.fence import Fence, Term
from transfer_trainer.float8 import use_float8
from transfer_trainer.interval import Auto, EverySteps, Interval
from transfer_trainer.ledger import LEDGER, STAGE, AnomalyLine, Ledger, SkippedLine, StepLine, Summary, read_ledger
from transfer_trainer.lora import add_adapters, base_model
from transfer_trainer.mfu import Pace, Work, round_peak
from transfer_trainer.model import arithmetic, check_length, summed_loss
from transfer_trainer.optimizer import (
    clip_gradients,
    drop_gradients,
    embedding_steps,
    learning_rate_factor,
    make_optimizer,
    set_learning_rate,
)
from transfer_trainer.parallel import Team, decoder_layers, shard
from transfer_trainer.replicas import Replicas
from transfer_trainer.rows import HALF, digest, joined, row_order, total_steps
from transfer_trainer.snapshot import Snapshots, snapshot_steps
from transfer_trainer.store import RowStore
from transfer_trainer.straggler import WINDOW_STEPS, Computed, ComputeTimer, Stragglers
from transfer_trainer.tracking import Ending, Tracks
from transfer_trainer.validation import HeldOut, bits_per_byte, tokenise
from transfer_trainer.watchdog import Pulse

logger = logging.getLogger(__name__)


class Training:
    """One process's part in one round of a training stage.

    Args:
        context: the pod's task.
        team: the round's processes.
        asked: whether this pod wants the round to end after a save (it leaves, or another pod joins).
        report: where progress goes.
        pulse: where it says that a step has begun, and is done.
    """

    def __init__(
        self, context: PodContext, team: Team, asked: Callable[[], bool], report: Callable[[Progress], None], pulse: Pulse | None = None
    ) -> None:
        self.context, self.team, self.asked, self.report, self.pulse = context, team, asked, report, pulse or Pulse()
        self.parameters = cast(TrainingParameters, context.stage.typed_parameters())
        self.execution = context.stage.execution
        self.section = "spec.pretraining" if context.stage.kind is StageKind.PRETRAINING else "spec.instructionTuning"
        self.artifacts = ArtifactStore(context.storage)
        self.work = self.artifacts.work(context.stage.kind, context.stage.key)
        self.progress = Progress(
            activity=Activity.LOADING, pod=context.pod, stage=context.stage.name, world_size=team.world_size, round=team.round
        )
        self.data_wait = 0.0
        self.stragglers = Stragglers(team.ranks_of_pod, tells_all=team.rank == 0)
        self._computed = Computed()
        self.tracks: Tracks | None = None
        self.fence = Fence.take(self.work, Term.of(context, team.incarnation), team.round) if team.rank == 0 else None
        self._tell()
        self._open_data()
        self._build()
        self._resume()
        self._pace = Pace()

    def run(self) -> bool:
        """Trains to the end and commits the artifact: True. False when it was asked to stop: everything is saved."""
        try:
            done = self._train()
        except TransferError as error:
            if error.exit_code is ExitCode.CANNOT_WORK:  # after all else another round goes on
                self._end_tracks(Ending.FAILED)
            raise
        self._end_tracks(Ending.COMPLETE if done else Ending.LATER)
        return done

    def _train(self) -> bool:
        self._tell(activity=Activity.RUNNING)
        if self.validation_due and not self._validated():
            self._validate()
        self._pace.begin()
        while self.step < self.steps:
            before = self.step
            with self.pulse.step():
                goes_on = self._train_step()
            if not goes_on:
                self._save(wait=True)
                return False
            if self.step <= before:
                continue  # rolled back to where all of the below was done
            self._snapshot()
            last = self.step == self.steps
            if last or self.save_due:
                self._save(wait=False)  # first: who is killed while it validates has lost nothing
            if self.validation_due:
                self._validate()
            if last:
                self._save(wait=True)
        self._finish()
        return True

    # -- preparation

    def _open_data(self) -> None:
        resumed = (self.work / "checkpoints").is_dir()
        # Hashing the rows costs minutes where they are many: once, before anything was learned from them.
        folder = self.artifacts.open(StageKind.DATASET, self.context.stage.inputs["dataset"], verify=self.team.rank == 0 and not resumed)
        self.store = RowStore.open(folder / "rows")
        self.steps = total_steps(self.parameters, self.store.sources, self.execution.max_epochs, self.section)
        order = row_order(self.parameters.seed, self.store.sources)
        self.batches = BatchReader(self.store, order, self.parameters.rows_per_step, self.steps, self.team)
        marks = snapshot_steps(self.parameters, self.steps, self.section)
        self.snapshots = Snapshots(self.artifacts, self.context.stage, marks, self.team, self.fence)
        length = self.store.sequence_length
        self.micro_batch_tokens = micro_batch_tokens(self.execution, gpu=self.team.device.type == "cuda")
        self.micro_rows = max(1, self.micro_batch_tokens // length)
        self._tell(padding_ratio=self.store.padding_ratio)
        self.passes = math.ceil(math.ceil(self.parameters.rows_per_step / self.team.world_size) / self.micro_rows)

    def _build(self) -> None:
        torch.manual_seed(self.parameters.seed)
        self.base = model_folder(self.context)
        model = base_model(self.base, self.parameters.method, self.team, self.section)
        choose_attention(model, self.team, self.parameters.precision, self.store.sequence_length)
        if self.parameters.float8 is Float8.ROWWISE:
            use_float8(model, self.team.device, self.section)
        check_length(model, self.store.sequence_length, self.section)
        if self.parameters.method.adapters:
            assert self.parameters.lora is not None
            model = cast(PreTrainedModel, add_adapters(model, self.parameters.lora, self.parameters.seed, self.section))
        pass_tokens = self.micro_rows * self.store.sequence_length
        checkpoint_activations(model, checkpointed_layers(self.context, self.team, len(decoder_layers(model)), pass_tokens))
        if self.execution.compile is Compilation.LAYERS:
            compile_layers(model, self.team.device, self.section)
        self.flops = Work.of(model, self.store.sequence_length)
        sharding = self.execution.sharding
        self.model: nn.Module = shard(model, self.team, sharding)
        self.replicas = Replicas(self.model) if self.team.world_size > 1 and sharding is Sharding.NONE else None
        self.peak = round_peak(self.team, self.parameters.precision) if self.flops is not None else None
        self.timer = ComputeTimer(decoder_layers(self.model) if self.team.world_size > 1 else (), self.team.device)
        self.optimizer = make_optimizer(cast(PreTrainedModel, self.model), self.parameters)
        self.ema = Ema(self.model, float(self.parameters.ema.decay)) if self.parameters.ema is not None else None
        self.texts = self._held_out()

    def _held_out(self) -> list[HeldOut]:
        if not self.execution.validation_steps or not self.execution.validation_texts:
            return []
        tokenizer = AutoTokenizer.from_pretrained(self.base, local_files_only=True, trust_remote_code=False)
        return [
            tokenise(
                text.name, iter_documents(text, self.context, f"spec.evaluation.texts[{index}]"), tokenizer, self.store.sequence_length
            )
            for index, text in enumerate(self.execution.validation_texts)
        ]

    def _resume(self) -> None:
        self.checkpoints = Checkpoints(
            self.work / "checkpoints", self.context.stage.key, self.team, self.fence,
            trainable_only=self.parameters.method.adapters, kept=self.execution.checkpoints_kept, ema=self.ema,
            replicated=self.replicas is not None,
        )  # fmt: skip
        self.step = self.checkpoints.load(self.model, self.optimizer)
        self.ledger: Ledger | None = None
        self.events: EventFiles | None = None
        lost, productive, loss, highest, failures = 0.0, 0.0, 0.0, 0, 0
        summary = Summary()
        if self.team.rank == 0:
            self.ledger = Ledger(self.work / LEDGER, self.step)
            write_atomically(self.work / STAGE, self.context.stage.model_dump_json(by_alias=True))
            self.snapshots.check(self.step)
            place = events_folder(self.context.storage, self.context.experiment, self.context.stage.name, self.context.stage.key)
            self.events = EventFiles(place, self.step, self._tokens)
            summary = read_ledger(self.work / LEDGER)
            if self.execution.tracking is not None and self.tracks is None:  # it goes on through a roll-back
                self.tracks = Tracks.begin(self.execution.tracking, self.context, self.work, summary)
            lost, productive = summary.lost_steps, summary.productive_seconds
            loss = summary.lines[-1].loss if summary.lines else 0.0
            highest, failures = summary.highest_step, summary.failures
        # Zero on all but rank 0, so that every pod shows the same.
        lost, productive, loss, self.highest_step = self.team.sum(lost, productive, loss, highest)
        self._recall(summary)
        self._tell(
            step=self.step, total_steps=self.steps, tokens=self._tokens, lost_steps=int(lost), productive_seconds=productive,
            loss=loss if self.step else None, skipped_steps=sum(step <= self.step for step in self.watch.decided),
            passed_over=self.checkpoints.torn[:64],
            snapshots=self.snapshots.made(self.step),
        )  # fmt: skip
        if self.execution.checkpoint_interval is CheckpointInterval.AUTO:
            self.interval: Interval = Auto(failures, productive)
        else:
            self.interval = EverySteps(self.execution.checkpoint_steps or max(1, min(500, self.steps // 10)))
        self._tell(checkpoint_interval_seconds=self.interval.seconds)
        if self.checkpoints.last is not None:
            self._tell(checkpoint_step=self.step, checkpoint_time=self.checkpoints.last.time)
            logger.info("going on from step %d of %d with %d processes", self.step, self.steps, self.team.world_size)

    def _recall(self, summary: Summary) -> None:
        """Has every process judge the steps to come by what rank 0 reads of those that were: the same bits on all."""
        policy = self.parameters.anomalies
        self.watch = AnomalyWatch(policy)
        if policy is None:
            return
        losses = [line.loss for line in summary.lines][-policy.window :]
        decided = [line.step for line in summary.anomalies]
        sizes = self.team.tell(len(losses), len(decided))
        told = self.team.sum(*(losses or [0.0] * sizes[0]), *(decided or [0] * sizes[1]), 0.0)  # never nothing at all
        self.watch = AnomalyWatch(policy, told[: sizes[0]], [int(step) for step in told[sizes[0] : sum(sizes)]])

    # -- steps

    def _train_step(self) -> bool:
        """One optimizer step; False, with nothing done, when any process was asked to stop."""
        begin = time.monotonic()
        team, parameters = self.team, self.parameters
        batch = self.batches.read(self.step)
        reading = time.monotonic() - begin
        self.data_wait += reading
        self.timer.take()  # validation runs the layers too
        due = team.rank == 0 and self.interval.due(self.step + 1)
        asked, labels, pairs, *halves, saved, self.save_due = team.sum(
            self.asked(), batch.labels, batch.pairs, *divmod(batch.checksum, HALF), self.checkpoints.done, due
        )
        read = digest(joined(*halves))
        if saved == team.world_size:
            self._note_save()
        if asked:
            return False
        if self.step + 1 in self.watch.decided:
            self._skip(read)
            return True
        factor = learning_rate_factor(self.step, self.steps, float(parameters.warmup), parameters.schedule, float(parameters.decay))
        set_learning_rate(self.optimizer, factor)
        nats, rows = 0.0, 0
        averaged_over = team.world_size if self.replicas is None else 1
        if self.replicas is not None:
            self.replicas.begin()
        passes = batch.passes(self.micro_rows, self.passes, team.device)
        for number, (tokens_BT, positions_BT, targets_BT, weight_B) in enumerate(passes, 1):
            with arithmetic(parameters.precision, team.device):
                loss = summed_loss(self.model, tokens_BT, positions_BT, targets_BT, weight_B, float(parameters.z_loss))
            if self.replicas is not None and number == self.passes:
                self.replicas.last()
            (loss.objective * (averaged_over / max(1.0, labels))).backward()  # type: ignore[no-untyped-call]
            nats += float(loss.nats.detach())
            rows += len(weight_B)
        if self.replicas is not None:
            self.replicas.finish()
        if self.step < embedding_steps(self.steps, float(parameters.embeddings_first)):
            drop_gradients(cast(PreTrainedModel, self.model))
        norm = clip_gradients(self.model, float(parameters.gradient_clipping))
        # The norm of rank 0: replicas on unlike processors may round theirs otherwise, and all must judge alike.
        nats, norm = team.sum(nats, norm if team.rank == 0 else 0.0)
        mean = nats / max(1.0, labels)
        if (anomaly := self.watch.judge(self.step + 1, mean, norm)) is not None:
            self._pass_by(anomaly, read)
            return True
        self.watch.accept(mean)
        self._computed.add(reading + self.timer.take(), rows)
        self.checkpoints.settle()
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        if self.ema is not None:
            self.ema.update()
        self.step += 1
        self._pace.step(self.flops.flops(self._tokens_per_step, labels, pairs) if self.flops is not None else 0.0)
        self._record(mean, norm, float(parameters.learning_rate) * factor, time.monotonic() - begin, reading, read)
        return True

    def _pass_by(self, anomaly: Anomaly, read: str) -> None:
        """Leaves out a step that turned out to be anomalous, as the experiment asks for.

        Raises:
            SpecError: it asks for an end.
        """
        action = self.watch.pass_by(anomaly, self.section, self.parameters.learning_rate)
        self.optimizer.zero_grad(set_to_none=True)
        if self.ledger is not None:
            finite = {name: value if value is None or math.isfinite(value) else None for name, value in anomaly.numbers.items()}
            self.ledger.anomaly(
                AnomalyLine(
                    step=anomaly.step, action=action.value, finite=anomaly.finite, **finite,
                    world_size=self.team.world_size, round=self.team.round, time=time.time(),
                )
            )  # fmt: skip
        rows = self.parameters.rows_per_step
        first = (anomaly.step - 1) * rows
        logger.warning("%s: rows %d to %d are left out (%s)", anomaly, first, first + rows - 1, action.value)
        if action is AnomalyAction.ROLL_BACK:
            self._roll_back()
        else:
            self._skip(read)

    def _skip(self, read: str) -> None:
        """Goes past the next step: weights and optimizer stay as they are."""
        self.step += 1
        if self.ledger is not None:
            self.ledger.skipped(SkippedLine(**self._rows_read(read, time.time())))
        self._tell(step=self.step, tokens=self._tokens, skipped_steps=self.progress.skipped_steps + 1, last_step_time=time.time())

    def _roll_back(self) -> None:
        """Makes model and optimizer anew from the last checkpoint, or from the start where there is none yet."""
        self.pulse.rest()
        if self.checkpoints.running:
            self._note_save()
        self.checkpoints.close()
        self._close_records()
        if self.replicas is not None:
            self.replicas.close()
        del self.model, self.optimizer, self.ema
        self._build()
        self._resume()
        if self.step == 0:
            self._validate()
        self._pace.begin()

    @property
    def _tokens_per_step(self) -> int:
        return self.parameters.rows_per_step * self.store.sequence_length

    @property
    def _tokens(self) -> int:
        """Tokens of the steps so far."""
        return self.step * self._tokens_per_step

    def _rows_read(self, read: str, now: float) -> dict[str, Any]:
        """What the ledger says of any step whose rows were read."""
        rows = self.parameters.rows_per_step
        place = {"step": self.step, "first_row": (self.step - 1) * rows, "rows": rows, "digest": read}
        return place | {"world_size": self.team.world_size, "round": self.team.round, "time": now}

    def _record(self, loss: float, norm: float, rate: float, seconds: float, reading: float, read: str) -> None:
        now = time.time()
        if self.ledger is not None:
            self.ledger.step(
                StepLine(
                    **self._rows_read(read, now), loss=loss, tokens=self._tokens, seconds=seconds, learning_rate=rate, gradient_norm=norm
                )
            )  # fmt: skip
        pace = self._pace.seconds
        self._tell(
            step=self.step, tokens=self._tokens, tokens_per_second=self._tokens_per_step / pace, mfu=self._pace.mfu(self.peak),
            loss=loss, learning_rate=rate, gradient_norm=norm, remaining_seconds=pace * (self.steps - self.step), last_step_time=now,
            data_wait_seconds=self.data_wait,
            productive_seconds=self.progress.productive_seconds + (seconds if self.step > self.highest_step else 0.0),
        )  # fmt: skip
        self._draw(_figures(self.progress, reading / seconds))
        if self.team.world_size > 1 and self.step % WINDOW_STEPS == 0:
            self._compare()

    def _draw(self, figures: Mapping[str, float | None]) -> None:
        """Adds figures after this step to the curves."""
        for curves in (self.events, self.tracks):
            if curves is not None:
                curves.add(self.step, self._tokens, figures)

    def _compare(self) -> None:
        """Shows how long this pod computes by itself, and says who holds the others up."""
        times = self.team.gather(self._computed.take())
        ratio = self.stragglers.judge(times)
        slowest = max(times[rank] for rank in self.stragglers.own)
        self._tell(compute_seconds=slowest * self.parameters.rows_per_step / self.team.world_size, straggler_ratio=ratio)

    @property
    def validation_due(self) -> bool:
        """Whether the held-out texts are measured after this step."""
        every = self.execution.validation_steps
        return self.step in (0, self.steps) or bool(every and self.step % every == 0)

    def _validated(self) -> bool:
        """Whether they were, before this round went on from here."""
        return bool(self.team.tell(self.ledger is not None and self.step in self.ledger.validated)[0])

    def _validate(self) -> None:
        if not self.texts:
            return
        self._tell(activity=Activity.VALIDATING)
        with self._exported(), as_it_is(self.execution.compile):
            found = bits_per_byte(self.model, self.texts, self.team, self.parameters.precision, self.micro_batch_tokens)
        if self.ledger is not None:
            self.ledger.validation(self.step, found)
        metrics = {f"bits_per_byte/{name}": value for name, value in found.items()}
        self._draw(metrics)
        self._tell(activity=Activity.RUNNING, metrics={**self.progress.metrics, **metrics}, last_step_time=time.time())

    # -- saving

    def _save(self, *, wait: bool) -> None:
        """Saves what is trained so far, beside the next steps or, with `wait`, before it returns. A save that still runs is waited for."""
        if self.checkpoints.running:
            self._note_save()
        if self.step == 0 or (self.checkpoints.last is not None and self.checkpoints.last.step == self.step):
            return
        self.interval.begun()
        self.checkpoints.begin(self.step, self.model, self.optimizer, self.ledger.sync if self.ledger is not None else None)
        if wait:
            self._note_save()

    def _note_save(self) -> None:
        """Tells of a save once it is complete on every process."""
        self._tell(activity=Activity.SAVING)
        saved = self.checkpoints.finish()
        self.interval.saved(saved.seconds, saved.stall)
        (interval,) = self.team.tell(round(1000 * (self.interval.seconds or 0)))  # rank 0 decides
        self._tell(
            activity=Activity.RUNNING, checkpoint_step=saved.step, checkpoint_time=saved.time, checkpoint_seconds=saved.seconds,
            checkpoint_stall_seconds=self.checkpoints.stall_seconds, checkpoint_interval_seconds=interval / 1000 or None,
            last_step_time=time.time(),
        )  # fmt: skip

    def _snapshot(self) -> None:
        """Writes the snapshots that are due after this step; no process goes on before they are in place."""
        if due := self.snapshots.due(self.step):
            self._write_snapshots(due)
        if (made := self.snapshots.made(self.step)) != self.progress.snapshots:
            self._tell(snapshots=made)

    def _write_snapshots(self, due: list[int]) -> None:
        self._tell(activity=Activity.SAVING)
        if self.checkpoints.running:
            self._note_save()
        weights = self._weights()
        if self.team.rank == 0:
            for tokens in due:
                self.snapshots.write(
                    tokens, lambda folder: write_model(self.artifacts, self.context.stage, self.base, weights, folder, None)
                )
        self.team.wait(patiently=True)
        logger.info("kept the model of step %d as snapshots %s", self.step, due)
        self._tell(activity=Activity.RUNNING, last_step_time=time.time())

    def _weights(self) -> dict[str, Any]:
        """What is exported of that which was trained, whole, on rank 0; all processes take part."""
        with self._exported():
            weights = full_weights(self.model, adapters=self.parameters.method.adapters)
            # Unless it is sharded they are, on a CPU, the model's own tensors, which hold something else after this.
            whole = self.team.world_size == 1 or self.replicas is not None
            own = self.ema is not None and whole and self.team.device.type == "cpu"
            return {name: weight.clone() for name, weight in weights.items()} if own else weights

    def _exported(self) -> contextlib.AbstractContextManager[None]:
        """In it the model has the weights that are exported: the average, where one is kept."""
        if self.ema is None:
            return contextlib.nullcontext()
        self.checkpoints.settle()  # a copy that is being made is one of the weights that are trained
        return self.ema.applied()

    def _close_records(self) -> None:
        """Closes what process 0 writes of each step."""
        for record in (self.ledger, self.events):
            if record is not None:
                record.close()

    def _end_tracks(self, ending: Ending) -> None:
        if self.tracks is not None:
            self.tracks.close(ending)
            self.tracks = None

    def _finish(self) -> None:
        """Commits the artifact; every process returns only after it is in place."""
        self._tell(activity=Activity.SAVING)
        self.checkpoints.close()
        weights = self._weights()
        if self.fence is not None:
            self._close_records()
            numbers = {"loss": self.progress.loss or 0.0, "steps": self.steps, "tokens": self.progress.tokens}
            numbers |= self.progress.metrics
            export(self.artifacts, self.context.stage, self.base, weights, self.fence, **numbers)
        self.team.wait(patiently=True)
        self._tell(activity=Activity.DONE)

    def _tell(self, **changes: object) -> None:
        self.progress = self.progress.model_copy(update=changes)
        if self.team.local_rank == 0:
            self.report(self.progress)


def _figures(progress: Progress, data_wait: float) -> dict[str, float | None]:
    """The curves of a step besides what is measured on the held-out texts; `data_wait` is the share of its time that went into reading."""
    return {
        "training/loss": progress.loss,
        "training/learning_rate": progress.learning_rate,
        "training/gradient_norm": progress.gradient_norm,
        "speed/tokens_per_second": progress.tokens_per_second,
        "speed/mfu": progress.mfu,
        "speed/data_wait": data_wait,
        "speed/padding": progress.padding_ratio,
        "speed/processes": progress.world_size,
    }
