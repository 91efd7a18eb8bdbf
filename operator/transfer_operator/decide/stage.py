"""One stage: judge its pods, move its records on, ask for what is missing.

`advance` runs down one list of steps. Each looks at the pods of the current attempt and either lets the next one look too or
settles the matter: the stage is complete, it fails, or its attempt begins again.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta

from transfer_api.errors import ExitCode
from transfer_api.progress import Progress, ResultMessage
from transfer_api.spec import ExperimentSpec
from transfer_api.stage import StagePlan
from transfer_api.status import ArtifactStatus, Cause, Reason, Restarts, StageState, StageStatus, WorkerRecord
from transfer_operator.decide.decision import Action, CreatePod, DeletePod, Event, Refusal
from transfer_operator.decide.snapshot import Pod, PodName, PodPhase, Role, Settings
from transfer_operator.decide.verdict import RAN_OUT, Replace, Verdict, verdict

FIRST_BACKOFF = timedelta(seconds=10)
LONGEST_BACKOFF = timedelta(minutes=5)
ECHO = timedelta(minutes=1)
LAST_WORDS = timedelta(seconds=30)
"""Time in which the pods of a complete stage end by themselves, so that their logs are whole and stay readable."""
OUT_OF_MEMORY_WAYS = (
    "lower microBatchTokens or sequenceLength, set activationCheckpointing: Always, use method LoRA, or "
    "raise workers.resources.limits.memory"
)
OVERDUE = timedelta(minutes=1)
"""How long after its grace a pod that was told to go is waited for: a node that answers has killed it long before."""
PATIENCE = timedelta(seconds=30)
"""How long volumes and images may take before a pod counts as one that waits for them."""
MOST_PASSED_OVER = 64
"""As many as the status has room for."""
WHY = 400
"""Most characters of why a judge did not answer that stand in a message."""


@dataclass(frozen=True, kw_only=True)
class Surroundings:
    """What a stage may know besides itself."""

    spec: ExperimentSpec
    settings: Settings
    now: datetime
    spent: Restarts
    """Restarts of the other stages: budgets are the experiment's."""
    note_progress: bool = True
    """Whether progress alone is worth a status write now."""
    asked_since: datetime | None = None
    reachable: bool = True
    """Both as in the snapshot."""


@dataclass(kw_only=True)
class Step:
    """What one stage comes to in one call."""

    plan: StagePlan
    around: Surroundings
    status: StageStatus
    pods: tuple[Pod, ...]
    actions: list[Action] = field(default_factory=list)
    events: list[Event] = field(default_factory=list)
    refusal: Refusal | None = None
    wake: list[datetime] = field(default_factory=list)

    def change(self, **fields: object) -> None:
        """Moves the record on."""
        self.status = self.status.model_copy(update=fields)

    def delete(self, pod: Pod) -> None:
        """Asks for the removal of a pod, once, unless that is under way."""
        asked = any(action.name == pod.name for action in self.actions if isinstance(action, DeletePod))
        if not pod.terminating and not asked:
            grace = 0 if pod.ended else self.around.settings.grace_seconds
            self.actions.append(DeletePod(name=pod.name, grace_seconds=grace))

    def name(self, record: WorkerRecord) -> PodName:
        """The pod that a record asks for."""
        kind, key, attempt = self.plan.kind.value, self.plan.key, self.status.attempt
        return PodName(stage=key, kind=kind, attempt=attempt, index=record.index, generation=record.generation)

    @property
    def rendezvous(self) -> PodName:
        """The rendezvous pod of the current attempt."""
        return PodName(stage=self.plan.key, kind=self.plan.kind.value, attempt=self.status.attempt, role=Role.RENDEZVOUS)

    def pod(self, name: PodName) -> Pod | None:
        """The pod of that name, if there is one."""
        return next((pod for pod in self.pods if pod.name == name), None)

    def wanted(self) -> Iterator[tuple[WorkerRecord, Pod | None]]:
        """The records that ask for a pod, each with its pod."""
        for record in self.status.workers:
            if not record.retired:
                yield record, self.pod(self.name(record))

    @property
    def last_crashes(self) -> tuple[Pod, ...]:
        """Of each worker of the attempt the last pod that failed by itself: it holds nothing but its log, which would go with it."""
        mine = [pod for pod in self.pods if pod.name.role is Role.WORKER and pod.name.attempt == self.status.attempt]
        failed = [pod for pod in mine if pod.ended and not (pod.disrupted or pod.lost) and pod.exit_code not in (None, 0, ExitCode.SAVED)]
        return tuple({pod.name.index: pod for pod in sorted(failed, key=lambda pod: pod.name.generation)}.values())

    @property
    def desired(self) -> int:
        """Pods that the stage should have, besides the rendezvous."""
        return self.plan.pods(self.around.spec.workers.replicas)

    @property
    def min_nodes(self) -> int:
        """Workers with which training goes on, never more than are wanted; one of those that only share work does it all."""
        return min(self.around.spec.workers.min, self.desired) if self.plan.kind.elastic else 1

    @property
    def meets(self) -> bool:
        """Whether the pods of the attempt meet at a rendezvous; a worker that will always be alone needs none."""
        return self.plan.kind.elastic and self.status.max_workers > 1


