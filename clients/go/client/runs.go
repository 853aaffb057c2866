package client

import (
	"context"
	"fmt"
	"iter"
	"strings"

	"google.golang.org/grpc"

	conveyorv1 "github.com/conveyor-ci/conveyor/clients/go/conveyor/v1"
)

// Ended says whether a run in this state changes no more.
func Ended(state conveyorv1.RunState) bool {
	switch state {
	case conveyorv1.RunState_RUN_STATE_SUCCEEDED, conveyorv1.RunState_RUN_STATE_FAILED,
		conveyorv1.RunState_RUN_STATE_CANCELLED:
		return true
	}
	return false
}

// StartRun starts a run of a resource on its pipeline, or on another one.
func (c *Client) StartRun(
	ctx context.Context, request *conveyorv1.StartRunRequest, opts ...grpc.CallOption,
) (*conveyorv1.Run, error) {
	answer, err := call(ctx, c, c.runs.StartRun, request, opts)
	return answer.GetRun(), err
}

// GetRun returns a run with its steps. [conveyor.ErrNotFound] when there is none.
func (c *Client) GetRun(ctx context.Context, id string, opts ...grpc.CallOption) (*conveyorv1.Run, error) {
	answer, err := call(ctx, c, c.runs.GetRun, &conveyorv1.GetRunRequest{Id: id}, opts)
	return answer.GetRun(), err
}

// ListRuns yields all that match, newest first, page after page.
func (c *Client) ListRuns(
	ctx context.Context, request *conveyorv1.ListRunsRequest, opts ...grpc.CallOption,
) iter.Seq2[*conveyorv1.Run, error] {
	return pages(ctx, c, c.runs.ListRuns, request, (*conveyorv1.ListRunsResponse).GetRuns, opts)
}

// ListLocks yields the locks that runs and steps hold or wait for, in the order of their keys, page after page.
func (c *Client) ListLocks(
	ctx context.Context, request *conveyorv1.ListLocksRequest, opts ...grpc.CallOption,
) iter.Seq2[*conveyorv1.HeldLock, error] {
	return pages(ctx, c, c.runs.ListLocks, request, (*conveyorv1.ListLocksResponse).GetLocks, opts)
}

// Children yields the runs that steps of a run started, newest first: one for each attempt of a step that runs a
// pipeline.
func (c *Client) Children(ctx context.Context, id string, opts ...grpc.CallOption) iter.Seq2[*conveyorv1.Run, error] {
	return c.ListRuns(ctx, &conveyorv1.ListRunsRequest{CallerRun: id}, opts...)
}

// CancelRun cancels a run: what waits ends at once, what runs is told to stop. [conveyor.ErrFailedPrecondition] when it
// has ended.
func (c *Client) CancelRun(
	ctx context.Context, request *conveyorv1.CancelRunRequest, opts ...grpc.CallOption,
) (*conveyorv1.Run, error) {
	answer, err := call(ctx, c, c.runs.CancelRun, request, opts)
	return answer.GetRun(), err
}

// RetryRun starts a new run that takes over what succeeded and runs the other steps again.
func (c *Client) RetryRun(
	ctx context.Context, request *conveyorv1.RetryRunRequest, opts ...grpc.CallOption,
) (*conveyorv1.Run, error) {
	answer, err := call(ctx, c, c.runs.RetryRun, request, opts)
	return answer.GetRun(), err
}

// DecideStep approves or rejects a gate that waits, and returns it as it is afterwards. The same decision by the same
// person again changes nothing. [conveyor.ErrFailedPrecondition] when the gate does not wait, or the person has decided
// otherwise.
func (c *Client) DecideStep(
	ctx context.Context, request *conveyorv1.DecideStepRequest, opts ...grpc.CallOption,
) (*conveyorv1.StepRun, error) {
	answer, err := call(ctx, c, c.runs.DecideStep, request, opts)
	return answer.GetStep(), err
}

// DeleteRun deletes a finished run with its logs, and returns it as it was.
func (c *Client) DeleteRun(
	ctx context.Context, request *conveyorv1.DeleteRunRequest, opts ...grpc.CallOption,
) (*conveyorv1.Run, error) {
	answer, err := call(ctx, c, c.runs.DeleteRun, request, opts)
	return answer.GetRun(), err
}

// WaitRun returns a run as it ended. When ctx is done before, the error says so and names the run's state.
func (c *Client) WaitRun(ctx context.Context, id string) (*conveyorv1.Run, error) {
	state := conveyorv1.RunState_RUN_STATE_UNSPECIFIED
	for update, err := range c.WatchRun(ctx, id) {
		if err != nil && ctx.Err() != nil {
			name := strings.TrimPrefix(state.String(), "RUN_STATE_")
			return nil, fmt.Errorf("run %s has not ended, its state is %s: %w", id, name, err)
		}
		if err != nil {
			return nil, err
		}
		if state = update.Run.GetState(); Ended(state) {
			return update.Run, nil
		}
	}
	return nil, fmt.Errorf("the watch of run %s ended before it", id)
}
