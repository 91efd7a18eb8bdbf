"""An API server in memory: what `Cluster` asks for, answered as Kubernetes does, and every write checked and counted.

`Wire` is a `Cluster` whose requests end here and not in a socket, so its own logic is tested too. Watch events come a moment after
the write that they tell of; a test may hold them back or lose them. A test may also have a request refused, or its sender die
right before it or right after it.
"""

from __future__ import annotations

import asyncio
import json
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from tests.operator.virtual_time import now
from transfer_operator.cluster import Body, Cluster

LATENCY_S = 0.002
WATCH_LATENCY_S = 0.005
REASONS = {403: "Forbidden", 404: "NotFound", 409: "Conflict", 410: "Expired", 429: "TooManyRequests", 500: "InternalError"}

Place = tuple[str, str, str]
"""Plural, namespace, name."""
Notify = Callable[[str, str, Body], None]
"""Takes the plural, ADDED, MODIFIED or DELETED, and the object."""


class Refused(Exception):
    """An answer that is an error."""

    def __init__(self, status: int, message: str, reason: str = "") -> None:
        super().__init__(message)
        self.status, self.body = status, {"reason": reason or REASONS.get(status, ""), "message": message}


@dataclass(frozen=True)
class Request:
    """A write: the how-manieth, what, and by whom."""

    number: int
    verb: str
    plural: str
    name: str
    sender: str

    def __str__(self) -> str:
        return f"{self.number} {self.verb} {self.plural}/{self.name}"


@dataclass
class ApiServer:
    """Objects by place. Stored bodies are never changed, only replaced."""

    objects: dict[Place, Body] = field(default_factory=dict)
    revision: int = 0
    writes: list[Request] = field(default_factory=list)
    """Writes of operators that were committed or refused; those of the kubelet and of users are not among them."""
    requests: Counter[str] = field(default_factory=Counter)
    """Requests of operators by verb and plural, reads among them."""
    on_commit: list[Callable[[str, Body | None, Body | None], None]] = field(default_factory=list)
    """Called with plural, the object before and after each change, at once."""
    admit: Callable[[str, Body], None] = lambda plural, body: None
    """May raise `Refused` for an object that is to be created."""
    watchers: list[Notify] = field(default_factory=list)
    told: int = 0
    """Watch events so far."""
    delivery: Callable[[int, str, str, Body], float | None] = lambda number, plural, kind, body: 0.0
    """How long an event is held back; None loses it."""
    down: bool = False
    page: int = 500

    # What operators ask for.

    def handle(self, verb: str, path: str, query: Mapping[str, str], body: Body | None) -> tuple[int, Body]:
        """Answers one request."""
        plural, namespace, name, _ = split(path)
        try:
            if verb == "GET":
                return 200, self._get(plural, namespace, name) if name else self._list(plural, namespace, query)
            assert body is not None
            if verb == "POST":
                return 201, self.create(plural, namespace, body)
            if verb == "DELETE":
                return 200, self._delete(plural, namespace, name, body)
            return 200, self._change(verb, plural, namespace, name, body)
        except Refused as refused:
            return refused.status, refused.body

    def _get(self, plural: str, namespace: str, name: str) -> Body:
        try:
            return self.objects[plural, namespace, name]
        except KeyError:
            raise Refused(404, f"{plural} {name} not found") from None

    def _list(self, plural: str, namespace: str, query: Mapping[str, str]) -> Body:
        label = query.get("labelSelector", "")
        found = [
            body
            for (kind, where, _), body in sorted(self.objects.items(), key=lambda item: item[0])
            if kind == plural and namespace in ("", where) and (not label or label in (body["metadata"].get("labels") or {}))
        ]
        begin = int(query.get("continue") or 0)
        rest = str(begin + self.page) if begin + self.page < len(found) else ""
        return {"items": found[begin : begin + self.page], "metadata": {"resourceVersion": str(self.revision), "continue": rest}}

    def create(self, plural: str, namespace: str, body: Body) -> Body:
        """Creates an object."""
        meta = dict(body["metadata"])
        name = meta["name"] = meta.get("name") or f"{meta['generateName']}{self.revision}"
        self.admit(plural, body)
        if (plural, namespace, name) in self.objects:
            raise Refused(409, f"{plural} {name} already exists", "AlreadyExists")
        meta |= {"namespace": namespace, "uid": f"uid-{self.revision + 1}", "creationTimestamp": _time(), "generation": 1}
        new = {**body, "metadata": meta}
        if plural == "pods":
            new["status"] = {"phase": "Pending"}
        return self.put(plural, new)

    def _change(self, verb: str, plural: str, namespace: str, name: str, body: Body) -> Body:
        """PUT of an object, or PATCH of its status."""
        old, meta = self._get(plural, namespace, name), body["metadata"]
        if meta.get("uid", old["metadata"]["uid"]) != old["metadata"]["uid"]:
            raise Refused(409, "the UID is another one")
        if meta.get("resourceVersion", old["metadata"]["resourceVersion"]) != old["metadata"]["resourceVersion"]:
            raise Refused(409, "the object has been modified")
        changed = {**old, "status": body["status"]} if verb == "PATCH" else {**body, "metadata": old["metadata"]}
        return old if changed == old else self.put(plural, changed)

    def _delete(self, plural: str, namespace: str, name: str, options: Body) -> Body:
        old = self._get(plural, namespace, name)
        uid = (options.get("preconditions") or {}).get("uid")
        if uid not in (None, old["metadata"]["uid"]):
            raise Refused(409, "the UID in the precondition is another one")
        return self.remove(plural, namespace, name, int(options.get("gracePeriodSeconds", 30)))

    # What users, kubelets and the garbage collector do.

    def put(self, plural: str, body: Body) -> Body:
        """Stores a new state of an object and tells of it."""
        self.revision += 1
        new: Body = {**body, "metadata": {**body["metadata"], "resourceVersion": str(self.revision)}}
        place = (plural, new["metadata"]["namespace"], new["metadata"]["name"])
        old = self.objects.get(place)
        self.objects[place] = new
        self._commit(plural, "MODIFIED" if old is not None else "ADDED", old, new)
        return new

    def remove(self, plural: str, namespace: str, name: str, grace_seconds: int = 0) -> Body:
        """Deletes an object: a pod that runs gets its grace."""
        old = self._get(plural, namespace, name)
        runs = plural == "pods" and old["status"]["phase"] == "Running"
        if runs and grace_seconds:
            if "deletionTimestamp" in old["metadata"]:
                return old
            return self.put(plural, {**old, "metadata": {**old["metadata"], "deletionTimestamp": _time()}})
        self.revision += 1
        del self.objects[plural, namespace, name]
        gone = {**old, "metadata": {**old["metadata"], "resourceVersion": str(self.revision)}}
        self._commit(plural, "DELETED", gone, None)
        asyncio.get_running_loop().call_later(0.05, self._collect, old["metadata"]["uid"])
        return old

    def edit(self, namespace: str, name: str, **spec: Any) -> Body:
        """A user changes the spec of an experiment; `workers` is merged."""
        old = self._get("transferexperiments", namespace, name)
        workers = {**old["spec"].get("workers", {}), **spec.pop("workers", {})}
        meta = {**old["metadata"], "generation": old["metadata"]["generation"] + 1}
        return self.put("transferexperiments", {**old, "metadata": meta, "spec": {**old["spec"], **spec, "workers": workers}})

    def every(self, plural: str) -> list[Body]:
        """All objects of a kind."""
        return [body for (kind, _, _), body in self.objects.items() if kind == plural]

    def _collect(self, uid: str) -> None:
        for (plural, namespace, name), body in list(self.objects.items()):
            if any(owner.get("uid") == uid for owner in body["metadata"].get("ownerReferences") or ()):
                self.remove(plural, namespace, name, 30)

    def _commit(self, plural: str, kind: str, old: Body | None, new: Body | None) -> None:
        for check in self.on_commit:
            check(plural, old, new)
        told = new if new is not None else old
        assert told is not None
        if plural in ("transferexperiments", "pods"):
            self.told += 1
            wait = self.delivery(self.told, plural, kind, told)
            if wait is not None:
                asyncio.get_running_loop().call_later(WATCH_LATENCY_S + wait, self._tell, plural, kind, told)

    def _tell(self, plural: str, kind: str, body: Body) -> None:
        for notify in list(self.watchers):
            notify(plural, kind, body)


