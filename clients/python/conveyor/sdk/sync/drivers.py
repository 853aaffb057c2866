# Derived from conveyor/sdk/drivers.py by `make gen`; change that.
"""The drivers that made themselves known."""

from collections.abc import Generator
from typing import TYPE_CHECKING

from conveyor.sdk.sync.connection import Connection
from conveyor.v1.driver_pb2 import Driver
from conveyor.v1.driver_service_pb2 import DeleteDriverRequest, GetDriverRequest, ListDriversRequest
from conveyor.v1.driver_service_pb2_grpc import DriverServiceStub

if TYPE_CHECKING:
    from conveyor.v1.driver_service_pb2_grpc import DriverServiceStub


class Drivers:
    """The drivers of a namespace, as the server sees them."""

    def __init__(self, connection: Connection, namespace: str) -> None:
        self._connection = connection
        self._namespace = namespace

    @property
    def _stub(self) -> "DriverServiceStub":
        return self._connection.stub(DriverServiceStub)

    def get(self, name: str) -> Driver:
        """One with its connected workers. NotFound when none of that name was ever seen."""
        request = GetDriverRequest(namespace=self._namespace, name=name)
        return self._connection.call(lambda: self._stub.GetDriver, request).driver

    def list(self, *, page_size: int = 0) -> Generator[Driver, None, None]:
        """All of them, page after page, in the order of their names."""
        request = ListDriversRequest(namespace=self._namespace, page_size=page_size)
        while True:
            answer = self._connection.call(lambda: self._stub.ListDrivers, request)
            yield from answer.drivers
            if not answer.next_page_token:
                return
            request.page_token = answer.next_page_token

    def delete(self, name: str) -> Driver:
        """Forget one that has no connected worker, and return it as it was."""
        request = DeleteDriverRequest(namespace=self._namespace, name=name)
        return self._connection.call(lambda: self._stub.DeleteDriver, request).driver
