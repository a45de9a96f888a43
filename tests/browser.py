"""Debian's Chromium, headless and quiet: a browser for a test module."""

import shutil
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest
from playwright.async_api import Browser, async_playwright

SWITCHES = (
    *("--no-sandbox", "--disable-gpu", "--disable-background-networking", "--no-first-run", "--disable-quic"),
    *("--disable-component-update", "--disable-sync"),
)


@asynccontextmanager
async def open_chromium(*switches: str, **options: Any) -> AsyncIterator[Browser]:
    """A browser; the test is skipped where none is installed."""
    binary = shutil.which("chromium")
    if binary is None:
        pytest.skip("chromium is not installed")
    async with async_playwright() as playwright:
        browser = await playwright.chromium.launch(executable_path=binary, args=[*SWITCHES, *switches], **options)
        yield browser
        await browser.close()
