"""Pods and Services of an experiment: made, or found where they were made already.

Their names are the same whoever computes them, so what has the name is ours, or is in the way. What is in the way goes by itself, as what
an earlier experiment of the same name has left, or only by hand.
"""

from __future__ import annotations

import enum
from dataclasses import dataclass
from datetime import datetime

from transfer_operator.cluster import Body, Cluster, ClusterError, Resource
from transfer_operator.decide.snapshot import PodName

REFUSED = (400, 403, 404, 422)
"""Answers to the creation of an object that are about it: a quota, a policy, a namespace that ends. Others are the server's trouble."""
WEBHOOK = "webhook"
"""In an answer of 500 it says that an admission webhook of the cluster is down, which may last."""
REFUSED_AGAIN_S = 10.0
NAMESAKE_AGAIN_S = 1.0


class Obstacle(enum.Enum):
    """Why an object cannot be made."""

    REFUSED = "the API server does not take it"
    GOES = "something else has its name, and goes by itself"
    STAYS = "something else has its name, and stays until somebody removes it"


@dataclass
class Refused:
    """A pod, or the Service of one, that cannot be made."""

    name: PodName
    since: datetime
    message: str
    retry: float
    """When it is tried again, by the clock."""


class NotMadeError(Exception):
    """An object cannot be made."""

    def __init__(self, obstacle: Obstacle, message: str) -> None:
        super().__init__(message)
        self.obstacle, self.message = obstacle, message

    @property
    def again(self) -> float:
        """Seconds after which it is worth another try."""
        return NAMESAKE_AGAIN_S if self.obstacle is Obstacle.GOES else REFUSED_AGAIN_S

    def noted(self, name: PodName, before: Refused | None, now: datetime, clock: float) -> Refused:
        """What to remember of it, after what was remembered `before`."""
        # What goes by itself is no failure to start, and may take its grace.
        since = before.since if before is not None and self.obstacle is not Obstacle.GOES else now
        return Refused(name, since, self.message, clock + self.again)


async def make(cluster: Cluster, resource: Resource, namespace: str, body: Body, owner: str) -> tuple[Body | None, bool]:
    """Creates an object that belongs to the object of UID `owner`. Returns it, or what that owner has of this name, and whether it is new.

    None where something else had the name and has just gone.

    Raises:
        NotMadeError: the API server does not take it, or something else has its name.
        ClusterError: the API server did not do what it was asked for, whatever was asked.
    """
    kind, name = body["kind"], body["metadata"]["name"]
    try:
        made = await cluster.create(resource, namespace, body)
    except ClusterError as error:
        if error.status not in REFUSED and WEBHOOK not in error.message:
            raise
        raise NotMadeError(Obstacle.REFUSED, f"the API server refuses the {kind}: {error.message}") from error
    if made is not None:
        return made, True
    there = await cluster.get(resource, namespace, name)
    if there is None or owned(there, owner):
        return there, False
    if _goes(there, body):
        raise NotMadeError(Obstacle.GOES, f"{kind} {name} is there from before, and has to go first")
    way_out = f"delete it if nobody needs it: kubectl delete {kind.lower()} {name} --namespace {namespace}"
    raise NotMadeError(Obstacle.STAYS, f"{kind} {name} is there and does not belong to this experiment; {way_out}")


def owned(body: Body, uid: str) -> bool:
    """Whether an object belongs to the one of that UID."""
    return any(owner.get("uid") == uid for owner in body["metadata"].get("ownerReferences") or ())


def _goes(there: Body, wanted: Body) -> bool:
    """Whether an object that has a wanted one's name goes by itself: it was told to, or belongs to a former owner of the same kind."""
    kinds = [{owner.get("kind") for owner in body["metadata"].get("ownerReferences") or ()} for body in (there, wanted)]
    return "deletionTimestamp" in there["metadata"] or not kinds[0].isdisjoint(kinds[1])
