"""What the operator believes to be in the cluster: experiments and their pods, as last seen.

Fed from three sides: watch events (Kopf), the answers to our own writes, and full lists. Whatever has the higher resourceVersion
wins, so the order in which they come does not matter. Lists find what a watch has lost: after a gap Kopf tells nothing of objects that
vanished in it.
"""

from __future__ import annotations

import contextlib
import logging
from collections import OrderedDict, defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from datetime import datetime

from pydantic import ValidationError

from transfer_api.errors import SpecError, TransferError
from transfer_api.load import experiment_from
from transfer_api.problems import faults
from transfer_api.spec import TransferExperiment
from transfer_api.stage import StagePlan, plan_stages
from transfer_api.status import ExperimentStatus, Phase, StageState, StageStatus
from transfer_operator.cluster import Body
from transfer_operator.observe import strip

logger = logging.getLogger(__name__)

Key = tuple[str, str]
"""Namespace and name of an experiment."""
EXPERIMENT_LABEL = "transfer-operator.dev/experiment"
SELECTOR = EXPERIMENT_LABEL
REMEMBERED = 10_000
"""Objects that vanished; enough for what happens during one list."""


@dataclass
class Known:
    """One experiment, with what follows from its spec."""

    body: Body
    experiment: TransferExperiment | None
    """None where the spec cannot work; `problem` says why."""
    plan: tuple[StagePlan, ...] = ()
    problem: str = ""
    recorded: ExperimentStatus | bytes = field(default_factory=ExperimentStatus)
    """The status; that of a finished experiment as JSON, a tenth of the size, since it is seldom looked at and many are kept."""
    phase: Phase = Phase.PENDING
    completed: datetime | None = None
    unreadable: str = ""
    """Why the recorded status cannot be read. Only the operator writes it, and to begin anew would forget every counter: so
    nothing is done until somebody has looked. `status` is then the stages that are complete, as far as they can be read."""

    @property
    def status(self) -> ExperimentStatus:
        """The status as it was last written."""
        return ExperimentStatus.model_validate_json(self.recorded) if isinstance(self.recorded, bytes) else self.recorded

    def record(self, status: ExperimentStatus) -> None:
        """Takes the status."""
        self.phase, self.completed = status.phase, status.completion_time
        packed = status.phase.terminal
        self.recorded = status.model_dump_json(by_alias=True, exclude_none=True, exclude_defaults=True).encode() if packed else status

    @property
    def uid(self) -> str:
        """Identity: another experiment may get the same name later."""
        return str(self.body["metadata"]["uid"])

    @property
    def generation(self) -> int:
        """Counts changes of the spec."""
        return int(self.body["metadata"].get("generation", 1))

    @property
    def version(self) -> str:
        """resourceVersion."""
        return str(self.body["metadata"]["resourceVersion"])

    @property
    def deleting(self) -> bool:
        """Deletion was asked for."""
        return "deletionTimestamp" in self.body["metadata"]

    @property
    def active(self) -> bool:
        """Whether anything is still to be done for it."""
        return self.experiment is not None and not self.deleting and not self.unreadable and not self.phase.terminal

    @property
    def wants(self) -> bool:
        """Whether it waits for anything that others may make."""
        return self.active and self.experiment is not None and not self.experiment.spec.suspend

    @property
    def makes(self) -> tuple[object, ...]:
        """All that decides whether it makes its stages; whoever needs the same ones is told when it changes."""
        suspended = self.experiment is not None and self.experiment.spec.suspend
        return self.uid, self.generation, self.active, self.deleting, suspended

    @property
    def stages(self) -> dict[str, StageStatus]:
        """Recorded stages by key."""
        return {stage.key: stage for stage in self.status.stages}

    @property
    def seniority(self) -> tuple[str, str]:
        """Order in which experiments may make what several need: the older first."""
        return str(self.body["metadata"]["creationTimestamp"]), str(self.body["metadata"]["name"])


def key_of(body: Body) -> Key:
    """Namespace and name of an object."""
    return body["metadata"]["namespace"], body["metadata"]["name"]


def owner_of(pod: Body) -> Key | None:
    """The experiment that a pod belongs to, by its label."""
    name = (pod["metadata"].get("labels") or {}).get(EXPERIMENT_LABEL)
    return (pod["metadata"]["namespace"], name) if name else None


