"""ScheduleService."""

from __future__ import annotations

from typing import Any

from conveyor.api.object_calls import ObjectCalls, request_slip, show
from conveyor.api.validation import DEFAULT_NAMESPACE, validate
from conveyor.state import keys
from conveyor.state.cache import Versioned
from conveyor.state.kinds import SCHEDULE
from conveyor.state.objects import Mode
from conveyor.state.repositories import Repositories
from conveyor.v1 import schedule_pb2, schedule_service_pb2_grpc
from conveyor.v1 import schedule_service_pb2 as pb


class ScheduleServicer(schedule_service_pb2_grpc.ScheduleServiceServicer):
    """Keeps schedules and shows what came of them. Each method does what the comment of its rpc says."""

    def __init__(self, repositories: Repositories) -> None:
        self._repositories = repositories
        self._schedules = repositories.schedules
        self._calls = ObjectCalls(repositories, SCHEDULE, "schedule")

    async def CreateSchedule(self, request: pb.CreateScheduleRequest, context: Any) -> pb.CreateScheduleResponse:
        response = pb.CreateScheduleResponse()
        await self._show(response.schedule, (await self._calls.write(request, Mode.CREATE)).item)
        return response

    async def GetSchedule(self, request: pb.GetScheduleRequest, context: Any) -> pb.GetScheduleResponse:
        response = pb.GetScheduleResponse()
        await self._show(response.schedule, await self._calls.get(request))
        return response

    async def ListSchedules(self, request: pb.ListSchedulesRequest, context: Any) -> pb.ListSchedulesResponse:
        items, token = await self._calls.list(request, keys.schedules, request.labels)
        statuses = await self._schedules.show_many(request.namespace or DEFAULT_NAMESPACE, items)
        response = pb.ListSchedulesResponse(next_page_token=token)
        for item, status in zip(items, statuses, strict=True):
            schedule = response.schedules.add()
            show(schedule, item)
            schedule.status.CopyFrom(status)
        return response

    async def UpdateSchedule(self, request: pb.UpdateScheduleRequest, context: Any) -> pb.UpdateScheduleResponse:
        response = pb.UpdateScheduleResponse()
        await self._show(response.schedule, (await self._calls.write(request, Mode.UPDATE)).item)
        return response

    async def ApplySchedule(self, request: pb.ApplyScheduleRequest, context: Any) -> pb.ApplyScheduleResponse:
        written = await self._calls.write(request, Mode.APPLY)
        response = pb.ApplyScheduleResponse(outcome=written.outcome)
        await self._show(response.schedule, written.item)
        return response

    async def DeleteSchedule(self, request: pb.DeleteScheduleRequest, context: Any) -> pb.DeleteScheduleResponse:
        response = pb.DeleteScheduleResponse()
        show(response.schedule, await self._calls.delete(request))
        return response

    async def TriggerSchedule(self, request: pb.TriggerScheduleRequest, context: Any) -> pb.TriggerScheduleResponse:
        request.namespace = namespace = await validate(request)
        slip = await request_slip(self._repositories, namespace, request)
        return pb.TriggerScheduleResponse(run=await self._schedules.trigger(namespace, request.name, slip))

    async def _show(self, target: schedule_pb2.Schedule, item: Versioned[schedule_pb2.Schedule]) -> None:
        show(target, item)
        target.status.CopyFrom(await self._schedules.show(item))
