"""A test server for JetStream drivers: a broker with the server's streams, tickets, and what drivers publish."""

import asyncio
import json
from base64 import b64decode
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from conveyor.verify import tickets
from conveyor.verify.attempt import Attempt, Attempts
from conveyor.verify.broker import Broker
from conveyor.verify.door import Door
from conveyor.verify.site import CannotServe
from conveyor.verify.waiting import Changes, cancelled

try:
    import nats.errors
    from nats.aio.client import Client
except ImportError:
    raise CannotServe(
        'to verify a JetStream driver nats-py must be there: pip install "conveyor-client[jetstream]"'
    ) from None

if TYPE_CHECKING:
    from nats.aio.msg import Msg

_LOOK_S = 0.05
_CONSUMER_S = 0.2
_ANSWER_S = 5.0
# What can be repeated at once is not waited for long: the broker may be killed before it answers.
_SIGHT_S = 1.0
_PUBLISHED_S = 30.0
_AWAY = (nats.errors.Error, OSError, TimeoutError)


class JetStreamSite:
    """See Site. The driver's consumer is in `consumer`, as the broker last described it."""

    def __init__(self, namespace: str, driver: str, folder: Path) -> None:
        self.changes = Changes()
        self.attempts = Attempts()
        self.namespace = namespace
        self.broker = Broker(folder)
        self.consumer: Mapping[str, Any] = {}
        self.acks: dict[int, list[str]] = {}
        """What drivers said of tickets, by their sequence: +ACK, +WPI, -NAK, +TERM."""
        self.looks = 0
        """How often the consumer was looked at."""
        self.sequences: dict[str, int] = {}
        """The sequence of each attempt's ticket, by token."""
        self._driver = driver
        self._process = 0
        self._door = Door()
        self._client = Client()
        self._tasks: list[asyncio.Task[None]] = []

    @property
    def environment(self) -> Mapping[str, str]:
        return {"CONVEYOR_NATS": f"nats://{self._door.address}", "CONVEYOR_TRANSPORT": "jetstream"}

    @property
    def name(self) -> str:
        """The consumer's name; empty before there is one."""
        return str(self.consumer.get("name", ""))

    @property
    def driver(self) -> str:
        """The driver that the consumer belongs to."""
        return self._driver or self.name.removeprefix(tickets.consumer(self.namespace, ""))

    @property
    def filters(self) -> list[str]:
        """The subjects that the consumer asks for."""
        config = self.consumer.get("config", {})
        single = config.get("filter_subject")
        return config.get("filter_subjects") or ([single] if single else [])

    @property
    def subject(self) -> str:
        """Where the driver's tickets go: for the first definition that it asks for."""
        start = f"{tickets.prefix(self.namespace)}drivers.{self.driver}.resources."
        wanted = next((each.removeprefix(start) for each in self.filters if each.startswith(start)), "")
        return start + (wanted if wanted not in ("", "*", ">") else "verify")

    async def start(self) -> None:
        await self.come_back()
        await self._client.connect(
            f"nats://{self._door.address}",
            error_cb=_ignore,
            max_reconnect_attempts=-1,
            reconnect_time_wait=0.1,  # type: ignore[arg-type] # It may be less than a second.
            allow_reconnect=True,
        )
        for name in tickets.STREAMS:
            await self.call(f"STREAM.CREATE.{name}", tickets.stream(name))
        await self._client.subscribe("$JS.ACK.messages.>", cb=self._acknowledged)
        self._tasks = [
            asyncio.create_task(self._read("pipeline", self._take_result)),
            asyncio.create_task(self._read("logs", self._take_lines)),
            asyncio.create_task(self._watch_consumer()),
        ]

    async def close(self) -> None:
        await cancelled(*self._tasks)
        await self._disconnect()
        await self._door.close()
        await self.broker.kill()

    def abandon(self) -> None:
        self.broker.abandon()

    async def forget_driver(self) -> None:
        await self._forget_tickets()
        if self.name:
            with suppress(CannotServe):
                await self.call(f"CONSUMER.DELETE.messages.{self.name}")
        self.consumer = {}
        # A look that is under way may still show the one that was deleted.
        self._process += 1

    def ready(self) -> str:
        if not self.name:
            return "no consumer was made on stream messages"
        if not self.consumer.get("num_waiting") and not self.consumer.get("push_bound"):
            return f"nobody pulled from its consumer {self.name}"
        return ""

    async def give(self, attempts: Sequence[Attempt]) -> None:
        for attempt in attempts:
            await self.publish_ticket(attempt, self.ticket(attempt), attempt.token)

    async def cancel(self, attempt: Attempt) -> None:
        notice = {"attempt": attempt.number, "token": attempt.token, "message": "cancelled by verify", "grace": 10.0}
        subject = f"{tickets.prefix(self.namespace)}cancel.{attempt.run}.{attempt.step}"
        await self._client.publish(subject, json.dumps(notice).encode())

    async def go_away(self) -> None:
        # In this order: nobody is let in who finds no broker.
        await self._door.shut()
        await self.broker.kill()

    async def come_back(self) -> None:
        await self.broker.start()
        self._door.target = self.broker.address
        await self._door.open()

    async def tidy(self) -> None:
        self.broker.thaw()
        await self._forget_tickets()

    def ticket(self, attempt: Attempt) -> dict[str, Any]:
        """The ticket that gives the attempt to the driver. It is known from now on."""
        self.attempts.add(attempt)
        return tickets.ticket(attempt, self.namespace, self.driver, self.subject.rpartition(".")[2])

    async def publish_ticket(self, attempt: Attempt, ticket: Mapping[str, Any], message_id: str) -> None:
        """Publish a ticket; under the same id the broker takes it only once."""
        self.sequences[attempt.token] = await self.publish(tickets.encode(ticket), message_id)

    async def publish(self, body: bytes, message_id: str) -> int:
        """Publish to the driver's tickets until the broker has it; its sequence. Raises CannotServe."""
        subject, headers = self.subject, {"Nats-Msg-Id": message_id}
        give_up = asyncio.get_running_loop().time() + _PUBLISHED_S
        while asyncio.get_running_loop().time() < give_up:
            with suppress(*_AWAY):
                answer = await self._client.request(subject, body, timeout=_SIGHT_S, headers=headers)
                said = json.loads(answer.data)
                if "seq" in said:
                    return int(said["seq"])
            await asyncio.sleep(_LOOK_S)
        raise CannotServe(f"the broker does not take a ticket on {subject}")

    async def call(
        self, endpoint: str, request: Mapping[str, Any] | None = None, timeout: float = _ANSWER_S
    ) -> dict[str, Any]:
        """Ask JetStream for something. Raises CannotServe when it does not answer or refuses."""
        try:
            body = json.dumps(request).encode() if request is not None else b""
            answer = await self._client.request(f"$JS.API.{endpoint}", body, timeout=timeout)
        except _AWAY as error:
            raise CannotServe(f"the broker does not answer {endpoint}: {error!r}") from None
        said: dict[str, Any] = json.loads(answer.data)
        if "error" in said:
            raise CannotServe(f"the broker refused {endpoint}: {said['error'].get('description')}")
        return said

    async def _disconnect(self) -> None:
        with suppress(*_AWAY):
            await self._client.close()
        # The client does not end a connection that it was just making.
        writer = getattr(self._client._transport, "_io_writer", None)
        if writer is not None:
            writer.transport.abort()

    async def _forget_tickets(self) -> None:
        """Take back all tickets: what no driver has begun with by now is not begun."""
        with suppress(CannotServe):
            await self.call("STREAM.PURGE.messages")
        for attempt in self.attempts.open:
            if not attempt.lines:
                attempt.over = True

    async def _watch_consumer(self) -> None:
        """Keep `consumer` up to date."""
        wanted = tickets.consumer(self.namespace, self._driver)
        while True:
            process = self._process
            with suppress(CannotServe):
                found = (await self.call("CONSUMER.LIST.messages", {"offset": 0}, _SIGHT_S)).get("consumers") or []
                named = [each for each in found if each["name"] == wanted] if self._driver else []
                if process == self._process:
                    self.consumer = (named or found or [{}])[0]
                    self.looks += 1
                    self.changes.notify()
            await asyncio.sleep(_CONSUMER_S)

    async def _read(self, stream: str, take: Any) -> None:
        """Take all messages of a stream, in order, also those that come while we are not connected."""
        sequence = 1
        while True:
            request = {"seq": sequence, "next_by_subj": ">"}
            try:
                found = await self.call(f"STREAM.MSG.GET.{stream}", request, _SIGHT_S)
            except CannotServe:
                await asyncio.sleep(_LOOK_S)
                continue
            message = found["message"]
            sequence = message["seq"] + 1
            take(b64decode(message.get("data", "")), tickets.nanoseconds(message["time"]))
            self.changes.notify()

    def _take_result(self, body: bytes, at: int) -> None:
        answer = tickets.answer(body, at)
        attempt = self.attempts.find(answer.run, answer.step, answer.number) if answer is not None else None
        if attempt is not None and answer is not None:
            attempt.answers.append(answer)

    def _take_lines(self, body: bytes, at: int) -> None:
        for run, step, number, line in tickets.lines(body, at):
            attempt = self.attempts.find(run, step, number)
            if attempt is not None:
                attempt.lines.append(line)

    async def _acknowledged(self, message: "Msg") -> None:
        """$JS.ACK.[domain.account.]stream.consumer.deliveries.sequence.consumer sequence.time.pending"""
        parts = message.subject.split(".")
        sequence = parts[5] if len(parts) == 9 else parts[7]
        self.acks.setdefault(int(sequence), []).append(message.data.decode(errors="replace") or "+ACK")
        self.changes.notify()


async def _ignore(error: Exception) -> None:
    """A broker that is away is no news here."""