def begin(step: Step) -> None:
    """Begins a new attempt: new pods, new rendezvous id, progress kept."""
    now = step.around.now
    step.change(
        state=StageState.RUNNING,
        attempt=step.status.attempt + 1,
        workers=[WorkerRecord(index=index) for index in range(step.desired)],
        max_workers=max(step.plan.pods(step.around.spec.workers.max or 0), step.desired),
        rendezvous_seen=False,
        start_time=step.status.start_time or now,
        retry_time=step.status.retry_time if step.status.retry_time and step.status.retry_time > now else None,
        below_min_since=None,
        last_step_time=now,
    )
    for pod in step.pods:
        step.delete(pod)
    create_missing(step)


def advance(step: Step) -> None:
    """Moves a running stage on by one call."""
    if not step.status.workers:  # resumed before the suspension was over
        begin(step)
        return
    incidents = judge_workers(step)
    over = judge_rendezvous(step) or next((incident for *_, incident in incidents if incident.attempt_over), None)
    if step.refusal is not None:
        return
    if over is not None:  # the ends of its workers are its echo
        restart(step, over)
        return
    if not replace_workers(step, incidents):
        return
    if step.desired > step.status.max_workers:
        restart(
            step, Replace(cause=Cause.SAVED, message=f"{step.desired} workers are wanted; the rendezvous was for {step.status.max_workers}")
        )
        return
    resize(step)
    if stalled(step):
        seconds = step.around.spec.deadlines.stall_seconds
        restart(step, Replace(cause=Cause.STALL, message=f"no step for {seconds} s while pods ran"))
    elif below_min_for_too_long(step):
        give_back(step)
    else:
        check_startup(step)
        remove_strangers(step)  # before its successor is made, so that no index ever has two pods that live
        create_missing(step)


def suspend(step: Step) -> None:
    """Asks every pod to save and end; the stage is suspended once they are gone, or cannot be waited for any longer.

    From now on no pod is wanted, so none that goes is an incident, whether or not the experiment is resumed meanwhile.
    """
    step.refusal = next((result for pod in step.pods if isinstance(result := _judge(pod), Refusal)), None)
    for pod in step.pods:
        step.delete(pod)
    now, grace = step.around.now, timedelta(seconds=step.around.settings.grace_seconds)
    going = [pod for pod in step.pods if not pod.ended and not pod.refused]
    silent = [pod for pod in going if is_silent(pod, now)]
    step.wake += [(pod.gone_by or now + grace) + OVERDUE for pod in going if pod not in silent]
    state = StageState.SUSPENDED if going == silent else StageState.RUNNING
    step.change(state=state, workers=[], rendezvous_seen=False, retry_time=None, below_min_since=None)
    if state is StageState.SUSPENDED and silent:
        names = ", ".join(str(pod.name) for pod in silent)
        step.change(message=f"suspended without the end of {names}: the node does not answer, and may still run what was there"[:1024])


