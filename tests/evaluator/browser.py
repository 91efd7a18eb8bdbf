"""A real browser for tests: headless Chromium, spoken to by its DevTools protocol."""

from __future__ import annotations

import asyncio
import base64
import itertools
import subprocess
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import aiohttp

from tests.support.experiment import wait_for

ROOT = Path(__file__).resolve().parents[2]


def chromium() -> str:
    """The command of a browser, fetched where there is none."""
    return subprocess.run([ROOT / "hack" / "browser"], check=True, stdout=subprocess.PIPE, text=True).stdout.strip()


class Page:
    """A page that is open."""

    def __init__(self, socket: aiohttp.ClientWebSocketResponse) -> None:
        self._socket = socket
        self._numbers = itertools.count(1)
        self.events: list[dict[str, Any]] = []

    async def call(self, method: str, **parameters: Any) -> dict[str, Any]:
        """A command of the protocol and its result; what the browser tells meanwhile goes to `events`."""
        number = next(self._numbers)
        await self._socket.send_json({"id": number, "method": method, "params": parameters})
        while True:
            message = await self._socket.receive_json(timeout=60)
            if message.get("id") == number:
                assert "error" not in message, message
                return dict(message["result"])
            self.events.append(message)

    async def evaluate(self, expression: str) -> Any:
        """The value of a JavaScript expression."""
        result = await self.call("Runtime.evaluate", expression=expression, returnByValue=True, awaitPromise=True)
        assert "exceptionDetails" not in result, result
        return result["result"].get("value")

    async def open(self, path: Path) -> None:
        """Opens a file and waits until it is there."""
        for domain in ("Page", "Network", "Log", "Runtime"):
            await self.call(f"{domain}.enable")
        await self.call("Page.navigate", url=path.as_uri())
        while not any(event["method"] == "Page.loadEventFired" for event in self.events):
            self.events.append(await self._socket.receive_json(timeout=60))

    async def screenshot(self, path: Path) -> bytes:
        """A picture of the whole page, kept in a file too."""
        result = await self.call("Page.captureScreenshot", captureBeyondViewport=True)
        content = base64.b64decode(result["data"])
        path.write_bytes(content)
        return content

    def addresses(self) -> list[str]:
        """Whatever was asked for."""
        return [event["params"]["request"]["url"] for event in self.events if event["method"] == "Network.requestWillBeSent"]

    def complaints(self) -> list[str]:
        """Errors of the console, such as a script that the page's policy refuses."""
        return [event["params"]["entry"]["text"] for event in self.events if event["method"] == "Log.entryAdded"]


@asynccontextmanager
async def browse(command: str, profile: Path) -> AsyncIterator[Page]:
    """Starts the browser with an empty profile, and stops it in the end."""
    # Chromium's own sandbox wants user namespaces or root's help; the page is ours.
    arguments = ["--headless", "--no-sandbox", "--disable-gpu", "--remote-debugging-port=0", f"--user-data-dir={profile}", "about:blank"]
    process = subprocess.Popen([command, *arguments], stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL)
    try:
        port_file = profile / "DevToolsActivePort"
        await asyncio.to_thread(wait_for, lambda: port_file.is_file() and "\n" in port_file.read_text(), 60, "the browser starts")
        port = port_file.read_text().split()[0]
        async with aiohttp.ClientSession() as session:
            async with session.get(f"http://127.0.0.1:{port}/json/list") as answer:
                address = next(target["webSocketDebuggerUrl"] for target in await answer.json() if target["type"] == "page")
            async with session.ws_connect(address, max_msg_size=0) as socket:
                yield Page(socket)
    finally:
        process.terminate()
        process.wait(20)
