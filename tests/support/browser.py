"""A headless Chromium, driven by the WebDriver protocol through the standard library alone."""

import base64
import json
import re
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.error import HTTPError
from urllib.request import Request, urlopen

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
DRIVER = shutil.which("chromedriver")
#: Seconds within which one command is answered.
PATIENCE = 60


class Browser:
    """One window. `run` runs a script in it; `said` is what its console said."""

    def __init__(self, address: str) -> None:
        self.address = address

    def ask(self, method: str, path: str, body: Any = None) -> Any:
        """One command of the protocol; its value."""
        data = None if body is None else json.dumps(body).encode()
        request = Request(self.address + path, data, method=method)
        try:
            with urlopen(request, timeout=PATIENCE) as answer:
                return json.load(answer)["value"]
        except HTTPError as error:
            raise RuntimeError(f"{path}: {error.read().decode()[:500]}") from error

    def open(self, path: Path) -> None:
        """Open a file."""
        self.ask("POST", "/url", {"url": path.absolute().as_uri()})

    def run(self, script: str) -> Any:
        """What a script returns."""
        return self.ask("POST", "/execute/sync", {"script": script, "args": []})

    def click(self, selector: str) -> None:
        """Click as a person does: what is hidden or covered cannot be clicked."""
        found = self.ask("POST", "/element", {"using": "css selector", "value": selector})
        self.ask("POST", f"/element/{next(iter(found.values()))}/click", {})

    def resize(self, width: int, height: int) -> None:
        """Show the page as on a screen of that size, in CSS pixels."""
        metrics = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": True}
        self.ask("POST", "/goog/cdp/execute",
                 {"cmd": "Emulation.setDeviceMetricsOverride", "params": metrics})  # fmt: skip

    def said(self) -> list[str]:
        """Warnings and errors of the console since it was last asked."""
        return [entry["message"] for entry in self.ask("POST", "/se/log", {"type": "browser"})]

    def picture(self, path: Path) -> None:
        """Write what is seen to a PNG."""
        path.write_bytes(base64.b64decode(self.ask("GET", "/screenshot")))


@contextmanager
def browser(width: int = 1200, height: int = 900) -> Iterator[Browser]:
    """A browser of its own, with a profile of its own, gone afterwards."""
    with tempfile.TemporaryDirectory(prefix="chromium-") as profile:
        driver = subprocess.Popen(
            [str(DRIVER), "--port=0"], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
        )
        try:
            port = _port(driver)
            root = Browser(f"http://127.0.0.1:{port}")
            options = {
                "binary": CHROMIUM,
                "args": [
                    "--headless", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage",
                    "--disable-background-networking", "--no-first-run",
                    f"--window-size={width},{height}", f"--user-data-dir={profile}",
                ],
            }  # fmt: skip
            wanted = {"goog:chromeOptions": options, "goog:loggingPrefs": {"browser": "ALL"}}
            made = root.ask("POST", "/session", {"capabilities": {"alwaysMatch": wanted}})
            window = Browser(f"{root.address}/session/{made['sessionId']}")
            try:
                yield window
            finally:
                window.ask("DELETE", "")
        finally:
            driver.terminate()
            driver.wait(PATIENCE)
            if driver.stdout is not None:
                driver.stdout.close()


def _port(driver: subprocess.Popen[str]) -> int:
    """The port that the driver says it listens to."""
    for line in driver.stdout or ():
        found = re.search(r"started successfully on port (\d+)", line)
        if found:
            return int(found.group(1))
    raise RuntimeError("chromedriver did not start")
