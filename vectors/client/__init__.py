"""A client for other programs: `Client` speaks to a node over HTTP. Needs requests, numpy and msgpack, no Django."""

from vectors.client.client import Client, UpsertResult
from vectors.client.errors import (
    BadAnswer,
    BadRequest,
    ClientError,
    Conflict,
    ErrorAnswer,
    NoAnswer,
    NotAuthenticated,
    NotFound,
    OutOfSpace,
    PermissionDenied,
    TooLarge,
    Unavailable,
)
from vectors.client.retries import Retries
from vectors.client.rows import Explanation, Fetched, Hit, Record, Rows
from vectors.client.searches import SearchOptions

__all__ = [
    "BadAnswer",
    "BadRequest",
    "Client",
    "ClientError",
    "Conflict",
    "ErrorAnswer",
    "Explanation",
    "Fetched",
    "Hit",
    "NoAnswer",
    "NotAuthenticated",
    "NotFound",
    "OutOfSpace",
    "PermissionDenied",
    "Record",
    "Retries",
    "Rows",
    "SearchOptions",
    "TooLarge",
    "Unavailable",
    "UpsertResult",
]