class View:
    """Experiments and pods by key. Every method that takes a body returns the experiments to look at again."""

    def __init__(self) -> None:
        self.experiments: dict[Key, Known] = {}
        self.pods: dict[Key, Body] = {}
        self._gone: OrderedDict[str, None] = OrderedDict()
        """UIDs of the last objects that vanished: what is told of them late, by a list that was under way, is of the past."""
        self._pods_of: dict[Key, set[Key]] = defaultdict(set)
        self._sharers: dict[tuple[str, str, str], set[Key]] = defaultdict(set)
        """Experiments that need a stage: by namespace, storage and stage key."""
        self._makers: dict[tuple[str, str, str], set[Key]] = defaultdict(set)
        """Those of them that have completed it."""
        self._begun: dict[tuple[str, str, str], Key] = {}
        """Who is about to write that it makes a stage: known here at once, and in a status only after the API server's answer."""

    # -- experiments

    def put_experiment(self, body: Body) -> set[Key]:
        """Takes an experiment as it was at one moment."""
        key = key_of(body)
        old = self.experiments.get(key)
        if self._is_gone(body) or (old is not None and not _newer(body, old.body)):
            return set()
        known = _known(body, old)
        self._unshare(key)
        self.experiments[key] = known
        before, now = old.stages if old is not None else {}, known.stages
        for shared in _shared(key, known):
            self._sharers[shared].add(key)
            record = now.get(shared[-1])
            # A provisional artifact is nobody's to take over: the next pod asks the judge again.
            if record and record.state is StageState.COMPLETE and record.artifact and not record.artifact.provisional:
                self._makers[shared].add(key)
        moved = {stage for stage, record in now.items() if before.get(stage) != record}
        told = {other for stage in moved for other in self._others(key, known, stage)}
        if old is None or old.makes != known.makes:
            told |= self._all_others(key, known) | (self._all_others(key, old) if old is not None else set())
        return {key} | self._who_wait(told)

    def drop_experiment(self, body: Body) -> set[Key]:
        """An experiment is gone."""
        key = key_of(body)
        self._bury(body)
        old = self.experiments.get(key)
        if old is None or old.uid != body["metadata"]["uid"]:
            return set()
        self._unshare(key)
        del self.experiments[key]
        return {key} | self._who_wait(self._all_others(key, old))

    def sharers(self, key: Key, stage: str) -> list[Known]:
        """Other experiments of the same storage that need the same stage."""
        return [self.experiments[other] for other in self._others(key, self.experiments[key], stage)]

    def maker(self, key: Key, stage: str) -> Known | None:
        """An experiment of the same storage, other than this one, that has completed a stage."""
        done = self._makers.get((key[0], _storage(self.experiments[key]), stage), set())
        return next((self.experiments[other] for other in done if other != key), None)

    @contextlib.contextmanager
    def beginning(self, key: Key, known: Known, stages: Iterable[str]) -> Iterator[None]:
        """While an experiment writes that it makes these stages, no other begins them."""
        mine = [(key[0], _storage(known), stage) for stage in stages]
        self._begun |= dict.fromkeys(mine, key)
        try:
            yield
        finally:
            for shared in mine:
                del self._begun[shared]

    def beginner(self, key: Key, stage: str) -> Key | None:
        """Who writes at this moment that it makes a stage."""
        return self._begun.get((key[0], _storage(self.experiments[key]), stage))

    def _others(self, key: Key, known: Known, stage: str) -> set[Key]:
        return self._sharers.get((key[0], _storage(known), stage), set()) - {key}

    def _all_others(self, key: Key, known: Known) -> set[Key]:
        return {other for stage in known.plan for other in self._others(key, known, stage.key)}

    def _who_wait(self, keys: set[Key]) -> set[Key]:
        """Without those that are finished or suspended; else, where a thousand share a stage, each would wake all others."""
        return {key for key in keys if self.experiments[key].wants}

    def _unshare(self, key: Key) -> None:
        if (old := self.experiments.get(key)) is not None:
            for shared in _shared(key, old):
                for index in (self._sharers, self._makers):
                    index[shared].discard(key)
                    if not index[shared]:
                        del index[shared]

    # -- pods

    def put_pod(self, body: Body) -> set[Key]:
        """Takes a pod as it was at one moment."""
        key, owner = key_of(body), owner_of(body)
        old = self.pods.get(key)
        if owner is None or self._is_gone(body) or (old is not None and not _newer(body, old)):
            return set()
        self.pods[key] = strip(body)
        self._pods_of[owner].add(key)
        return {owner}

    def drop_pod(self, body: Body) -> set[Key]:
        """A pod is gone."""
        key, owner = key_of(body), owner_of(body)
        self._bury(body)
        old = self.pods.get(key)
        if old is None or owner is None or old["metadata"]["uid"] != body["metadata"]["uid"]:
            return set()
        del self.pods[key]
        self._pods_of[owner].discard(key)
        if not self._pods_of[owner]:
            del self._pods_of[owner]
        return {owner}

    def pods_of(self, key: Key) -> list[Body]:
        """Pods that carry the experiment's label and belong to this very experiment, not to one of its name before it."""
        uid = self.experiments[key].uid if key in self.experiments else None
        return [pod for name in sorted(self._pods_of.get(key, ())) if _owned(pod := self.pods[name], uid)]

    def _bury(self, body: Body) -> None:
        self._gone[str(body["metadata"]["uid"])] = None
        while len(self._gone) > REMEMBERED:
            self._gone.popitem(last=False)

    def _is_gone(self, body: Body) -> bool:
        return body["metadata"]["uid"] in self._gone

    # -- full lists

    def replace_experiments(self, bodies: Iterable[Body], version: str, namespace: str | None = None) -> tuple[set[Key], int]:
        """Takes a full list; also returns how many objects it knew better than the view did."""
        found = {key_of(body): body for body in bodies}
        mine = ((key, known) for key, known in self.experiments.items() if namespace in (None, key[0]))
        ghosts = [known.body for key, known in mine if key not in found and int(known.version) <= int(version)]
        changed = [self.drop_experiment(body) for body in ghosts] + [self.put_experiment(body) for body in found.values()]
        return set().union(*changed), sum(1 for keys in changed if keys)

    def replace_pods(self, bodies: Iterable[Body], version: str, namespace: str | None = None) -> tuple[set[Key], int]:
        """Takes a full list; also returns how many objects it knew better than the view did."""
        found = {key_of(body): body for body in bodies}
        mine = ((key, pod) for key, pod in self.pods.items() if namespace in (None, key[0]))
        ghosts = [pod for key, pod in mine if key not in found and int(pod["metadata"]["resourceVersion"]) <= int(version)]
        changed = [self.drop_pod(body) for body in ghosts] + [self.put_pod(body) for body in found.values()]
        return set().union(*changed), sum(1 for keys in changed if keys)