def is_silent(pod: Pod, now: datetime) -> bool:
    """Whether nobody will tell the end of a pod that was told to go: its node was given up, or lets the pod outlive its grace.

    It may still run there. So may any pod that is replaced, and what both of them save is fenced.
    """
    return pod.terminating and (pod.lost or (pod.gone_by is not None and now >= pod.gone_by + OVERDUE))


def complete(step: Step, pod: Pod) -> None:
    """Records the artifact that a pod named."""
    assert pod.result is not None
    assert pod.result.artifact is not None
    artifact = pod.result.artifact
    step.change(
        state=StageState.COMPLETE,
        completion_time=step.around.now,
        artifact=ArtifactStatus(path=artifact.path, digest=artifact.digest, reused=pod.result.reused, provisional=pod.result.provisional),
        productive_seconds=max(step.status.productive_seconds, round(pod.result.productive_seconds)),
        lost_steps=max(step.status.lost_steps, pod.result.lost_steps),
        last_step=max(step.status.last_step, pod.result.step),
        retry_time=None,
        message=left_out(pod.result),
    )
    step.events.append(Event(reason="StageComplete", message=f"{step.plan.name}: {artifact.path}"))
    if pod.result.provisional:
        step.events.append(Event(reason="AnswersNotJudged", message=f"{step.plan.name}: {left_out(pod.result)}", warning=True))


def left_out(result: ResultMessage) -> str:
    """What is missing of a stage that is complete all the same."""
    if not result.provisional:
        return ""
    why = f" ({result.message[:WHY].rstrip('.')})" if result.message else ""
    return (
        f"{result.unjudged} answers have no scores, since a judge did not answer{why}; all else is kept, and another run asks only for them"
    )


def let_end(step: Step) -> None:
    """Lets the pods of a complete stage end by themselves, and the store after them; those that ended stay for their logs."""
    for pod in step.pods:
        if overstays(pod, step.pods, step.status.completion_time, step.around.now):
            step.delete(pod)
        elif pod.alive:
            step.wake.append((step.status.completion_time or step.around.now) + LAST_WORDS)


def overstays(pod: Pod, pods: Iterable[Pod], completed: datetime | None, now: datetime) -> bool:
    """Whether a pod lives that should not: its stage is not complete (`completed` is None) or long so, or it is a store alone."""
    others = any(other.alive and other.name.role is Role.WORKER for other in pods if other.name.stage == pod.name.stage)
    alone = pod.name.role is Role.RENDEZVOUS and not others
    return pod.alive and (completed is None or alone or now - completed >= LAST_WORDS)


def note_progress(step: Step) -> None:
    """Takes the highest step that any pod tells of, the snapshots and the damaged checkpoints; a new highest ends the back-off."""
    best = latest_progress(step.pods)
    if best is None:
        return
    if set(best.snapshots) - set(step.status.snapshots):
        step.change(snapshots=sorted({*step.status.snapshots, *best.snapshots}))
    damaged = set(best.passed_over) - set(step.status.passed_over)
    if damaged:
        step.change(passed_over=sorted({*step.status.passed_over, *damaged})[-MOST_PASSED_OVER:])
    for number in sorted(damaged):
        message = f"{step.plan.name}: the checkpoint of step {number} is damaged and was passed over; the log of {best.pod} says why"
        step.events.append(Event(reason="CheckpointPassedOver", message=message, warning=True))
    if not (step.around.note_progress or best.step == best.total_steps):
        return
    if best.step > step.status.last_step:
        step.change(last_step=best.step, last_step_time=step.around.now, fruitless=0, retry_time=None)
    step.change(
        productive_seconds=max(step.status.productive_seconds, round(best.productive_seconds)),
        lost_steps=max(step.status.lost_steps, best.lost_steps),
    )


