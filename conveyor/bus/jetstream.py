"""The few requests of the JetStream API that we make, as JSON; nats-py's own types lose fields and nanoseconds."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Any, cast

from conveyor.bus.errors import ApiError, BusUnavailable, TooLarge, WrongSequence
from conveyor.bus.session import REQUEST_S, Headers, NoResponders, Session

API = "$JS.API."

STREAM_NOT_FOUND = 10059
CONSUMER_NOT_FOUND = 10014
NO_MESSAGE = 10037
MESSAGE_NOT_DELETED = 10057
SUBJECTS_OVERLAP = 10065
NAME_IN_USE = 10058
_TOO_LARGE = 10054
_WRONG_SEQUENCE = frozenset({10070, 10071, 10164})

JsonObject = dict[str, Any]


@dataclass(frozen=True, slots=True)
class PubAck:
    """What the broker says once it has stored a message; of a duplicate, the sequence of the first one."""

    sequence: int
    duplicate: bool


class JetStream:
    """The JetStream API on one session. Everything raises BusUnavailable, and ApiError for what is refused."""

    def __init__(self, session: Session) -> None:
        self.session = session

    async def call(self, endpoint: str, payload: JsonObject | None = None, *, timeout: float = REQUEST_S) -> JsonObject:
        body = json.dumps(payload).encode() if payload is not None else b""
        try:
            message = await self.session.request(API + endpoint, body, timeout=timeout)
        except NoResponders:
            raise BusUnavailable("JetStream does not answer: is it switched on?") from None
        return _checked(message.data)

    async def publish(
        self, subject: str, body: bytes, *, headers: Headers | None = None, timeout: float = REQUEST_S
    ) -> PubAck:
        """Stores a message. Raises NoResponders (no stream has the subject), TooLarge and WrongSequence too."""
        message = await self.session.request(subject, body, headers=headers, timeout=timeout)
        try:
            answer = _checked(message.data)
        except ApiError as error:
            if error.err_code in _WRONG_SEQUENCE:
                raise WrongSequence(error.description) from None
            if error.err_code == _TOO_LARGE:
                raise TooLarge(len(body), self.session.max_payload) from None
            raise
        return PubAck(int(answer["seq"]), bool(answer.get("duplicate", False)))

    async def stream(self, name: str) -> JsonObject | None:
        """The stream's info; None when there is none."""
        return await self._found(f"STREAM.INFO.{name}", STREAM_NOT_FOUND)

    async def streams_with(self, subject: str) -> list[JsonObject]:
        """The streams whose subjects overlap with it."""
        answer = await self.call("STREAM.LIST", {"subject": subject})
        return cast("list[JsonObject]", answer.get("streams") or [])

    async def consumer(self, stream: str, name: str) -> JsonObject | None:
        """The consumer's info; None when there is none."""
        return await self._found(f"CONSUMER.INFO.{stream}.{name}", CONSUMER_NOT_FOUND)

    async def consumers(self, stream: str) -> AsyncIterator[JsonObject]:
        """The infos of all consumers, page by page."""
        offset = 0
        while True:
            answer = await self.call(f"CONSUMER.LIST.{stream}", {"offset": offset})
            page = answer.get("consumers") or []
            for consumer in page:
                yield consumer
            offset += len(page)
            if not page or offset >= int(answer.get("total", 0)):
                return

    async def message(self, stream: str, wanted: JsonObject) -> JsonObject | None:
        """The stored message that `seq` or `last_by_subj` names; None when there is none."""
        try:
            answer = await self.call(f"STREAM.MSG.GET.{stream}", wanted)
        except ApiError as error:
            if error.err_code == NO_MESSAGE:
                return None
            raise
        return cast(JsonObject, answer["message"])

    async def delete_message(self, stream: str, sequence: int) -> bool:
        """Deletes one message; False when it is not there."""
        try:
            await self.call(f"STREAM.MSG.DELETE.{stream}", {"seq": sequence, "no_erase": True})
        except ApiError as error:
            if error.err_code in (NO_MESSAGE, MESSAGE_NOT_DELETED):
                return False
            raise
        return True

    async def _found(self, endpoint: str, missing: int) -> JsonObject | None:
        try:
            return await self.call(endpoint)
        except ApiError as error:
            if error.err_code == missing or error.err_code == STREAM_NOT_FOUND:
                return None
            raise


def _checked(data: bytes) -> JsonObject:
    answer = cast(JsonObject, json.loads(data))
    if error := answer.get("error"):
        raise ApiError(int(error.get("code", 0)), int(error.get("err_code", 0)), str(error.get("description", "")))
    return answer
