"""What can go wrong between two nodes: one tree, told apart by what it says about the peer.

All are `Unavailable`: to the client of this node it is the same whether a peer refused, was silent or spoke nonsense.
`code` and `status` are what this node answers when nobody handles the error; what the peer itself answered is in
`PeerRejected.peer_code` and `peer_status`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from vectors.errors import MLVectorDBError, Unavailable


class PeerError(Unavailable):
    """Raised itself only when this node could not even try (no file descriptor, no port): it says nothing of the peer.

    `url` is the base URL of the peer; the message begins with it.
    """

    code = "peer_unavailable"

    def __init__(
        self,
        message: str,
        *,
        url: str = "",
        detail: Mapping[str, Any] | None = None,
        retry_after_s: float | None = None,
    ) -> None:
        about = {"url": url} if url else {}
        super().__init__(f"{url} {message}".strip(), detail={**about, **(detail or {})}, retry_after_s=retry_after_s)
        self.url = url


class PeerRefused(PeerError):
    """Raised when no connection could be made, and that was known at once: nothing listens there, or no such host.

    `may_be_done`: an earlier try of the same call lost its connection, and may have been carried out.
    """

    code = "peer_refused"
    may_be_done = False


class PeerLost(PeerError):
    """Raised when the connection ended before the answer was complete. The request may have been carried out."""

    code = "peer_lost"


class PeerSilent(PeerError):
    """Raised when no complete answer came in time, and at once for a peer that has been silent (`waited` False).

    The request may have been carried out when it was waited for.
    """

    code = "peer_silent"

    def __init__(self, message: str, *, url: str = "", waited: bool = True) -> None:
        super().__init__(message, url=url)
        self.waited = waited


class PeerGarbled(PeerError):
    """Raised when the answer is not one of a node: no HTTP, a redirect, too large, bad JSON, a wrong checksum."""

    code = "peer_garbled"


class PeerRejected(PeerError):
    """Raised when the peer answered with an error of its own, in the one error shape.

    `peer_status` (HTTP), `peer_code`, `peer_message`, `peer_field` and `peer_detail` are what it said.
    """

    code = "peer_rejected"

    def __init__(
        self,
        *,
        url: str,
        peer_status: int,
        peer_code: str,
        peer_message: str,
        peer_field: str | None = None,
        peer_detail: Mapping[str, Any] | None = None,
        retry_after_s: float | None = None,
    ) -> None:
        super().__init__(
            f"answered {peer_status} {peer_code}: {peer_message}",
            url=url,
            detail={"status": peer_status, "code": peer_code},
            retry_after_s=retry_after_s,
        )
        self.peer_status = peer_status
        self.peer_code = peer_code
        self.peer_message = peer_message
        self.peer_field = peer_field
        self.peer_detail = dict(peer_detail or {})

    def as_own(self, refusals: Refusals) -> MLVectorDBError | None:
        """Return the error as it is raised where this node refuses itself; None for one that is not of `refusals`."""
        made = refusals.get((self.peer_status, self.peer_code))
        if made is None:
            return None
        return made(self.peer_message, field=self.peer_field, detail=self.peer_detail, retry_after_s=self.retry_after_s)


Refusals = dict[tuple[int, str], type[MLVectorDBError]]
"""Errors that mean the same at a peer as here, by the status and the code that a peer answers."""


def refusals(*kinds: type[MLVectorDBError], status: int | None = None) -> Refusals:
    """Return errors by what a peer answers; `status` where that is another one than the error has here."""
    return {(status or kind.status, kind.code): kind for kind in kinds}
