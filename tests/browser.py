"""Debian's Chromium, without windows and quiet: a browser for a test module."""

import shutil
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import Any

import pytest
from playwright.async_api import Browser, async_playwright

SWITCHES = (
    *("--no-sandbox", "--disable-gpu", "--disable-background-networking", "--no-first-run", "--disable-quic"),
    *("--disable-component-update", "--disable-sync"),
)

WHOLE = ("chromium",)
"""The browser that people have. Of what tests need, it alone keeps a page for the way back to it."""

PROGRAMS = ("chromium-headless-shell", *WHOLE)
"""The first is a Chromium that was built without windows: a test in it takes two thirds of the CPU, a start half."""


@asynccontextmanager
async def open_chromium(*switches: str, programs: Sequence[str] = PROGRAMS, **options: Any) -> AsyncIterator[Browser]:
    """A browser, the first of these programs that is installed; the test is skipped where none is."""
    binary = next(filter(None, map(shutil.which, programs)), None)
    if binary is None:
        pytest.skip("chromium is not installed")
    async with async_playwright() as playwright:
        browser = await playwright.chromium.launch(executable_path=binary, args=[*SWITCHES, *switches], **options)
        yield browser
        await browser.close()
