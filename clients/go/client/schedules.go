package client

import (
	"context"
	"iter"

	"google.golang.org/grpc"

	conveyorv1 "github.com/conveyor-ci/conveyor/clients/go/conveyor/v1"
)

// CreateSchedule creates a schedule. [conveyor.ErrAlreadyExists] when there is one of that name.
func (c *Client) CreateSchedule(
	ctx context.Context, request *conveyorv1.CreateScheduleRequest, opts ...grpc.CallOption,
) (*conveyorv1.Schedule, error) {
	answer, err := call(ctx, c, c.schedules.CreateSchedule, request, opts)
	return answer.GetSchedule(), err
}

// GetSchedule returns a schedule: the current one, or an earlier generation of it.
func (c *Client) GetSchedule(
	ctx context.Context, request *conveyorv1.GetScheduleRequest, opts ...grpc.CallOption,
) (*conveyorv1.Schedule, error) {
	answer, err := call(ctx, c, c.schedules.GetSchedule, request, opts)
	return answer.GetSchedule(), err
}

// UpdateSchedule replaces a schedule. [conveyor.ErrAborted] when its etag is set and not the current one.
func (c *Client) UpdateSchedule(
	ctx context.Context, request *conveyorv1.UpdateScheduleRequest, opts ...grpc.CallOption,
) (*conveyorv1.Schedule, error) {
	answer, err := call(ctx, c, c.schedules.UpdateSchedule, request, opts)
	return answer.GetSchedule(), err
}

// DeleteSchedule deletes a schedule and returns it as it was.
func (c *Client) DeleteSchedule(
	ctx context.Context, request *conveyorv1.DeleteScheduleRequest, opts ...grpc.CallOption,
) (*conveyorv1.Schedule, error) {
	answer, err := call(ctx, c, c.schedules.DeleteSchedule, request, opts)
	return answer.GetSchedule(), err
}

// ApplySchedule creates a schedule, or replaces it when it differs. The answer says which.
func (c *Client) ApplySchedule(
	ctx context.Context, request *conveyorv1.ApplyScheduleRequest, opts ...grpc.CallOption,
) (*conveyorv1.ApplyScheduleResponse, error) {
	return call(ctx, c, c.schedules.ApplySchedule, request, opts)
}

// ListSchedules yields all schedules that match, page after page, in the order of their names.
func (c *Client) ListSchedules(
	ctx context.Context, request *conveyorv1.ListSchedulesRequest, opts ...grpc.CallOption,
) iter.Seq2[*conveyorv1.Schedule, error] {
	return pages(ctx, c, c.schedules.ListSchedules, request, (*conveyorv1.ListSchedulesResponse).GetSchedules, opts)
}

// TriggerSchedule starts a run of a schedule at once, also while it is paused. [conveyor.ErrFailedPrecondition] when a
// run of it has not ended and it says not to start another.
func (c *Client) TriggerSchedule(
	ctx context.Context, request *conveyorv1.TriggerScheduleRequest, opts ...grpc.CallOption,
) (*conveyorv1.Run, error) {
	answer, err := call(ctx, c, c.schedules.TriggerSchedule, request, opts)
	return answer.GetRun(), err
}