Fault = Callable[[Request], "str | int | None"]
"""What happens to a write: `before` or `after` kills its sender then, `lost` loses the answer, a number is the answer."""


class Wire(Cluster):
    """A `Cluster` whose requests end in an `ApiServer`."""

    def __init__(self, server: ApiServer, sender: str, may_write: Callable[[], bool], fault: Fault = lambda request: None) -> None:
        super().__init__(20, 20.0, may_write)
        self._server, self._sender, self._fault = server, sender, fault
        self.dead = asyncio.Event()
        self.frozen = False

    async def connect(self) -> None:
        """Nothing to do."""

    async def close(self) -> None:
        """Nothing to do."""

    async def _send(
        self, verb: str, path: str, query: Mapping[str, str] | None, body: Body | None, content: str
    ) -> tuple[int, Mapping[str, str], bytes]:
        await asyncio.sleep(LATENCY_S)
        while self.frozen:
            await asyncio.sleep(0.1)
        if self.dead.is_set():
            await _never()
        plural, _, name, _ = split(path)
        self._server.requests[f"{verb} {plural}"] += 1
        if self._server.down:
            raise ConnectionRefusedError("refused")
        fault: str | int | None = None
        if verb != "GET" and plural != "leases":
            name = name or (body or {}).get("metadata", {}).get("name", "")
            request = Request(len(self._server.writes), verb, plural, name, self._sender)
            self._server.writes.append(request)
            fault = self._fault(request)
        if isinstance(fault, int):
            headers = {"Retry-After": "1"} if fault == 429 else {}
            return fault, headers, json.dumps({"reason": REASONS[fault], "message": "for the test"}).encode()
        if fault == "before":
            self.dead.set()
            await _never()
        status, answer = self._server.handle(verb, path, query or {}, body)
        data = json.dumps(answer).encode()
        if fault == "after":
            self.dead.set()
            await _never()
        if fault == "lost":
            raise ConnectionResetError("reset")
        await asyncio.sleep(LATENCY_S)
        while self.frozen:
            await asyncio.sleep(0.1)
        return status, {}, data


async def _never() -> None:
    await asyncio.get_running_loop().create_future()


def split(path: str) -> tuple[str, str, str, str]:
    """Plural, namespace, name and subresource of a path; empty where it has none."""
    parts: Iterator[str] = iter(path.strip("/").split("/")[2 if path.startswith("/api/") else 3 :])
    first = next(parts)
    namespace = ""
    if first == "namespaces":
        namespace, first = next(parts), next(parts)
    return first, namespace, next(parts, ""), next(parts, "")


def _time() -> str:
    return now().isoformat(timespec="seconds").replace("+00:00", "Z")
