package client

import (
	"context"
	"errors"
	"iter"

	"google.golang.org/grpc"

	"github.com/conveyor-ci/conveyor/clients/go/conveyor"
	conveyorv1 "github.com/conveyor-ci/conveyor/clients/go/conveyor/v1"
	"github.com/conveyor-ci/conveyor/clients/go/internal/link"
)

// WatchRuns yields the matching unfinished runs as they are, then each after each change, without end.
//
// It goes on by itself after the connection was lost; the end of a run that was seen is never missed.
func (c *Client) WatchRuns(
	ctx context.Context, request *conveyorv1.WatchRunsRequest, opts ...grpc.CallOption,
) iter.Seq2[RunUpdate, error] {
	return func(yield func(RunUpdate, error) bool) {
		w := &runsWatch{request: complete(c, request), unfinished: map[string]*conveyorv1.Run{}}
		w.before = map[string]*conveyorv1.Run{}
		w.yield = func(update RunUpdate) bool { return yield(update, nil) }
		w.missed = func(run *conveyorv1.Run) (RunUpdate, error) { return c.missed(ctx, run) }
		open := func(ctx context.Context) (grpc.ServerStreamingClient[conveyorv1.WatchRunsResponse], error) {
			if w.request.GetCursor() == "" {
				w.forget()
			}
			return c.runs.WatchRuns(ctx, w.request, opts...)
		}
		for {
			for message, err := range link.Resumed(ctx, c.link, silence, c.patience, open) {
				going := false
				if err == nil {
					going, err = w.take(message)
				}
				if err != nil {
					yield(RunUpdate{}, err)
				}
				if !going {
					return
				}
			}
		}
	}
}

// runsWatch is what is known of watched runs: what a later snapshot leaves out has ended meanwhile.
type runsWatch struct {
	request    *conveyorv1.WatchRunsRequest
	unfinished map[string]*conveyorv1.Run
	before     map[string]*conveyorv1.Run
	yield      func(RunUpdate) bool
	missed     func(*conveyorv1.Run) (RunUpdate, error)
}

// take yields what a message says; false ends the watch.
func (w *runsWatch) take(message *conveyorv1.WatchRunsResponse) (bool, error) {
	going := true
	var err error
	switch event := message.GetEvent().(type) {
	case *conveyorv1.WatchRunsResponse_Snapshot:
		going = w.takeSnapshot(event.Snapshot.GetRuns())
	case *conveyorv1.WatchRunsResponse_SnapshotEnd:
		going, err = w.takeEnd()
	case *conveyorv1.WatchRunsResponse_Changes:
		for _, change := range event.Changes.GetChanges() {
			w.know(change.GetRun())
			update := RunUpdate{Run: change.GetRun(), Changed: change.GetSteps(), Skipped: change.GetSkipped()}
			going = going && w.yield(update)
		}
	case *conveyorv1.WatchRunsResponse_Deleted:
		for _, run := range event.Deleted.GetRuns() {
			delete(w.unfinished, run.GetId())
			going = going && w.yield(RunUpdate{Run: run, Deleted: true})
		}
	case *conveyorv1.WatchRunsResponse_Reset_:
		w.forget()
		w.request.Cursor = ""
	}
	if message.GetCursor() != "" {
		w.request.Cursor = message.GetCursor()
	}
	return going, err
}

func (w *runsWatch) takeSnapshot(runs []*conveyorv1.Run) bool {
	for _, run := range runs {
		old := w.before[run.GetId()]
		delete(w.before, run.GetId())
		if old == nil {
			old = w.unfinished[run.GetId()]
		}
		w.unfinished[run.GetId()] = run
		news := old == nil || old.GetEtag() != run.GetEtag()
		if news && !w.yield(RunUpdate{Run: run, Reset: old != nil}) {
			return false
		}
	}
	return true
}

func (w *runsWatch) takeEnd() (bool, error) {
	for id, old := range w.before {
		update, err := w.missed(old)
		if err != nil {
			return false, err
		}
		delete(w.before, id)
		if !w.yield(update) {
			return false, nil
		}
	}
	return true, nil
}

func (w *runsWatch) know(run *conveyorv1.Run) {
	if Ended(run.GetState()) {
		delete(w.unfinished, run.GetId())
	} else {
		w.unfinished[run.GetId()] = run
	}
}

func (w *runsWatch) forget() {
	for id, run := range w.unfinished {
		w.before[id] = run
	}
	clear(w.unfinished)
}

// missed returns how a run ended that was unfinished and that a new snapshot leaves out.
func (c *Client) missed(ctx context.Context, old *conveyorv1.Run) (RunUpdate, error) {
	patience := link.NewPatience(c.patience, c.link.Logger)
	request := &conveyorv1.GetRunRequest{
		Namespace: c.namespace, Id: old.GetId(), View: conveyorv1.RunView_RUN_VIEW_BASIC,
	}
	for {
		answer, err := c.runs.GetRun(ctx, request)
		if err == nil {
			return RunUpdate{Run: answer.GetRun(), Reset: true}, nil
		}
		if errors.Is(err, conveyor.ErrNotFound) {
			return RunUpdate{Run: old, Deleted: true, Reset: true}, nil
		}
		if err := patience.Wait(ctx, link.AsError(err, c.Address())); err != nil {
			return RunUpdate{}, err
		}
	}
}
