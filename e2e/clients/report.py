"""Opens a Dataset's report in a headless Chromium, as somebody does who was sent the file.

    report.py REPORT SCREENSHOT

Fails where the page asks the network for anything, says an error, or has a chart without a title or without bars.
Writes a picture of the page and prints the charts' titles. Needs Python alone. Exit code 3: there is no Chromium.
"""

import base64
import json
import pathlib
import shutil
import sys
import tempfile

from page import BROWSERS, Browser

CHARTS = """JSON.stringify([...document.querySelectorAll('svg')].map((svg) => ({
    title: svg.getAttribute('aria-label'),
    caption: svg.closest('figure')?.querySelector('figcaption')?.textContent,
    role: svg.getAttribute('role'),
    bars: svg.querySelectorAll('rect').length,
    wide: svg.getBoundingClientRect().width <= document.documentElement.clientWidth,
    outside: [...svg.querySelectorAll('text')].filter((text) => text.getBBox().y < -1).length,
})))"""


class Watcher(Browser):
    """Notes what the page asks for."""

    def __init__(self, program, profile):
        self.asked = []
        super().__init__(program, profile)

    def message(self, limit):
        message = super().message(limit)
        if message.get("method") == "Network.requestWillBeSent":
            self.asked.append(message["params"]["request"]["url"])
        return message

    def call(self, method, **parameters):
        if method == "Page.navigate":
            super().call("Network.enable")
        return super().call(method, **parameters)


def look(browser, url):
    browser.open(url)
    browser.wait_for("document.readyState === 'complete' && document.querySelector('h1') !== null")
    charts = json.loads(browser.value(CHARTS))
    assert browser.asked == [url], browser.asked
    assert not browser.errors, browser.errors
    assert browser.value("document.title") == browser.value("document.querySelector('h1').textContent")
    assert browser.value("document.querySelectorAll('script, link, img, iframe, object').length") == 0
    assert charts, "there are no charts"
    for chart in charts:
        assert chart["title"] and chart["title"] == chart["caption"] and chart["role"] == "img", chart
        assert chart["bars"] > 0 and chart["wide"] and not chart["outside"], chart
    return charts


def main(report, screenshot):
    program = next(filter(None, map(shutil.which, BROWSERS)), None)
    if program is None:
        sys.exit(3)
    url = pathlib.Path(report).resolve().as_uri()
    with tempfile.TemporaryDirectory(prefix="graftwork-report-", ignore_cleanup_errors=True) as profile:
        browser = Watcher(program, profile)
        try:
            charts = look(browser, url)
            picture = browser.call("Page.captureScreenshot", format="png", captureBeyondViewport=True)["data"]
        finally:
            browser.close()
    with open(screenshot, "wb") as file:
        file.write(base64.b64decode(picture))
    print("; ".join(sorted({chart["title"] for chart in charts})))


if __name__ == "__main__":
    main(*sys.argv[1:])
