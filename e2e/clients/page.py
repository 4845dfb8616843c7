"""Drives the page at `/` of an endpoint in a headless Chromium, as somebody who tries an adapter does.

    page.py URL MODEL PROMPT SCREENSHOT

Chooses the model, types the prompt, sends it with Enter, and prints the answer, the version that is named beside it and
the times. Writes a picture of the page at the end. Needs Python alone. Exit code 3: there is no Chromium.
"""

import base64
import fcntl
import json
import os
import select
import shutil
import subprocess
import sys
import tempfile
import time

BROWSERS = ("chromium-headless-shell", "chromium", "chromium-browser", "google-chrome")
# The page is there in a second; a busy machine takes longer to start a browser, and so may an answer.
LIMIT_SECONDS = 30


class Browser:
    """Speaks the DevTools protocol over two pipes: JSON, ended by a zero byte."""

    def __init__(self, program, profile):
        commands, self.commands = os.pipe()
        self.events, events = os.pipe()
        # Out of the way of 3 and 4, where the browser looks for them.
        commands, events = (fcntl.fcntl(end, fcntl.F_DUPFD, 10) for end in (commands, events))
        arguments = ["--headless", "--remote-debugging-pipe", f"--user-data-dir={profile}", "--disable-gpu"]
        # The page is our own; as root, Chromium starts in no other way.
        arguments += ["--no-sandbox", "--disable-dev-shm-usage"] if os.geteuid() == 0 else []
        self.log = tempfile.TemporaryFile()
        self.process = subprocess.Popen(
            [program, *arguments, "about:blank"],
            stdin=subprocess.DEVNULL,
            stdout=self.log,
            stderr=self.log,
            pass_fds=(3, 4),
            preexec_fn=lambda: (os.dup2(commands, 3), os.dup2(events, 4)),
        )
        os.close(commands)
        os.close(events)
        self.held = b""
        self.number = 0
        self.session = None
        self.errors = []

    def message(self, limit):
        while b"\0" not in self.held:
            wait = limit - time.monotonic()
            if wait <= 0 or not select.select([self.events], [], [], wait)[0]:
                self.fail("the browser did not answer in time")
            data = os.read(self.events, 1 << 16)
            if not data:
                self.fail("the browser ended")
            self.held += data
        message, self.held = self.held.split(b"\0", 1)
        return json.loads(message)

    def fail(self, reason):
        self.log.seek(0)
        raise SystemExit(f"{reason}: {self.log.read().decode(errors='replace')[-2000:]}")

    def call(self, method, **parameters):
        self.number += 1
        command = {"id": self.number, "method": method, "params": parameters}
        if self.session:
            command["sessionId"] = self.session
        os.write(self.commands, json.dumps(command).encode() + b"\0")
        limit = time.monotonic() + LIMIT_SECONDS
        while True:
            message = self.message(limit)
            if message.get("method") in ("Runtime.exceptionThrown", "Log.entryAdded"):
                self.errors.append(message["params"])
            if message.get("id") == self.number:
                if "error" in message:
                    self.fail(f"{method}: {message['error']}")
                return message["result"]

    def open(self, url):
        target = self.call("Target.createTarget", url="about:blank")["targetId"]
        self.session = self.call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in ("Page", "Runtime", "Log"):
            self.call(f"{domain}.enable")
        answer = self.call("Page.navigate", url=url)
        if "errorText" in answer:
            self.fail(f"{url}: {answer['errorText']}")

    def value(self, expression):
        result = self.call("Runtime.evaluate", expression=expression, returnByValue=True)
        if "exceptionDetails" in result:
            self.fail(f"{expression}: {result['exceptionDetails']}")
        return result["result"].get("value")

    def wait_for(self, expression):
        limit = time.monotonic() + LIMIT_SECONDS
        while not self.value(expression):
            if time.monotonic() > limit:
                said = self.value("document.body.innerText")
                self.fail(f"waited in vain for {expression}; the page says {said!r}; errors: {self.errors}")
            time.sleep(0.1)

    def press_enter(self):
        key = {"key": "Enter", "code": "Enter", "windowsVirtualKeyCode": 13, "text": "\r"}
        self.call("Input.dispatchKeyEvent", type="keyDown", **key)
        self.call("Input.dispatchKeyEvent", type="keyUp", **{**key, "text": ""})

    def close(self):
        self.session = None
        try:
            self.call("Browser.close")
            self.process.wait(10)
        except (OSError, SystemExit, subprocess.TimeoutExpired):
            self.process.kill()
            self.process.wait()


def choose(browser, control, value):
    """Sets a control as a hand does: the page hears of it."""
    browser.value(
        f"(() => {{ const it = document.getElementById({json.dumps(control)}); it.value = {json.dumps(value)};"
        " it.dispatchEvent(new Event('change', {bubbles: true})); })()"
    )


def try_adapter(browser, url, model, prompt):
    browser.open(url)
    options = "[...(document.getElementById('model')?.options ?? [])]"
    browser.wait_for(f"{options}.some((it) => it.value === {json.dumps(model)})")
    choose(browser, "model", model)
    choose(browser, "mode", "completion")
    choose(browser, "temperature", "0")
    choose(browser, "limit", "6")
    browser.value("document.getElementById('text').focus()")
    browser.call("Input.insertText", text=prompt)
    browser.press_enter()
    # The page gives the keyboard back once the answer is there.
    browser.wait_for("document.querySelector('#talk .answer .facts, #talk .wrong') && !document.getElementById('send').disabled")
    said = json.loads(
        browser.value(
            "JSON.stringify(Object.fromEntries(Object.entries({question: '.question p', answer: '.answer p',"
            " version: '.answer .who', facts: '.answer .facts', wrong: '.wrong'})"
            ".map(([name, at]) => [name, document.querySelector('#talk ' + at)?.textContent])))"
        )
    )
    assert "wrong" not in said, said
    assert said["question"] == prompt and said["answer"].strip(), said
    assert said["version"].startswith(f"{model}@"), said
    assert "first text after" in said["facts"] and "tokens/s" in said["facts"], said
    assert not browser.errors, browser.errors
    return said


def main(url, model, prompt, screenshot):
    program = next(filter(None, map(shutil.which, BROWSERS)), None)
    if program is None:
        sys.exit(3)
    with tempfile.TemporaryDirectory(prefix="graftwork-page-", ignore_cleanup_errors=True) as profile:
        browser = Browser(program, profile)
        try:
            said = try_adapter(browser, url, model, prompt)
            picture = browser.call("Page.captureScreenshot", format="png")["data"]
        finally:
            browser.close()
    with open(screenshot, "wb") as file:
        file.write(base64.b64decode(picture))
    first_line = said["answer"].strip().splitlines()[0]
    print(f"{first_line!r} ({said['version']}; {said['facts']})")


if __name__ == "__main__":
    main(*sys.argv[1:])
