"""Read byte ranges of remote files without storing them: HTTP range requests that resume after an interrupted response.

Connections are those of `huggingface_hub`, with its settings for proxies and certificates. A large file of the hub is a
redirect to another host with a signed URL, which is requested again when it has expired. The token is sent only to the hub.
"""

from __future__ import annotations

import re
import socket
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from email.utils import parsedate_to_datetime
from threading import Event, Lock
from typing import Any, Final
from urllib.parse import urljoin, urlsplit

from quantcli.core.errors import HubError

TRIES: Final = 6
"""After so many consecutive failures, without `PROGRESS` between them, reading fails."""

PROGRESS: Final = 1 << 16
"""After so many bytes, the count of consecutive failures starts again."""

FIRST_DELAY: Final = 0.5
"""Seconds to wait after the first failure, doubled after each further one."""

LONGEST_DELAY: Final = 120.0
"""The longest delay in seconds that a server may ask for."""

_REDIRECTS: Final = (301, 302, 303, 307, 308)
_MAX_REDIRECTS: Final = 5
_PASSING: Final = (408, 425, 429, 500, 502, 503, 504)
"""Statuses of temporary failures, after which a request is repeated."""
_EXPIRED: Final = (400, 401, 403, 404, 410)
"""Statuses of other hosts for an expired signed URL."""

_CONTENT_RANGE: Final = re.compile(r"bytes (\d+)-(\d+)/(\d+|\*)")

_DOWNLOAD: Final = "Leave --remote off: the model is downloaded then."
_CHANGED: Final = "Run the command again."


@dataclass(eq=False)
class WebFile:
    """A file of the hub, at the commit in its URL."""

    label: str
    """The name of the file in errors."""
    url: str
    size: int
    """The size in bytes, negative while it is unknown."""
    digest: str | None = None
    """The hash in the hub's listing, which is also the ETag of a redirect."""
    location: str | None = None
    """The URL of the last redirect, if it is on another host."""
    etags: dict[str, str] = field(default_factory=dict)
    """Host -> the ETag of its first response."""


class _PassingError(Exception):
    """A temporary failure, with the delay in seconds that the server asked for."""

    def __init__(self, what: str, wait: float | None = None) -> None:
        super().__init__(what)
        self.wait = wait


