package client

import (
	"testing"

	conveyorv1 "github.com/conveyor-ci/conveyor/clients/go/conveyor/v1"
)

const (
	pending   = conveyorv1.StepState_STEP_STATE_PENDING
	running   = conveyorv1.StepState_STEP_STATE_RUNNING
	skipped   = conveyorv1.StepState_STEP_STATE_SKIPPED
	succeeded = conveyorv1.StepState_STEP_STATE_SUCCEEDED
)

func steps(states ...conveyorv1.StepState) []*conveyorv1.StepRun {
	made := make([]*conveyorv1.StepRun, len(states))
	for i, state := range states {
		made[i] = &conveyorv1.StepRun{Step: string(rune('a' + i)), State: state}
	}
	return made
}

func TestAChangeLeavesTheRestAsItWas(t *testing.T) {
	known := &conveyorv1.Run{
		Id: "r", Etag: "1", Steps: steps(running, pending, pending),
		PipelineSnapshot: &conveyorv1.Pipeline{Name: "release"},
	}
	update := merged(known, &conveyorv1.RunChange{
		Run: &conveyorv1.Run{
			Id: "r", Etag: "2", StepStates: []conveyorv1.StepState{succeeded, running, skipped},
		},
		Steps:   []*conveyorv1.StepRun{{Step: "a", State: succeeded}, {Step: "b", State: running}},
		Skipped: 2,
	})
	if len(update.Run.Steps) != 3 || len(update.Changed) != 3 || update.Skipped != 2 {
		t.Fatal(update)
	}
	for i, want := range []conveyorv1.StepState{succeeded, running, skipped} {
		if update.Run.Steps[i].GetState() != want {
			t.Errorf("step %d is %v, want %v", i, update.Run.Steps[i].GetState(), want)
		}
	}
	if update.Run.GetPipelineSnapshot().GetName() != "release" {
		t.Error("the snapshot was lost")
	}
	if known.Steps[2].GetState() != pending {
		t.Error("what an earlier update gave was changed")
	}
}

func TestASnapshotSaysWhatIsNew(t *testing.T) {
	known := &conveyorv1.Run{Etag: "1", Steps: steps(running, pending)}
	if _, news := replaced(known, &conveyorv1.Run{Etag: "1"}, true); news {
		t.Error("the same run is news")
	}
	update, news := replaced(known, &conveyorv1.Run{Etag: "2", Steps: steps(succeeded, pending)}, true)
	if !news || !update.Reset || len(update.Changed) != 1 || update.Changed[0].GetStep() != "a" {
		t.Error(update)
	}
}

func TestTheEndOfAMissedRunIsTold(t *testing.T) {
	var told []string
	w := &runsWatch{
		request:    &conveyorv1.WatchRunsRequest{Cursor: "c"},
		unfinished: map[string]*conveyorv1.Run{}, before: map[string]*conveyorv1.Run{},
		yield: func(update RunUpdate) bool {
			told = append(told, update.Run.GetId()+update.Run.GetEtag())
			return true
		},
		missed: func(run *conveyorv1.Run) (RunUpdate, error) {
			return RunUpdate{Run: &conveyorv1.Run{Id: run.GetId(), Etag: "end"}}, nil
		},
	}
	snapshot := func(runs ...*conveyorv1.Run) {
		for _, message := range []*conveyorv1.WatchRunsResponse{
			{Event: &conveyorv1.WatchRunsResponse_Snapshot{Snapshot: &conveyorv1.RunSnapshot{Runs: runs}}},
			{Event: &conveyorv1.WatchRunsResponse_SnapshotEnd{}, Cursor: "d"},
		} {
			if going, err := w.take(message); !going || err != nil {
				t.Fatal(going, err)
			}
		}
	}
	snapshot(&conveyorv1.Run{Id: "a", Etag: "1"}, &conveyorv1.Run{Id: "b", Etag: "1"})
	if _, err := w.take(&conveyorv1.WatchRunsResponse{Event: &conveyorv1.WatchRunsResponse_Reset_{}}); err != nil {
		t.Fatal(err)
	}
	if w.request.GetCursor() != "" {
		t.Error("a reset keeps the cursor")
	}
	snapshot(&conveyorv1.Run{Id: "b", Etag: "1"}, &conveyorv1.Run{Id: "c", Etag: "1"})
	want := []string{"a1", "b1", "c1", "aend"}
	if len(told) != len(want) {
		t.Fatal(told)
	}
	for i := range want {
		if told[i] != want[i] {
			t.Errorf("told %v, want %v", told, want)
		}
	}
}
