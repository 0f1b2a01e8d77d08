"""Owns driving a headless Chromium through chromedriver: pages, clicks, the console, screenshots in light, dark and narrow.

It must not judge what it sees. WebDriver is JSON over HTTP, so no client library is needed; nothing leaves the machine.
"""

from __future__ import annotations

import base64
import contextlib
import json
import shutil
import subprocess
import tempfile
import urllib.error
import urllib.request
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

SECONDS = 30  # any single command; a page takes a tenth of a second
ELEMENT = "element-6066-11e4-a52e-4f735466cecf"  # the key of an element in WebDriver's answers
FLAGS = (
    "--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--disable-background-networking", "--no-first-run",
    "--disable-sync", "--disable-component-update", "--disable-default-apps", "--disable-extensions", "--no-proxy-server",
    "--hide-scrollbars",
)  # fmt: skip


class BrowserError(Exception):
    """chromedriver refused a command."""


@dataclass
class Browser:
    """One session."""

    address: str
    session: str

    def open(self, url: str) -> None:
        """Go to a page and wait until it is loaded."""
        self._post("url", {"url": url})

    def size(self, width: int, height: int) -> None:
        """The viewport, as a device of that size has it."""
        self._cdp("Emulation.setDeviceMetricsOverride", {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": width < 500})

    def scheme(self, name: str) -> None:
        """`light` or `dark`, as the system's setting."""
        self._cdp("Emulation.setEmulatedMedia", {"features": [{"name": "prefers-color-scheme", "value": name}]})

    def screenshot(self, path: Path) -> None:
        """What the viewport shows, as PNG."""
        path.write_bytes(base64.b64decode(self._request("GET", "screenshot")))

    def run(self, script: str, *args: Any) -> Any:
        """Run JavaScript in the page, from outside its content security policy."""
        return self._post("execute/sync", {"script": script, "args": list(args)})

    def click(self, selector: str) -> None:
        """Click the first element that a CSS selector finds."""
        element = self._post("element", {"using": "css selector", "value": selector})[ELEMENT]
        self._post(f"element/{element}/click", {})

    def console(self) -> list[str]:
        """What the browser has complained about since the last call: refused by policy, failed to load, script errors."""
        return [f"{entry['level']}: {entry['message']}" for entry in self._post("se/log", {"type": "browser"})]

    @property
    def url(self) -> str:
        """The address of the page."""
        return str(self._request("GET", "url"))

    @property
    def text(self) -> str:
        """What a person can read."""
        return str(self.run("return document.body.innerText"))

    def alert(self) -> str | None:
        """The text of an open dialog; None when there is none. A page of ours never opens one."""
        try:
            return str(self._request("GET", "alert/text"))
        except BrowserError:
            return None

    def _cdp(self, command: str, parameters: dict[str, Any]) -> Any:
        return self._post("goog/cdp/execute", {"cmd": command, "params": parameters})

    def _post(self, path: str, body: dict[str, Any]) -> Any:
        return self._request("POST", path, body)

    def _request(self, method: str, path: str, body: dict[str, Any] | None = None) -> Any:
        return _call(method, f"{self.address}/session/{self.session}/{path}", body)


@contextlib.contextmanager
def browser() -> Iterator[Browser]:
    """A Chromium with a profile of its own, ended with the block."""
    chromium = shutil.which("chromium") or shutil.which("google-chrome")
    driver = shutil.which("chromedriver")
    assert chromium, "no Chromium here: apt-get install chromium"
    assert driver, "no chromedriver here: apt-get install chromium-driver"
    with (
        tempfile.TemporaryDirectory() as profile,
        subprocess.Popen([driver, "--port=0"], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) as process,
    ):
        try:
            address = f"http://127.0.0.1:{_port(process)}"
            options = {"binary": chromium, "args": [*FLAGS, f"--user-data-dir={profile}"]}
            wanted = {"browserName": "chrome", "goog:chromeOptions": options, "goog:loggingPrefs": {"browser": "ALL"}}
            answer = _call("POST", f"{address}/session", {"capabilities": {"alwaysMatch": wanted}})
            opened = Browser(address, answer["sessionId"])
            try:
                yield opened
            finally:
                _call("DELETE", f"{address}/session/{opened.session}", None)
        finally:
            process.terminate()
            process.wait(SECONDS)


def _port(process: subprocess.Popen[str]) -> int:
    """chromedriver prints the port it took."""
    assert process.stdout is not None
    for line in process.stdout:
        if "started successfully on port" in line:
            return int(line.rstrip().rstrip(".").rpartition(" ")[2])
    raise BrowserError(f"chromedriver ended with {process.wait(SECONDS)}")


def _call(method: str, url: str, body: dict[str, Any] | None) -> Any:
    data = None if body is None else json.dumps(body).encode()
    request = urllib.request.Request(url, data=data, method=method, headers={"Content-Type": "application/json"})
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    try:
        with opener.open(request, timeout=SECONDS) as response:
            return json.load(response)["value"]
    except urllib.error.HTTPError as error:
        with error:
            raise BrowserError(json.load(error)["value"]["message"].splitlines()[0]) from None