def latest_progress(pods: tuple[Pod, ...]) -> Progress | None:
    """The progress of the pod that is furthest: in the newest attempt and round, at the highest step.

    Of each worker only the newest generation that tells any: pods without a rendezvous all begin with round 0, and one that crashed in a
    later round would be taken for the furthest for ever.
    """
    newest: dict[tuple[int, int], tuple[PodName, Progress]] = {}
    for pod in sorted(pods, key=lambda pod: pod.name.generation):
        if pod.progress is not None:
            newest[pod.name.attempt, pod.name.index] = pod.name, pod.progress
    found = max(newest.values(), key=lambda one: (one[0].attempt, one[1].round, one[1].step), default=None)
    return found[1] if found else None


Incident = tuple[WorkerRecord, Pod | None, Replace]


def judge_workers(step: Step) -> list[Incident]:
    """Finds the incidents of the wanted generations. Nothing is counted yet: where one worker says why it cannot work, the
    others' crashes are its echo.
    """
    incidents: list[Incident] = []
    for record, pod in list(step.wanted()):
        result = _judge_wanted(pod, record.seen)
        if isinstance(result, Refusal):
            step.refusal = step.refusal or result
        elif isinstance(result, Replace):
            incidents.append((record, pod, result))
        elif pod is not None and not record.seen and not pod.refused:
            put(step, record.model_copy(update={"seen": True}))
    return incidents


def judge_rendezvous(step: Step) -> Replace | None:
    """Why the workers have no store to meet at any more; None while they have one, or it is yet to come."""
    if not step.meets:
        return None
    pod = step.pod(step.rendezvous)
    result = _judge_wanted(pod, step.status.rendezvous_seen)
    if isinstance(result, Refusal):
        step.refusal = step.refusal or result
    elif isinstance(result, Replace):
        return Replace(cause=result.cause, message=f"rendezvous: {result.message}")
    elif pod is not None and not step.status.rendezvous_seen and not pod.refused:
        step.change(rendezvous_seen=True)
    return None


def _judge_wanted(pod: Pod | None, seen: bool) -> Verdict | None:
    if pod is not None:
        return _judge(pod)
    return Replace(cause=Cause.INFRASTRUCTURE, message="the pod is gone without a trace") if seen else None


def _judge(pod: Pod) -> Verdict | None:
    """None for a pod that lives."""
    return None if pod.alive else verdict(pod)


def replace_workers(step: Step, incidents: list[Incident]) -> bool:
    """Each incident counts once and moves one record on; False where that spends a budget.

    What ran out of memory goes first: it explains the crashes beside it.
    """
    for record, pod, incident in sorted(incidents, key=lambda one: not one[2].out_of_memory):
        if pod is None or not is_echo(step, pod, incident):
            count(step, incident, pod)
        if step.refusal is not None:
            return False
        replace(step, record, incident, rejected=pod is not None and pod.rejected)
    return True


def is_echo(step: Step, pod: Pod, incident: Replace) -> bool:
    """Whether a crash belongs to one that was counted already.

    Workers that run in step crash together, within seconds; a budget must not depend on how many of them there are. The
    pods that replace them are younger than the crash, so whatever they do counts again.
    """
    crash = step.status.crash_time
    if crash is None or incident.cause is not Cause.APPLICATION or (incident.out_of_memory and not step.status.out_of_memory):
        return False
    return pod.created < crash and step.around.now - crash <= ECHO


def replace(step: Step, record: WorkerRecord, incident: Replace, *, rejected: bool = False) -> None:
    """Asks for the next generation of one worker: at once, or, where node after node rejects it, after a while."""
    rejections = record.rejections + 1 if rejected else 0
    wait = backoff(rejections)
    new = WorkerRecord(
        index=record.index, generation=record.generation + 1, cause=incident.cause, message=incident.message[:512],
        rejections=rejections, retry_time=step.around.now + wait if wait else None,
    )  # fmt: skip
    put(step, new)
    words = f"{step.name(record)}: {incident.message}"
    step.change(message=words[:1024])
    step.events.append(Event(reason="WorkerReplaced", message=f"{words} ({incident.cause})", warning=incident.cause is not Cause.SAVED))


def put(step: Step, record: WorkerRecord) -> None:
    """Puts a record in the place of the one of its index."""
    step.change(workers=[record if old.index == record.index else old for old in step.status.workers])


