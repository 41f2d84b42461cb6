"""A page in headless Chromium, by the DevTools protocol over two pipes: no driver, no port.

with browser.open_page(pathlib.Path('report.html')) as page:
    page.show(width=400, dark=True)
    page.evaluate('document.title')
    page.messages, page.requests
"""

import contextlib
import json
import os
import pathlib
import shutil
import subprocess
import tempfile
from collections.abc import Iterator

PROGRAM = shutil.which('chromium') or shutil.which('chromium-browser') or shutil.which('google-chrome')


class Page:
    """One page.

    Attributes:
      messages: what it, or the browser about it, has said on the console.
      requests: addresses that it has asked for, but for those that hold their content in themselves.
    """

    def __init__(self, commands, events, url: str):
        self._commands, self._events, self._url = commands, events, url
        self._number, self._session = 0, None
        self._read = [b'']  # of what has not been made a message yet
        self.messages: list[str] = []
        self.requests: list[str] = []
        target = self.call('Target.createTarget', url='about:blank')['targetId']
        self._session = self.call('Target.attachToTarget', targetId=target, flatten=True)['sessionId']
        for domain in ('Page', 'Network', 'Runtime', 'Log'):
            self.call(f'{domain}.enable')

    def show(self, *, width: int, dark: bool) -> None:
        """Loads the page anew, for a screen of this width in pixels, and waits until it is there with its images."""
        scheme = {'name': 'prefers-color-scheme', 'value': 'dark' if dark else 'light'}
        self.call('Emulation.setEmulatedMedia', features=[scheme])
        self.call('Emulation.setDeviceMetricsOverride', width=width, height=900, deviceScaleFactor=1, mobile=False)
        self.call('Page.navigate', url=self._url)
        while self._next().get('method') != 'Page.loadEventFired':
            pass

    def evaluate(self, code: str) -> object:
        """Returns the value of a JavaScript expression."""
        found = self.call('Runtime.evaluate', expression=code, returnByValue=True, awaitPromise=True)
        assert 'exceptionDetails' not in found, found
        return found['result'].get('value')

    def call(self, method: str, **params: object) -> dict:
        """Calls a method of the protocol and returns its result."""
        self._number += 1
        message = {'id': self._number, 'method': method, 'params': params}
        if self._session:
            message['sessionId'] = self._session
        self._commands.write(json.dumps(message).encode() + b'\0')
        self._commands.flush()
        while True:
            answer = self._next()
            if answer.get('id') == self._number:
                assert 'error' not in answer, (method, answer)
                return answer['result']

    def _next(self) -> dict:
        while b'\0' not in self._read[-1]:
            self._read.append(self._events.read1(2**20))
            assert self._read[-1], 'the browser has ended'
        last, _, rest = self._read.pop().partition(b'\0')
        message = json.loads(b''.join([*self._read, last]))
        self._read = [rest]
        params = message.get('params', {})
        match message.get('method'):
            case 'Runtime.consoleAPICalled' | 'Runtime.exceptionThrown' | 'Log.entryAdded':
                self.messages.append(json.dumps(params))
            case 'Network.requestWillBeSent':
                if params['request']['url'] != self._url and not params['request']['url'].startswith('data:'):
                    self.requests.append(params['request']['url'])
        return message


@contextlib.contextmanager
def open_page(path: pathlib.Path) -> Iterator[Page]:
    """Opens a file until the block ends."""
    command_reader, command_writer = os.pipe()
    event_reader, event_writer = os.pipe()

    def at_three_and_four() -> None:
        for source, number in ((os.dup(command_reader), 3), (os.dup(event_writer), 4)):
            os.dup2(source, number)

    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as profile:
        flags = ['--headless', '--no-sandbox', '--disable-gpu', '--disable-dev-shm-usage', '--no-first-run']
        flags += ['--disable-background-networking', f'--user-data-dir={profile}', '--remote-debugging-pipe']
        process = subprocess.Popen(
            [PROGRAM, *flags], preexec_fn=at_three_and_four, close_fds=False, stderr=subprocess.DEVNULL
        )
        os.close(command_reader)
        os.close(event_writer)
        try:
            with os.fdopen(command_writer, 'wb') as commands, os.fdopen(event_reader, 'rb') as events:
                yield Page(commands, events, path.absolute().as_uri())
        finally:
            process.terminate()
            process.wait(60)
