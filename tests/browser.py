"""A headless Chromium, driven by the DevTools protocol over a pipe: no driver, no port, no other library."""

import base64
import json
import os
import shutil
import subprocess
import time
from pathlib import Path
from typing import Self
from urllib.parse import urlsplit

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
FLAGS = (
    "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-sync",
    "--disable-background-networking", "--disable-component-update", "--hide-scrollbars",
    "--force-prefers-reduced-motion", "--remote-debugging-pipe",
)  # fmt: skip
PATIENCE = 60  # seconds that anything may take


class Browser:
    """A page of Chromium; `hosts` are those that it has sent requests to, `errors` what its scripts threw.

    Use it as a context: the browser ends with it.
    """

    def __init__(self, folder: Path) -> None:
        # Chromium reads commands from descriptor 3 and writes answers to 4, each ended by a zero byte.
        read, self._commands = os.pipe()
        self._answers, write = os.pipe()
        arguments = [*FLAGS, f"--user-data-dir={folder}", "about:blank"]
        redirected = f'exec "$0" "$@" 3<&{read} 4>&{write}'
        self._process = subprocess.Popen(  # noqa: S603 - our own command
            ["/bin/bash", "-c", redirected, CHROMIUM, *arguments],
            pass_fds=(read, write),
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
        os.close(read)
        os.close(write)
        self._buffer, self._sent, self._page = b"", 0, None
        self.hosts: set[str] = set()
        self.errors: list[str] = []
        target = self.send("Target.createTarget", url="about:blank")["targetId"]
        self._page = self.send("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in ("Page", "Runtime", "Network"):
            self.send(f"{domain}.enable")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self._page = None
        self.send("Browser.close")
        self._process.wait(PATIENCE)
        os.close(self._commands)
        os.close(self._answers)

    def send(self, method: str, **parameters: object) -> dict:
        """Send a command and return its result; events that come before it are noted."""
        self._sent += 1
        command = {"id": self._sent, "method": method, "params": parameters}
        if self._page is not None:
            command["sessionId"] = self._page
        os.write(self._commands, json.dumps(command).encode() + b"\0")
        while True:
            message = self._receive()
            if message.get("id") == self._sent:
                assert "error" not in message, message["error"]
                return message["result"]
            self._note(message)

    def _receive(self) -> dict:
        while b"\0" not in self._buffer:
            part = os.read(self._answers, 1 << 20)
            assert part, "the browser has ended"
            self._buffer += part
        message, _, self._buffer = self._buffer.partition(b"\0")
        return json.loads(message)

    def _note(self, event: dict) -> None:
        if event["method"] == "Network.requestWillBeSent":
            url = urlsplit(event["params"]["request"]["url"])
            if url.scheme not in ("data", "blob"):
                self.hosts.add(url.hostname)
        elif event["method"] == "Runtime.exceptionThrown":
            self.errors.append(json.dumps(event["params"]["exceptionDetails"]))

    def open(self, url: str, *, width: int = 1280, height: int = 900, dark: bool = False) -> None:
        """Load a page in a window of this size, in the light or the dark theme."""
        self.resize(width, height)
        theme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self.send("Emulation.setEmulatedMedia", features=[theme])
        self.send("Page.navigate", url=url)

    def resize(self, width: int, height: int) -> None:
        """Give the window another size."""
        size = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": width < 600}
        self.send("Emulation.setDeviceMetricsOverride", **size)

    def run(self, script: str) -> object:
        """Return the value of a JavaScript expression."""
        found = self.send("Runtime.evaluate", expression=script, returnByValue=True, awaitPromise=True)
        assert "exceptionDetails" not in found, found
        return found["result"].get("value")

    def wait(self, condition: str) -> object:
        """Return the value of an expression as soon as it is true."""
        end = time.monotonic() + PATIENCE
        while not (value := self.run(condition)):
            assert time.monotonic() < end, f"never true: {condition}"
            time.sleep(0.05)
        return value

    def press(self, key: str) -> None:
        """Press and release a key, such as `Enter`, `Tab` or `ArrowRight`."""
        codes = {"Enter": 13, "Tab": 9, "ArrowRight": 39, "ArrowLeft": 37}
        for kind in ("keyDown", "keyUp"):
            text = {"text": "\r"} if key == "Enter" and kind == "keyDown" else {}
            self.send("Input.dispatchKeyEvent", type=kind, key=key, windowsVirtualKeyCode=codes[key], **text)

    def type(self, text: str) -> None:
        """Type a text over what the focused field holds."""
        self.run("document.activeElement.select()")
        for letter in text:
            self.send("Input.dispatchKeyEvent", type="keyDown", key=letter, text=letter)
            self.send("Input.dispatchKeyEvent", type="keyUp", key=letter)

    def screenshot(self, path: Path) -> None:
        """Write a picture of the whole page."""
        size = self.send("Page.getLayoutMetrics")["cssContentSize"]
        clip = {"x": 0, "y": 0, "width": size["width"], "height": size["height"], "scale": 1}
        data = self.send("Page.captureScreenshot", clip=clip, captureBeyondViewport=True)["data"]
        path.write_bytes(base64.b64decode(data))