def _known(body: Body, old: Known | None) -> Known:
    """Parses what changed: a status write does not plan the stages again."""
    known = Known(_slim(body), None)
    recorded = body.get("status") or {}
    try:
        known.record(ExperimentStatus.model_validate(recorded))
    except ValidationError as error:
        known.unreadable = faults(error)
        known.record(ExperimentStatus(stages=list(_complete_stages(recorded))))
    if old is not None and old.uid == known.uid and old.generation == known.generation:
        known.experiment, known.plan, known.problem = old.experiment, old.plan, old.problem
        return known
    try:
        known.experiment = experiment_from({name: value for name, value in body.items() if name != "status"})
        known.plan = plan_stages(known.experiment.spec)
        if known.experiment.spec.storage.claim is None:
            known.experiment, known.plan = None, ()
            raise SpecError(
                "object storage cannot be mounted into pods", field="spec.storage.url", allowed="claim",
                next_step="Name a ReadWriteMany PersistentVolumeClaim in spec.storage.claim",
            )  # fmt: skip
    except TransferError as error:
        known.problem = str(error)
    except Exception as error:  # one experiment that we cannot read must not keep us from all others
        logger.exception("%s/%s: its spec cannot be read", *key_of(body))
        known.experiment, known.plan, known.problem = None, (), f"the spec cannot be read: {type(error).__name__}: {error}"
    return known


def _complete_stages(recorded: object) -> Iterator[StageStatus]:
    """What a status that cannot be read as a whole says for certain: the stages that are complete, which others need not make again."""
    stages = recorded.get("stages") if isinstance(recorded, dict) else None
    for one in stages if isinstance(stages, list) else ():
        with contextlib.suppress(ValidationError):
            stage = StageStatus.model_validate(one)
            if stage.state is StageState.COMPLETE:
                yield stage


def _slim(body: Body) -> Body:
    """Metadata without the record of field ownership; spec and status live on as models."""
    metadata = {name: value for name, value in body["metadata"].items() if name not in ("managedFields", "annotations")}
    return {"metadata": metadata}


def _newer(body: Body, old: Body) -> bool:
    """Versions count up over all objects of a kind, so they also tell which of two objects of one name came later."""
    return int(body["metadata"]["resourceVersion"]) > int(old["metadata"]["resourceVersion"])


def _storage(known: Known) -> str:
    return known.experiment.spec.storage.model_dump_json() if known.experiment is not None else ""


def _shared(key: Key, known: Known) -> list[tuple[str, str, str]]:
    return [(key[0], _storage(known), stage.key) for stage in known.plan]


def _owned(pod: Body, uid: str | None) -> bool:
    return uid is None or any(owner.get("uid") == uid for owner in pod["metadata"].get("ownerReferences") or ())