def count(step: Step, incident: Replace, pod: Pod | None = None) -> None:
    """Counts an incident, backs off where our own code keeps failing, and refuses when a budget is spent."""
    restarts = step.status.restarts.plus(incident.cause)
    step.change(restarts=restarts, out_of_memory=step.status.out_of_memory + incident.out_of_memory)
    if incident.cause is Cause.APPLICATION:
        step.change(crash_time=step.around.now)
    if incident.cause in (Cause.APPLICATION, Cause.STALL):
        step.change(fruitless=step.status.fruitless + 1)
        if wait := backoff(step.status.fruitless):
            step.change(retry_time=step.around.now + wait)
    limit = getattr(step.around.spec.restarts, incident.cause.value, None)
    spent = (step.around.spent + restarts).count(incident.cause)
    if incident.out_of_memory and step.status.out_of_memory > 1:
        reason = Reason.OUT_OF_MEMORY
        words = f"ran out of memory twice; {OUT_OF_MEMORY_WAYS if incident.message == RAN_OUT else incident.message}"
    elif limit is not None and spent > limit:
        reason = Reason.RESTART_LIMIT_EXCEEDED
        words = f"{incident.message}; the {incident.cause} budget of {limit} restarts is spent (spec.restarts.{incident.cause})"
    else:
        return
    name, code = (str(pod.name), pod.exit_code) if pod is not None else ("", None)
    step.refusal = Refusal(reason=reason, message=f"{step.plan.name}: {words}", pod=name, exit_code=code)


def backoff(fruitless: int) -> timedelta:
    """Wait before the try after so many failures in a row: 0, 10, 20, 40 … 300 s."""
    if fruitless <= 1:
        return timedelta()
    factor: int = 2 ** min(fruitless - 2, 10)
    return min(LONGEST_BACKOFF, FIRST_BACKOFF * factor)


def restart(step: Step, incident: Replace) -> None:
    """Counts an incident of the whole attempt and begins the next one."""
    count(step, incident)
    step.events.append(Event(reason="AttemptRestarted", message=f"{step.plan.name}: {incident.message} ({incident.cause})", warning=True))
    if step.refusal is None:
        step.change(message=incident.message[:1024])
        begin(step)


def stalled(step: Step) -> bool:
    """Whether enough pods run and yet no step was done for too long.

    A step that is done again counts as one: after a crash the highest step seen is not passed before the next checkpoint is. Only who
    could have told of a step is blamed for none: not before the pods are asked, and never where no pod has ever answered, as behind a
    policy that lets nobody ask.
    """
    now = step.around.now
    running = [pod for _, pod in step.wanted() if pod is not None and pod.alive and pod.phase is PodPhase.RUNNING]
    if len(running) < step.min_nodes:
        return False
    enough = sorted(pod.started or pod.created for pod in running)[step.min_nodes - 1]
    answers = [pod.progress for pod in running if pod.progress is not None]
    if not (answers or step.status.last_step or step.around.reachable):
        return False
    told = [answer.last_step_time for answer in answers if answer.last_step_time is not None]
    steps = [min(now, datetime.fromtimestamp(time, UTC)) for time in told]  # clocks differ: none is ahead of ours
    asked = step.around.asked_since or enough if not told else enough
    return _overdue(step, max([enough, asked, step.status.last_step_time or enough, *steps]), step.around.spec.deadlines.stall_seconds)


def below_min_for_too_long(step: Step) -> bool:
    """Whether too few workers hold nodes for too long. Pods that all wait hold nothing and go on waiting."""
    running = sum(1 for _, pod in step.wanted() if pod is not None and pod.alive and pod.phase is PodPhase.RUNNING)
    if running == 0 or running >= step.min_nodes:
        if step.status.below_min_since is not None:
            step.change(below_min_since=None)
        return False
    if step.status.below_min_since is None:
        step.change(below_min_since=step.around.now)
    assert step.status.below_min_since is not None
    return _overdue(step, step.status.below_min_since, step.around.spec.deadlines.below_min_seconds)


