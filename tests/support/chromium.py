"""A headless Chromium, driven over the WebDriver protocol (W3C) with nothing but the standard library."""

from __future__ import annotations

import base64
import io
import json
import os
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
from PIL import Image

from tests.support.distributed import free_port
from tests.support.needs import lacking, skip_or_fail

PROGRAMS = ("chromium", "chromedriver")
REQUIRE = "NEUROPBR_REQUIRE_CHROMIUM"
ARGUMENTS = (
    "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-dev-shm-usage",
    "--disable-background-networking", "--disable-component-update", "--disable-sync", "--hide-scrollbars",
)  # fmt: skip
# WebGL on the processor; without these a machine without a GPU has none.
WEBGL = ("--use-angle=swiftshader", "--enable-unsafe-swiftshader")
NO_WEBGL = ("--disable-3d-apis",)
WAIT_S = 60


class Browser:
    """One window of one browser."""

    def __init__(self, url: str, session: dict[str, Any]) -> None:
        self._url = f"{url}/session/{session['sessionId']}"

    def open(self, page: Path | str) -> None:
        """A file, or an address."""
        address = page if isinstance(page, str) else page.resolve().as_uri()
        call("POST", f"{self._url}/url", {"url": address})

    def run(self, script: str, *arguments: Any) -> Any:
        """What a function's body in JavaScript returns; a promise is waited for."""
        return call("POST", f"{self._url}/execute/sync", {"script": script, "args": list(arguments)})

    def until(self, script: str, *arguments: Any) -> None:
        """Wait until it returns something true."""
        end = time.monotonic() + WAIT_S
        while not self.run(script, *arguments):
            assert time.monotonic() < end, f"never true: {script}"
            time.sleep(0.05)

    def pixels(self, selector: str) -> np.ndarray:
        """What a canvas shows, uint8 (H, W, 3)."""
        data = self.run(f"return document.querySelector({json.dumps(selector)}).toDataURL('image/png')")
        with Image.open(io.BytesIO(base64.b64decode(data.split(",", 1)[1]))) as picture:
            return np.asarray(picture.convert("RGB"))

    def screenshot(self) -> bytes:
        """PNG of the whole page."""
        shot = self.devtools("Page.captureScreenshot", captureBeyondViewport=True)
        return base64.b64decode(shot["data"])

    def devtools(self, command: str, **parameters: Any) -> Any:
        return call("POST", f"{self._url}/goog/cdp/execute", {"cmd": command, "params": parameters})

    def point(self, selector: str, x: float, y: float) -> None:
        """Move the mouse to a place of an element, (0, 0) its upper left, (1, 1) its lower right corner."""
        self.run("document.querySelector(arguments[0]).scrollIntoView({block: 'center'})", selector)
        box = self.run(
            "const b = document.querySelector(arguments[0]).getBoundingClientRect();"
            "return [b.left, b.top, b.width, b.height]",
            selector,
        )
        place = {"x": round(box[0] + x * box[2]), "y": round(box[1] + y * box[3])}
        self.devtools("Input.dispatchMouseEvent", type="mouseMoved", **place)

    def console(self) -> list[str]:
        """Messages of the console since the last call: errors, warnings, and what was refused."""
        return [entry["message"] for entry in self._log("browser")]

    def requests(self) -> list[str]:
        """URLs that the page asked for since the last call."""
        events = [json.loads(entry["message"])["message"] for entry in self._log("performance")]
        return [e["params"]["request"]["url"] for e in events if e["method"] == "Network.requestWillBeSent"]

    def _log(self, kind: str) -> list[dict[str, Any]]:
        return call("POST", f"{self._url}/se/log", {"type": kind})

    def close(self) -> None:
        call("DELETE", self._url)


@contextmanager
def browser(*arguments: str, size: tuple[int, int] = (1280, 900)) -> Iterator[Browser]:
    """A browser with a fresh profile; `arguments` are Chromium's. Skips, or fails if it must be there."""
    skip_or_fail("Chromium", lacking(PROGRAMS, "chromium chromium-driver"), REQUIRE)
    with TemporaryDirectory(prefix="neuropbr-test-") as profile:
        port = free_port()
        driver = subprocess.Popen(
            ["chromedriver", f"--port={port}"],
            stdout=subprocess.DEVNULL,
            env=dict(os.environ) | {"HOME": profile},
        )
        url = f"http://127.0.0.1:{port}"
        try:
            wait_for(lambda: call("GET", f"{url}/status")["ready"], driver)
            words = [
                *ARGUMENTS, *arguments, f"--user-data-dir={profile}/profile", f"--window-size={size[0]},{size[1]}"
            ]  # fmt: skip
            options = {"args": words, "perfLoggingPrefs": {"enableNetwork": True}}
            logs = {"browser": "ALL", "performance": "ALL"}
            wanted = {"browserName": "chrome", "goog:chromeOptions": options, "goog:loggingPrefs": logs}
            session = call("POST", f"{url}/session", {"capabilities": {"alwaysMatch": wanted}})
            window = Browser(url, session)
            try:
                yield window
            finally:
                window.close()
        finally:
            driver.terminate()
            driver.wait()


def wait_for(ready: Callable[[], bool], driver: subprocess.Popen) -> None:
    end = time.monotonic() + WAIT_S
    while True:
        assert driver.poll() is None and time.monotonic() < end, "chromedriver did not start"
        try:
            if ready():
                return
        except urllib.error.URLError:
            pass
        time.sleep(0.05)


def call(method: str, url: str, body: dict[str, Any] | None = None) -> Any:
    data = None if body is None else json.dumps(body).encode()
    request = urllib.request.Request(url, data, {"Content-Type": "application/json"}, method=method)
    # No proxy of the environment stands between this process and its own driver.
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    try:
        with opener.open(request, timeout=2 * WAIT_S) as reply:
            return json.load(reply)["value"]
    except urllib.error.HTTPError as error:
        raise AssertionError(json.load(error)["value"]["message"]) from None
