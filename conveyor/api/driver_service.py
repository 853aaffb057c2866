"""DriverService."""

from __future__ import annotations

from typing import Any

from conveyor.api.paging import open_page
from conveyor.api.ports import Drivers
from conveyor.api.validation import validate
from conveyor.core import limits
from conveyor.v1 import driver_service_pb2 as pb
from conveyor.v1 import driver_service_pb2_grpc


class DriverServicer(driver_service_pb2_grpc.DriverServiceServicer):
    """Shows the drivers. Each method does what the comment of its rpc says."""

    def __init__(self, drivers: Drivers) -> None:
        self._drivers = drivers

    async def GetDriver(self, request: pb.GetDriverRequest, context: Any) -> pb.GetDriverResponse:
        namespace = await validate(request)
        return pb.GetDriverResponse(driver=await self._drivers.get(namespace, request.name))

    async def ListDrivers(self, request: pb.ListDriversRequest, context: Any) -> pb.ListDriversResponse:
        namespace = await validate(request)
        page = open_page(request, namespace)
        found, more = await self._drivers.list(namespace, page.after, page.size)
        response = pb.ListDriversResponse()
        size = 0
        for driver in found:
            size += driver.ByteSize()
            if response.drivers and size > limits.PAGE_BYTES:
                more = True
                break
            response.drivers.append(driver)
        if more and response.drivers:
            response.next_page_token = page.token(response.drivers[-1].name)
        return response

    async def DeleteDriver(self, request: pb.DeleteDriverRequest, context: Any) -> pb.DeleteDriverResponse:
        namespace = await validate(request)
        return pb.DeleteDriverResponse(driver=await self._drivers.delete(namespace, request.name))
