"""A page of ours in headless Chromium: what goes wrong, what it asks for, and whether everyone can use it."""

import re
import shutil
from typing import Any, NamedTuple

import pytest

FLAGS = (
    '--no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking '
    '--disable-component-update --disable-sync'
).split()
NARROW, WIDE = 360, 1400
PATIENCE = 120_000  # milliseconds, for a machine that is busy with other tests


class Seen(NamedTuple):
    """What a browser made of a page.

    Attributes:
        console: Messages, errors and dialogs.
        requests: What it asked for beside the page itself.
        images: Width of each image as it was decoded, 0 for one that was not.
        overflow: Pixels by which the page is wider than the window, by window width.
        violations: Serious and critical findings of axe-core, at both widths, light and dark.
        reachable: What has the focus after each of the first presses of the tab key.
        printed: Pages of the PDF.
    """

    console: list[str]
    requests: list[str]
    images: list[int]
    overflow: dict[int, int]
    violations: list[str]
    reachable: list[str]
    printed: int


def look(path) -> Seen:
    """Opens a file; skips the test where there is no Chromium."""
    chromium = shutil.which('chromium') or shutil.which('chromium-browser') or shutil.which('google-chrome')
    if chromium is None:
        pytest.skip('no Chromium to open the page with: install the package chromium')
    from axe_playwright_python.sync_playwright import Axe
    from playwright.sync_api import sync_playwright

    console: list[str] = []
    requests: list[str] = []
    overflow: dict[int, int] = {}
    violations: list[str] = []

    def dismiss(dialog: Any) -> None:
        console.append(f'dialog: {dialog.message}')
        dialog.dismiss()

    with sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=chromium, args=list(FLAGS), timeout=PATIENCE)
        page = browser.new_page(viewport={'width': NARROW, 'height': 800})
        page.set_default_timeout(PATIENCE)
        page.on('console', lambda message: console.append(message.text))
        page.on('pageerror', lambda error: console.append(str(error)))
        page.on('dialog', dismiss)
        page.on('request', lambda request: requests.append(request.url))
        page.goto(path.as_uri())
        for width, scheme in ((NARROW, 'light'), (WIDE, 'dark')):
            page.set_viewport_size({'width': width, 'height': 800})
            page.emulate_media(color_scheme=scheme)
            overflow[width] = page.evaluate('document.documentElement.scrollWidth - window.innerWidth')
            for found in Axe().run(page).response['violations']:
                if found['impact'] in ('serious', 'critical'):
                    violations.append(f'{width} {scheme} {found["id"]}: {found["nodes"][0]["html"][:200]}')
        images = page.evaluate('[...document.images].map(image => image.naturalWidth)')
        reachable = []
        for _ in range(3):
            page.keyboard.press('Tab')
            reachable.append(page.evaluate('document.activeElement.textContent.trim()'))
        printed = len(re.findall(rb'/Type\s*/Page\b(?!s)', page.pdf(format='A4')))
        browser.close()
    others = [url for url in requests if url != path.as_uri() and not url.startswith('data:')]
    return Seen(console, others, images, overflow, violations, reachable, printed)
