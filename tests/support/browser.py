"""A headless Chromium that tests drive by the DevTools protocol, over two pipes. It needs no other package."""

import fcntl
import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
OPTIONS = [
    "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-sync",
    "--disable-background-networking", "--disable-component-update", "--remote-debugging-pipe",
    "--host-resolver-rules=MAP * ~NOTFOUND",  # no network
]  # fmt: skip
LAUNCH = "import os, sys; _, r, w, *run = sys.argv; os.dup2(int(r), 3); os.dup2(int(w), 4); os.execv(run[0], run)"
"""Chromium reads messages from file descriptor 3 and writes them to 4."""
SECONDS = 30


class Browser:
    """A tab that shows a page and its frames. `problems` lists exceptions, errors and warnings of the console."""

    def __init__(self, profile: Path):
        (child_in, self._out), (self._in, child_out) = map(_pipe, range(2))
        command = [sys.executable, "-c", LAUNCH, str(child_in), str(child_out), CHROMIUM, f"--user-data-dir={profile}"]
        self._process = subprocess.Popen(
            [*command, *OPTIONS], pass_fds=(child_in, child_out), stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL
        )
        os.close(child_in), os.close(child_out)
        self._number, self._buffer, self._answers = 0, b"", {}
        self._sessions, self.problems = [], []
        target = self.send("Target.createTarget", url="about:blank")["targetId"]
        self._tab = self.send("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        self._prepare(self._tab)

    def __enter__(self) -> "Browser":
        return self

    def __exit__(self, *error: Any) -> None:
        self._process.terminate()
        self._process.wait()
        os.close(self._in), os.close(self._out)

    # --- pages

    def open(self, path: Path, width: int = 1000, height: int = 800, dark: bool = False) -> None:
        """Opens a file and waits until its frames are drawn."""
        self.problems.clear()
        del self._sessions[1:]
        self.send(
            "Emulation.setDeviceMetricsOverride", self._tab, width=width, height=height, deviceScaleFactor=1,
            mobile=False,
        )  # fmt: skip
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self.send("Emulation.setEmulatedMedia", self._tab, features=[scheme])
        self.send("Page.navigate", self._tab, url=path.resolve().as_uri())
        self.until(lambda: self.run("document.readyState") == "complete", "the page is loaded")

    def run(self, code: str, session: str | None = None) -> Any:
        """The value of a JavaScript expression in the page, or in the frame of a session."""
        result = self.send("Runtime.evaluate", session or self._tab, expression=code, returnByValue=True)
        if "exceptionDetails" in result:
            raise RuntimeError(f"{code}: {result['exceptionDetails']}")
        return result["result"].get("value")

    def frames(self) -> list[str]:
        """The sessions of the frames that have their own process, as sandboxed frames do."""
        self.run("0")  # reads the messages so far
        return self._sessions[1:]

    def until(self, holds: Any, what: str) -> None:
        end = time.monotonic() + SECONDS
        while not holds():
            assert time.monotonic() < end, f"after {SECONDS} s it does not hold that {what}"
            time.sleep(0.02)

    def mouse(self, x: float, y: float, click: bool = False) -> None:
        """Moves the mouse to a point of the page, and clicks there."""
        self.send("Input.dispatchMouseEvent", self._tab, type="mouseMoved", x=x, y=y)
        for kind in ("mousePressed", "mouseReleased") if click else ():
            self.send("Input.dispatchMouseEvent", self._tab, type=kind, x=x, y=y, button="left", clickCount=1)

    def screenshot(self) -> str:
        """The page as a PNG image, in base64."""
        return self.send("Page.captureScreenshot", self._tab, captureBeyondViewport=True)["data"]

    # --- messages

    def send(self, method: str, session: str | None = None, **params: Any) -> dict[str, Any]:
        self._number = number = self._number + 1
        message = {"id": number, "method": method, "params": params}
        os.write(self._out, json.dumps(message | ({"sessionId": session} if session else {})).encode() + b"\0")
        while number not in self._answers:
            self._read()
        answer = self._answers.pop(number)
        if "error" in answer:
            raise RuntimeError(f"{method}: {answer['error']}")
        return answer["result"]

    def _read(self) -> None:
        """Reads one message. A new frame sends messages of its own, so answers are kept until they are asked for."""
        while b"\0" not in self._buffer:
            part = os.read(self._in, 2**16)
            if not part:
                raise RuntimeError("Chromium ended")
            self._buffer += part
        text, _, self._buffer = self._buffer.partition(b"\0")
        message = json.loads(text)
        if "id" in message:
            self._answers[message["id"]] = message
        self._note(message.get("method"), message.get("params", {}))

    def _note(self, method: str | None, params: dict[str, Any]) -> None:
        """Attaches to new frames, and keeps what went wrong."""
        if method == "Target.attachedToTarget" and params["targetInfo"]["type"] == "iframe":
            self._prepare(params["sessionId"])
        if method == "Runtime.exceptionThrown":
            self.problems.append(params["exceptionDetails"])
        if method == "Runtime.consoleAPICalled" and params["type"] in ("error", "warning", "assert"):
            self.problems.append(params["args"])
        if method == "Log.entryAdded" and params["entry"]["level"] in ("error", "warning"):
            self.problems.append(params["entry"])

    def _prepare(self, session: str) -> None:
        self._sessions.append(session)
        for domain in ("Runtime", "Log", "Page"):
            self.send(f"{domain}.enable", session)
        self.send("Target.setAutoAttach", session, autoAttach=True, waitForDebuggerOnStart=False, flatten=True)


def _pipe(_: int) -> tuple[int, int]:
    """A pipe, whose descriptors are above 9."""
    low = os.pipe()
    high = tuple(fcntl.fcntl(end, fcntl.F_DUPFD_CLOEXEC, 10) for end in low)
    for end in low:
        os.close(end)
    return high
