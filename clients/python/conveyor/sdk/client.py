"""The client: everything that a user of Conveyor can ask the server for."""

from collections.abc import Sequence
from types import TracebackType
from typing import Self

from conveyor.sdk import config
from conveyor.sdk.config import Tls
from conveyor.sdk.connection import Connection
from conveyor.sdk.drivers import Drivers
from conveyor.sdk.logs import Logs
from conveyor.sdk.objects import Definitions, Pipelines, Resources, Schedules
from conveyor.sdk.runs import Runs
from conveyor.v1.server_pb2 import ServerInfo
from conveyor.v1.server_service_pb2 import GetServerInfoRequest
from conveyor.v1.server_service_pb2_grpc import ServerServiceStub


class Client:
    """A client of one Conveyor installation and one namespace; for one event loop.

        async with Client() as client:
            run = await client.runs.start("app", "shop")
            run = await client.runs.wait(run.id)

    All methods return the messages of `conveyor.v1` and raise the exceptions of `conveyor.sdk.errors`.
    """

    def __init__(
        self,
        address: str | Sequence[str] | None = None,
        *,
        namespace: str | None = None,
        tls: Tls | None = None,
        timeout: float = 30.0,
    ) -> None:
        """Nothing is sent before the first call.

        `address` is `host:port`; several, in a list or with commas between them, are servers of the same installation:
        when one does not answer, the next is taken. Default: CONVEYOR_ADDRESS, else 127.0.0.1:7460. `namespace`
        defaults to CONVEYOR_NAMESPACE, else "default"; `tls` to what CONVEYOR_TLS_* say. `timeout` bounds each call
        but the streams, in seconds. ConfigurationError when a setting is malformed.
        """
        self.namespace = config.namespace(namespace)
        self._connection = Connection(address, tls=tls, timeout=timeout)
        self.definitions = Definitions(self._connection, self.namespace)
        self.pipelines = Pipelines(self._connection, self.namespace)
        self.resources = Resources(self._connection, self.namespace)
        self.schedules = Schedules(self._connection, self.namespace)
        self.runs = Runs(self._connection, self.namespace)
        self.logs = Logs(self._connection, self.namespace)
        self.drivers = Drivers(self._connection, self.namespace)

    @property
    def address(self) -> str:
        """The address that calls go to now."""
        return self._connection.address

    async def server_info(self) -> ServerInfo:
        """What the server says of itself: version, store, broker, limits, time."""
        stub = self._connection.stub
        answer = await self._connection.call(lambda: stub(ServerServiceStub).GetServerInfo, GetServerInfoRequest())
        return answer.server_info

    async def close(self) -> None:
        """Close the connection; calls that run are cancelled."""
        await self._connection.close()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()
