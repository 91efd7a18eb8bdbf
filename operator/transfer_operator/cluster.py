"""The API server as the operator needs it: a handful of verbs over plain dicts.

Connection, credentials and TLS are those of `kubernetes.aio`; its models are not used, since a pod that goes through them and back
costs more than everything else here. Retry is the work queue's: a request that fails raises, once.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator, Callable, Mapping
from dataclasses import dataclass
from typing import Any
from urllib.parse import quote, urlencode

import aiohttp
from kubernetes.aio import config
from kubernetes.aio.client import ApiClient, Configuration

from transfer_api.spec import API_GROUP
from transfer_operator.metrics import API_REQUESTS

Body = dict[str, Any]

FIELD_MANAGER = "transfer-operator"
PAGE = 500


@dataclass(frozen=True)
class Resource:
    """A kind of object, as its address has it."""

    group: str
    version: str
    plural: str

    def path(self, namespace: str | None = None, name: str | None = None, sub: str | None = None) -> str:
        """Path of the collection, of one object or of a subresource; without a namespace: of all."""
        root = f"/apis/{self.group}/{self.version}" if self.group else f"/api/{self.version}"
        parts = ["namespaces", namespace, self.plural] if namespace else [self.plural]
        return "/".join([root, *(quote(part) for part in (*parts, name, sub) if part)])


EXPERIMENTS = Resource(API_GROUP, "v1alpha1", "transferexperiments")
PODS = Resource("", "v1", "pods")
SERVICES = Resource("", "v1", "services")
EVENTS = Resource("", "v1", "events")
LEASES = Resource("coordination.k8s.io", "v1", "leases")


class ClusterError(Exception):
    """The API server said no, or said nothing (status 0)."""

    def __init__(self, status: int, message: str, reason: str = "", retry_after: float | None = None) -> None:
        super().__init__(f"{status} {message}")
        self.status = status
        self.reason = reason
        self.message = message
        self.retry_after = retry_after


class NotLeaderError(Exception):
    """This process may not write: its Lease is not renewed, so another may lead."""


class Cluster:
    """Reads and writes objects.

    Args:
        concurrency: requests that may be under way at once.
        timeout: seconds that one of them may take.
        may_write: asked before every write to experiments and their children; a leader that was frozen must not wake up and write.
    """

    def __init__(self, concurrency: int, timeout: float, may_write: Callable[[], bool] = lambda: True) -> None:
        self._configuration = Configuration()
        self._client: ApiClient | None = None
        self._slots = asyncio.Semaphore(concurrency)
        self._timeout = timeout
        self.may_write = may_write

    async def connect(self) -> None:
        """Finds credentials: those of a pod, else those of $KUBECONFIG.

        Raises:
            kubernetes.config.ConfigException: there are none.
        """
        try:
            config.load_incluster_config(client_configuration=self._configuration)  # type: ignore[no-untyped-call]
        except config.ConfigException:
            await config.load_kube_config(client_configuration=self._configuration)  # type: ignore[no-untyped-call]
        self._configuration.retries = None
        self._client = ApiClient(self._configuration)

    async def close(self) -> None:
        """Closes the connections."""
        if self._client is not None:
            await self._client.close()  # type: ignore[no-untyped-call]

    async def get(self, resource: Resource, namespace: str, name: str) -> Body | None:
        """One object, or None."""
        try:
            return await self._request("GET", resource, resource.path(namespace, name))
        except ClusterError as error:
            if error.status == 404:
                return None
            raise

    async def list(self, resource: Resource, namespace: str | None = None, selector: str = "") -> tuple[list[Body], str]:
        """All objects of a namespace (None: of the cluster), and the resourceVersion of the list."""
        items: list[Body] = []
        version = ""
        async for page in self._pages(resource, namespace, selector):
            items += page.get("items") or []
            version = page["metadata"]["resourceVersion"]
        return items, version

    async def _pages(self, resource: Resource, namespace: str | None, selector: str) -> AsyncIterator[Body]:
        query = {"limit": str(PAGE)} | ({"labelSelector": selector} if selector else {})
        while True:
            page = await self._request("GET", resource, resource.path(namespace), query)
            yield page
            rest = page["metadata"].get("continue")
            if not rest:
                return
            query["continue"] = rest

    async def create(self, resource: Resource, namespace: str, body: Body) -> Body | None:
        """Creates an object and returns it; None when one of its name is there already.

        No apply: a pod cannot be changed afterwards, and one that is there must be told from one that was made just now.
        """
        try:
            return await self._request("POST", resource, resource.path(namespace), {"fieldManager": FIELD_MANAGER}, body)
        except ClusterError as error:
            if error.status == 409 and error.reason == "AlreadyExists":
                return None
            raise

    async def apply_status(self, resource: Resource, namespace: str, name: str, body: Body) -> Body:
        """Server-side apply of `.status`, as one write of one owner.

        With `metadata.resourceVersion` in the body the write is refused (409) when the object was changed since it was read.
        """
        query = {"fieldManager": FIELD_MANAGER, "force": "true"}
        return await self._request("PATCH", resource, resource.path(namespace, name, "status"), query, body, "application/apply-patch+yaml")

    async def replace(self, resource: Resource, namespace: str, name: str, body: Body) -> Body:
        """Replaces an object whose resourceVersion still is the one in the body (for the Lease; does not ask `may_write`)."""
        return await self._request("PUT", resource, resource.path(namespace, name), {"fieldManager": FIELD_MANAGER}, body)

    async def insert(self, resource: Resource, namespace: str, body: Body) -> Body:
        """Creates an object without asking `may_write` (for the Lease)."""
        return await self._request("POST", resource, resource.path(namespace), {"fieldManager": FIELD_MANAGER}, body)

    async def delete(self, resource: Resource, namespace: str, name: str, uid: str, grace_seconds: int) -> Body | None:
        """Deletes the object of that UID; None when it is gone, or another one has its name by now."""
        options = {
            "apiVersion": "v1", "kind": "DeleteOptions", "gracePeriodSeconds": grace_seconds,
            "propagationPolicy": "Background", "preconditions": {"uid": uid},
        }  # fmt: skip
        try:
            return await self._request("DELETE", resource, resource.path(namespace, name), None, options)
        except ClusterError as error:
            if error.status == 404:
                return None
            if error.status == 409:
                there = await self.get(resource, namespace, name)
                if there is None or there["metadata"]["uid"] != uid:
                    return None
            raise

    async def _request(
        self, verb: str, resource: Resource, path: str, query: Mapping[str, str] | None = None, body: Body | None = None,
        content: str = "application/json",
    ) -> Body:  # fmt: skip
        election = resource is LEASES  # waits for no slot: pods that an admission webhook holds up must not cost the Lease
        async with contextlib.nullcontext() if election else self._slots:
            if verb != "GET" and not election and not self.may_write():  # asked last: the wait for a slot may have been long
                raise NotLeaderError
            try:
                status, headers, data = await self._send(verb, path, query, body, content)
            except (aiohttp.ClientError, TimeoutError, OSError, asyncio.CancelledError) as error:
                API_REQUESTS.labels(verb, resource.plural, "0").inc()
                if isinstance(error, asyncio.CancelledError):  # whoever asked waits no longer, as the Lease after its own limit
                    raise
                raise ClusterError(0, f"{verb} {path}: {type(error).__name__}: {error}") from error
        API_REQUESTS.labels(verb, resource.plural, str(status)).inc()
        if status >= 400:
            raise _error(verb, path, status, headers, data)
        try:
            found: Body = json.loads(data)
        except ValueError as error:
            raise ClusterError(0, f"{verb} {path}: the answer is not JSON") from error
        return found

    async def _send(
        self, verb: str, path: str, query: Mapping[str, str] | None, body: Body | None, content: str
    ) -> tuple[int, Mapping[str, str], bytes]:
        """One HTTP request: status, headers and content of the answer."""
        assert self._client is not None, "connect first"
        headers = {"Accept": "application/json", "Content-Type": content}
        await self._client.update_params_for_auth(headers, [], ["BearerToken"], path, verb, body)
        url = f"{self._configuration.host}{path}" + (f"?{urlencode(query)}" if query else "")
        answer = await self._client.call_api(verb, url, headers, body, _request_timeout=self._timeout)
        data: bytes = await answer.read()  # type: ignore[no-untyped-call]
        return answer.status, answer.headers, data


def _error(verb: str, path: str, status: int, headers: Mapping[str, str], data: bytes) -> ClusterError:
    """What the API server wrote; what stands before it may answer with anything."""
    try:
        said = json.loads(data)
        reason, message = str(said.get("reason", "")), str(said.get("message", ""))
    except (ValueError, AttributeError):
        reason, message = "", data[:200].decode(errors="replace")
    try:
        retry_after = float(headers["Retry-After"])
    except (KeyError, ValueError):
        retry_after = None
    return ClusterError(status, f"{verb} {path}: {message[:1000]}", reason, retry_after)
