"""Opens a page in headless Chromium, says what its console said, and takes its picture."""

from __future__ import annotations

import re
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

FLAGS = (
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--enable-logging=stderr",
    "--virtual-time-budget=2000",
    "--window-size=1280,2400",
)


@dataclass(frozen=True)
class Visit:
    """The document after its scripts ran, and each line of the console."""

    dom: str
    console: list[str]


def find_chromium() -> str | None:
    return shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")


def visit(page: Path, profile: Path, *more: str) -> Visit:
    """Load a local page with a fresh profile. Console messages of any level, policy violations among them, count."""
    chromium = find_chromium()
    assert chromium is not None
    command = [chromium, *FLAGS, f"--user-data-dir={profile}", *more, "--dump-dom", page.resolve().as_uri()]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True)
    return Visit(done.stdout, re.findall(r".*CONSOLE.*", done.stderr))
