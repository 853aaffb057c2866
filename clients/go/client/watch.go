package client

import (
	"context"
	"iter"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"

	"github.com/conveyor-ci/conveyor/clients/go/conveyor"
	conveyorv1 "github.com/conveyor-ci/conveyor/clients/go/conveyor/v1"
	"github.com/conveyor-ci/conveyor/clients/go/internal/link"
)

// The server says something every 15 s.
const silence = 50 * time.Second

// RunUpdate is a run after a change.
type RunUpdate struct {
	// Run is the run. From WatchRun with all its steps and snapshots, from WatchRuns without them.
	Run *conveyorv1.Run
	// Changed has the steps that changed; at first all that there are.
	Changed []*conveyorv1.StepRun
	// Skipped changes before this one were left out, because the reader was slow; this is the newest state.
	Skipped uint32
	// Reset says that changes before this one may be missing, because the server no longer had them.
	Reset bool
	// Deleted says that the run was deleted, and this is how it was. Only from WatchRuns.
	Deleted bool
}

// WatchRun yields one run as it is, then after each change, its terminal state last.
//
// It goes on by itself after the connection was lost. [conveyor.ErrNotFound] when there is no such run, or when it is
// deleted.
func (c *Client) WatchRun(ctx context.Context, id string, opts ...grpc.CallOption) iter.Seq2[RunUpdate, error] {
	return func(yield func(RunUpdate, error) bool) {
		w := runWatch{id: id}
		open := func(ctx context.Context) (grpc.ServerStreamingClient[conveyorv1.WatchRunResponse], error) {
			// Without a cursor the server begins anew, and what happened meanwhile is not told.
			w.reset = w.cursor == "" && w.known != nil
			request := &conveyorv1.WatchRunRequest{Namespace: c.namespace, Id: id, Cursor: w.cursor}
			return c.runs.WatchRun(ctx, request, opts...)
		}
		// A stream that ends before the run does, e.g. with its server, is opened again.
		for !Ended(w.known.GetState()) {
			for message, err := range link.Resumed(ctx, c.link, silence, c.patience, open) {
				if err != nil {
					yield(RunUpdate{}, err)
					return
				}
				if !w.take(message, yield) {
					return
				}
			}
		}
	}
}

// runWatch is what is known of a watched run.
type runWatch struct {
	id     string
	cursor string
	known  *conveyorv1.Run
	reset  bool
}

// take yields what a message says; false ends the watch.
func (w *runWatch) take(message *conveyorv1.WatchRunResponse, yield func(RunUpdate, error) bool) bool {
	switch event := message.GetEvent().(type) {
	case *conveyorv1.WatchRunResponse_Snapshot:
		for _, run := range event.Snapshot.GetRuns() {
			update, news := replaced(w.known, run, w.reset)
			w.known, w.reset = run, false
			if news && !yield(update, nil) {
				return false
			}
		}
	case *conveyorv1.WatchRunResponse_Changes:
		for _, change := range event.Changes.GetChanges() {
			update := merged(w.known, change)
			w.known = update.Run
			if !yield(update, nil) {
				return false
			}
		}
	case *conveyorv1.WatchRunResponse_Deleted:
		yield(RunUpdate{}, &conveyor.Error{
			Code: codes.NotFound, Reason: conveyorv1.ErrorReason_ERROR_REASON_NOT_FOUND,
			Message: "run " + w.id + " was deleted",
		})
		return false
	case *conveyorv1.WatchRunResponse_Reset_:
		w.reset, w.cursor = w.known != nil, ""
	}
	if message.GetCursor() != "" {
		w.cursor = message.GetCursor()
	}
	return true
}