class RangeReader:
    """Fills buffers with byte ranges of files, from any number of threads at once.

    session   the result of `huggingface_hub.utils.get_session`
    home      the endpoint of the hub
    headers   sent with every request
    private   headers with the token, sent only to `home`
    timeout   seconds for each chunk of a response
    explain   returns message and hint for an error of `huggingface_hub`
    """

    def __init__(
        self,
        session: Any,
        home: str,
        *,
        headers: Mapping[str, str],
        private: Mapping[str, str],
        timeout: float,
        explain: Callable[[Exception], tuple[str, str]],
    ) -> None:
        self._session = session
        self._home = _origin(home)
        self._headers = {**headers, "Accept-Encoding": "identity"}
        self._private = dict(private)
        self._timeout = timeout
        self._explain = explain
        self._closing = Event()
        self._lock = Lock()
        self._sockets: set[socket.socket] = set()

    def read_into(self, file: WebFile, out: memoryview, position: int) -> None:
        """Fill `out`, a view of bytes, from byte `position` of `file` on.

        Raises:
            HubError: if the server refuses, does not support ranges, has another file than before, or fails repeatedly.
        """
        done, failures, counted = 0, 0, 0
        while done < len(out):
            try:
                for piece in self._response_chunks(file, position + done, position + len(out) - 1):
                    if done + len(piece) > len(out):
                        raise HubError(f"{file.label}: the server sends more bytes than were asked for", hint=_DOWNLOAD)
                    out[done : done + len(piece)] = piece
                    done += len(piece)
                if done < len(out):
                    raise _PassingError("the answer ends early")
            except _PassingError as error:
                if done - counted >= PROGRESS:
                    failures = 0
                failures, counted = failures + 1, done
                self._wait(file, error, failures)

    def learn_size(self, file: WebFile) -> None:
        """Request the size of a file that the hub lists without it.

        Raises:
            HubError: as `read_into`; also if the server does not send the size.
        """
        self.read_into(file, memoryview(bytearray(1)), 0)
        if file.size < 0:
            raise HubError(f"{file.label}: the server does not say how long it is", hint=_DOWNLOAD)

    def close(self) -> None:
        """Make all reads fail, also those that wait for a response. Safe to call from any thread."""
        self._closing.set()
        with self._lock:
            for connection in self._sockets:
                with suppress(OSError):
                    connection.shutdown(socket.SHUT_RDWR)

    # --- one response -----------------------------------------------------------------------------------------------------

    def _response_chunks(self, file: WebFile, first: int, last: int) -> Iterator[bytes]:
        from huggingface_hub.errors import HTTPError

        try:
            with self._answer(file, first, last) as response, self._interruptible(response):
                self._check_open(file)  # `close` may have run before the connection was registered
                for piece in response.iter_raw():
                    yield piece
                    self._check_open(file)
        except HTTPError as error:
            self._check_open(file)
            raise _PassingError(str(error).strip() or type(error).__name__) from error

    @contextmanager
    def _answer(self, file: WebFile, first: int, last: int) -> Iterator[Any]:
        """The response with the bytes `first` to `last`, after redirects."""
        url = file.location or file.url
        for _ in range(_MAX_REDIRECTS):
            self._check_open(file)
            at_home = _origin(url) == self._home
            headers = {**self._headers, **(self._private if at_home else {}), "Range": f"bytes={first}-{last}"}
            with self._session.stream(
                "GET", url, headers=headers, follow_redirects=False, timeout=self._timeout
            ) as response:
                if response.status_code not in _REDIRECTS:
                    self._check_status(file, url, response, first, last)
                    yield response
                    return
                self._check_link(file, response)
                url = urljoin(url, response.headers.get("Location", ""))
                file.location = None if _origin(url) == self._home else url
        raise HubError(f"{file.label}: more than {_MAX_REDIRECTS} redirects", hint=_DOWNLOAD)

    def _check_status(self, file: WebFile, url: str, response: Any, first: int, last: int) -> None:
        status = response.status_code
        if status == 206:
            self._check_range(file, url, response, first, last)
        elif status == 200:
            length = int(response.headers.get("Content-Length") or -1)
            if length not in (file.size, -1):
                raise _changed(file, f"it has {length} bytes and not {file.size}")
            if (first, last) != (0, file.size - 1):
                raise HubError(f"{file.label}: the server does not support range requests", hint=_DOWNLOAD)
        elif _origin(url) != self._home and status in _EXPIRED:
            if file.location == url:  # another thread may already have a new one
                file.location = None
            raise _PassingError(f"its address has expired (status {status})", wait=0.0)
        elif status == 416:
            raise _changed(file, f"it ends before byte {first}")
        elif status in _PASSING:
            raise _PassingError(f"status {status}", _asked_wait(response.headers.get("Retry-After")))
        else:
            raise self._refusal(file, response)

    def _refusal(self, file: WebFile, response: Any) -> HubError:
        from huggingface_hub.errors import HTTPError
        from huggingface_hub.utils import hf_raise_for_status

        try:
            response.read()
            hf_raise_for_status(response)
        except HTTPError as error:
            message, hint = self._explain(error)
            return HubError(f"{file.label}: {message}", hint=hint)
        return HubError(f"{file.label}: the server answers with status {response.status_code}", hint=_DOWNLOAD)

    def _check_range(self, file: WebFile, url: str, response: Any, first: int, last: int) -> None:
        told = _CONTENT_RANGE.fullmatch(response.headers.get("Content-Range", ""))
        if told is None or int(told[1]) != first or int(told[2]) > last:
            said = response.headers.get("Content-Range", "no Content-Range")[:60]
            raise HubError(f"{file.label}: the server sends other bytes than {first}-{last}: {said}", hint=_DOWNLOAD)
        if file.size < 0 and told[3] != "*":
            file.size = int(told[3])
        if told[3] not in ("*", str(file.size)):
            raise _changed(file, f"it has {told[3]} bytes and not {file.size}")
        etag = response.headers.get("ETag")
        if etag and file.etags.setdefault(_origin(url), etag) != etag:
            raise _changed(file, "its ETag is another")

    def _check_link(self, file: WebFile, response: Any) -> None:
        """Compare size and hash in a redirect of the hub with its listing."""
        size = response.headers.get("X-Linked-Size")
        if size not in (None, str(file.size)):
            raise _changed(file, f"it has {size} bytes and not {file.size}")
        etag = response.headers.get("X-Linked-Etag", "").removeprefix("W/").strip('"')
        if etag and file.digest and etag != file.digest:
            raise _changed(file, f"its hash is {etag[:80]}, the hub listed {file.digest}")

    # --- waiting and ending -----------------------------------------------------------------------------------------------

    def _wait(self, file: WebFile, error: _PassingError, failures: int) -> None:
        """Wait before the next attempt, or fail after too many."""
        self._check_open(file)
        if failures >= TRIES:
            hint = "Check the connection, or try again later; nothing was written."
            raise HubError(f"{file.label}: cannot be read, after {failures} attempts: {error}", hint=hint) from error
        if error.wait is not None and error.wait > LONGEST_DELAY:
            hint = f"Try again after {error.wait:,.0f} seconds."
            raise HubError(f"{file.label}: {error}: the server asks for a longer wait than the limit", hint=hint) from error
        usual = FIRST_DELAY * 2 ** (failures - 1)
        self._closing.wait(usual if error.wait is None else error.wait)
        self._check_open(file)

    def _check_open(self, file: WebFile) -> None:
        if self._closing.is_set():
            raise HubError(f"{file.label}: reading was stopped")

    @contextmanager
    def _interruptible(self, response: Any) -> Iterator[None]:
        """Let `close` shut the connection down while a response is read."""
        stream = response.extensions.get("network_stream")
        connection = stream.get_extra_info("socket") if stream else None
        if connection is None:
            yield
            return
        with self._lock:
            self._sockets.add(connection)
        try:
            yield
        finally:
            with self._lock:
                self._sockets.discard(connection)


def _changed(file: WebFile, how: str) -> HubError:
    return HubError(f"{file.label}: the file has changed while it was read: {how}", hint=_CHANGED)


def _origin(url: str) -> str:
    """Scheme, host and port of a URL, which decide whether the token is sent."""
    parts = urlsplit(url)
    return f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}".lower()


def _asked_wait(text: str | None) -> float | None:
    """The seconds in a Retry-After header, which is a number of seconds or a date; None without one."""
    if text is None:
        return None
    with suppress(ValueError):
        return max(0.0, float(text))
    with suppress(ValueError, TypeError):
        return max(0.0, parsedate_to_datetime(text).timestamp() - time.time())
    return None
