"""A small client of the API server, and a witness of everything that happens to some objects.

Tests and benchmarks use it where they measure or poll; where they do what a user does, they run kubectl.
"""

from __future__ import annotations

import json
import os
import subprocess
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlencode

import urllib3
from kubernetes import client, config

Body = dict[str, Any]
AWAY_S = 40.0
EXPERIMENTS = "/apis/transfer-operator.dev/v1alpha1"


class RefusedError(Exception):
    """The API server said no."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(f"{status} {message}")
        self.status = status
        self.message = message


class Kube:
    """Plain requests with the credentials of $KUBECONFIG."""

    def __init__(self) -> None:
        settings = client.Configuration()
        config.load_kube_config(os.environ["KUBECONFIG"], client_configuration=settings)
        self.host: str = settings.host
        token = settings.auth_settings().get("BearerToken", {}).get("value")
        self.headers = {"Accept": "application/json"} | ({"Authorization": token} if token else {})
        self._pool = urllib3.PoolManager(
            maxsize=64, ca_certs=settings.ssl_ca_cert, cert_file=settings.cert_file, key_file=settings.key_file, retries=False
        )

    def ask(self, verb: str, path: str, body: Body | None = None, kind: str = "application/json", **query: str) -> Body:
        """One request. What only reads is asked again for a while where the server is away: tests restart it.

        Raises:
            RefusedError: the answer was no, or there was none (status 0).
        """
        deadline = time.monotonic() + AWAY_S
        while True:
            try:
                return self._once(verb, path, body, kind, query)
            except RefusedError as error:
                away = verb == "GET" and (not error.status or error.status >= 500)
                # Right after a change of the CRD; nothing was done then, whatever was asked.
                changing = error.status == 429 and "initializing" in error.message
                if not (away or changing) or time.monotonic() > deadline:
                    raise
            time.sleep(0.5)

    def _once(self, verb: str, path: str, body: Body | None, kind: str, query: dict[str, str]) -> Body:
        url = f"{self.host}{path}" + (f"?{urlencode(query)}" if query else "")
        data = json.dumps(body).encode() if body is not None else None
        try:
            answer = self._pool.request(verb, url, body=data, headers={**self.headers, "Content-Type": kind}, timeout=30.0)
        except urllib3.exceptions.HTTPError as error:
            raise RefusedError(0, f"{type(error).__name__}: {error}") from error
        found = json.loads(answer.data) if answer.headers.get("Content-Type", "").startswith("application/json") else {"text": answer.data}
        if answer.status >= 400:
            raise RefusedError(answer.status, str(found.get("message", answer.data[:300])))
        return found

    def get(self, path: str, **query: str) -> Body | None:
        """An object, or None where there is none."""
        try:
            return self.ask("GET", path, **query)
        except RefusedError as error:
            if error.status == 404:
                return None
            raise

    def delete(self, path: str, grace: int | None = None) -> None:
        """Deletes an object; it may be gone already."""
        options: Body = {"kind": "DeleteOptions", "apiVersion": "v1"} | ({} if grace is None else {"gracePeriodSeconds": grace})
        try:
            self.ask("DELETE", path, options)
        except RefusedError as error:
            if error.status != 404:
                raise

    def list(self, path: str, **query: str) -> list[Body]:
        """The items of a collection."""
        return self.ask("GET", path, **query).get("items") or []

    def watch(self, path: str, version: str, over: threading.Event) -> Iterator[Body]:
        """Events since a resourceVersion, until the server ends the stream or `over` is set."""
        query = urlencode({"watch": "1", "resourceVersion": version, "allowWatchBookmarks": "true", "timeoutSeconds": "300"})
        answer = self._pool.request(
            "GET", f"{self.host}{path}?{query}", headers=self.headers, preload_content=False, timeout=urllib3.Timeout(connect=5, read=2)
        )
        buffer = b""
        try:
            while not over.is_set():
                try:
                    data = answer.read1(1 << 16)
                except urllib3.exceptions.ReadTimeoutError:
                    return  # nothing for two seconds: the next watch goes on from the same version
                if not data:
                    return
                buffer += data
                *lines, buffer = buffer.split(b"\n")
                yield from (json.loads(line) for line in lines if line)
        finally:
            answer.close()


@dataclass(frozen=True)
class Seen:
    """One watch event, with the time at which it arrived here."""

    time: float
    type: str
    body: Body

    @property
    def name(self) -> str:
        """Name of the object."""
        return str(self.body["metadata"]["name"])


@dataclass
class Witness:
    """Keeps every event of one collection, from its start to its end; survives restarts of the API server."""

    kube: Kube
    path: str
    seen: list[Seen] = field(default_factory=list)
    _over: threading.Event = field(default_factory=threading.Event)
    _known: dict[str, Body] = field(default_factory=dict)

    def __enter__(self) -> Witness:
        version = self._list()
        self._thread = threading.Thread(target=self._follow, args=(version,), name=f"witness {self.path}", daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join(timeout=10)

    def first(self, kind: str, name: str) -> float | None:
        """When an event of a type was first seen of an object."""
        return next((one.time for one in self.seen if one.type == kind and one.name == name), None)

    def created(self, since: float = 0.0) -> list[Seen]:
        """Creations, in order."""
        return [one for one in self.seen if one.type == "ADDED" and one.time >= since]

    def last(self, name: str) -> Body | None:
        """An object as it was last seen, also when it is gone."""
        return next((one.body for one in reversed(self.seen) if one.name == name), None)

    def _list(self) -> str:
        """Takes a full list and tells of what it knows better."""
        answer = self.kube.ask("GET", self.path)
        found = {item["metadata"]["uid"]: item for item in answer.get("items") or []}
        for uid in set(self._known) - set(found):
            self._note("DELETED", self._known[uid])
        for uid, item in found.items():
            if uid not in self._known:
                self._note("ADDED", item)
            elif item["metadata"]["resourceVersion"] != self._known[uid]["metadata"]["resourceVersion"]:
                self._note("MODIFIED", item)
        return str(answer["metadata"]["resourceVersion"])

    def _note(self, kind: str, body: Body) -> None:
        self.seen.append(Seen(time.time(), kind, body))
        if kind == "DELETED":
            self._known.pop(body["metadata"]["uid"], None)
        else:
            self._known[body["metadata"]["uid"]] = body

    def _follow(self, version: str) -> None:
        while not self._over.is_set():
            try:
                for event in self.kube.watch(self.path, version, self._over):
                    if event["type"] == "ERROR":  # the version is too old
                        version = self._list()
                        break
                    version = event["object"]["metadata"]["resourceVersion"]
                    if event["type"] != "BOOKMARK":
                        self._note(event["type"], event["object"])
            except (RefusedError, urllib3.exceptions.HTTPError, OSError):
                self._over.wait(0.2)


def kubectl(*arguments: str, stdin: str | None = None, check: bool = True) -> str:
    """What kubectl prints; with `check=False` also what it complains about.

    Raises:
        AssertionError: it failed.
    """
    done = subprocess.run(["kubectl", *arguments], input=stdin, capture_output=True, text=True, timeout=180)
    assert not check or done.returncode == 0, f"kubectl {' '.join(arguments)}: {done.stderr}"
    return done.stdout if check else done.stdout + done.stderr