def give_back(step: Step) -> None:
    """Releases the nodes for a while, so that two half-started experiments cannot block each other."""
    # Different keys wait differently long: the one that comes back first finds room for all of its workers.
    wait = timedelta(seconds=30 + int(step.plan.key[:4], 16) % 60)
    step.change(state=StageState.WAITING, retry_time=step.around.now + wait, below_min_since=None, workers=[])
    step.change(message=f"fewer than {step.min_nodes} workers could run; their nodes are given back for {wait.seconds} s")
    step.events.append(Event(reason="GaveNodesBack", message=f"{step.plan.name}: {step.status.message}", warning=True))
    step.wake.append(step.around.now + wait)


def resize(step: Step) -> None:
    """Retires the highest indices when fewer workers are wanted; brings them back, or adds new ones, when more are."""
    known = {record.index for record in step.status.workers}
    for record in step.status.workers:
        if record.index >= step.desired and not record.retired:
            pod = step.pod(step.name(record))
            if pod is not None:
                step.delete(pod)
            put(step, record.model_copy(update={"retired": True}))
        elif record.index < step.desired and record.retired:
            # The old pod may still be saving: its name is taken, so the index comes back as the next generation.
            put(step, WorkerRecord(index=record.index, generation=record.generation + 1, cause=Cause.SAVED, message="scaled up"))
    added = [WorkerRecord(index=index) for index in range(step.desired) if index not in known]
    if added:
        step.change(workers=[*step.status.workers, *added])


def check_startup(step: Step) -> None:
    """Fails a stage whose pods do not start, unless enough others train meanwhile."""
    wanted = [pod for _, pod in step.wanted() if pod is not None]
    if step.plan.shared and sum(1 for pod in wanted if pod.phase is PodPhase.RUNNING) >= step.min_nodes:
        wanted = []
    if step.meets and (store := step.pod(step.rendezvous)) is not None:
        wanted.append(store)
    limit = step.around.spec.deadlines.startup_seconds
    # The summary begins to tell of these then, which may be when nothing else happens.
    soon = [pod.created + PATIENCE for pod in wanted if pod.alive and pod.on_its_way]
    step.wake += [moment for moment in soon if moment > step.around.now]
    for pod in wanted:
        if pod.alive and not pod.queued and pod.phase is PodPhase.PENDING and _overdue(step, pod.placed or pod.created, limit):
            message = f"{pod.name} did not start in {limit} s: {pod.waiting or 'no reason given'}"
            step.refusal = Refusal(reason=Reason.STARTUP_DEADLINE_EXCEEDED, pod=str(pod.name), message=message)
            return


def create_missing(step: Step) -> None:
    """Asks for every pod that a record wants and that is not there. Creating one twice is harmless: the name is the same."""
    if step.refusal is not None:
        return
    retry = step.status.retry_time
    if retry is not None and retry > step.around.now:
        step.wake.append(retry)
        return
    if retry is not None:
        step.change(retry_time=None)
    store = step.pod(step.rendezvous)
    if step.meets and (store is None or store.refused):
        _create(step, step.rendezvous)
    for record, pod in step.wanted():
        if pod is not None and not pod.refused:
            continue
        if record.retry_time is not None and record.retry_time > step.around.now:
            step.wake.append(record.retry_time)
        else:
            _create(step, step.name(record))


def _create(step: Step, name: PodName) -> None:
    step.actions.append(CreatePod(name=name, stage=step.plan, min_nodes=step.min_nodes, max_nodes=step.status.max_workers))


def remove_strangers(step: Step) -> None:
    """Deletes pods that no record asks for: older attempts, replaced generations, retired indices; but for what people want to read."""
    asked = {step.name(record) for record, _ in step.wanted()} | ({step.rendezvous} if step.meets else set())
    for pod in step.pods:
        if pod.name not in asked and pod not in step.last_crashes:
            step.delete(pod)


def _overdue(step: Step, since: datetime, seconds: int) -> bool:
    """Whether a deadline has passed; if not, the stage is to be looked at again when it does."""
    deadline = since + timedelta(seconds=seconds)
    if step.around.now >= deadline:
        return True
    step.wake.append(deadline)
    return False
