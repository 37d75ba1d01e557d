"""What a page would fetch, and what its console says when headless Chromium opens it."""

from __future__ import annotations

import re
import shutil
import subprocess
from collections.abc import Callable
from dataclasses import dataclass
from html.parser import HTMLParser
from pathlib import Path

import pytest

from patience import PATIENCE

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
DARK = "--blink-settings=preferredColorScheme=0"  # as if the reader's system were set to dark


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
    done = subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE, check=True)
    return Visit(done.stdout, re.findall(r".*CONSOLE.*", done.stderr))


def needs_chromium(test: Callable[..., None]) -> Callable[..., None]:
    """Marks a test that opens a page in the browser: slow, and skipped where there is none."""
    missing = find_chromium() is None
    return pytest.mark.slow(
        pytest.mark.skipif(missing, reason="chromium is not installed (Debian package chromium)")(test)
    )


class _Links(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.fetched: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.fetched += [value or "" for key, value in attrs if key in ("src", "href", "srcset", "data", "action")]


def fetched(page: str) -> list[str]:
    """Everything an HTML text would fetch."""
    links = _Links()
    links.feed(page)
    return links.fetched
