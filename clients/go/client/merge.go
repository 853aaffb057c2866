package client

import (
	"google.golang.org/protobuf/proto"

	conveyorv1 "github.com/conveyor-ci/conveyor/clients/go/conveyor/v1"
)

// replaced returns the update for a snapshot; false when it says nothing new.
func replaced(known, run *conveyorv1.Run, reset bool) (RunUpdate, bool) {
	if known == nil {
		return RunUpdate{Run: run, Changed: run.GetSteps()}, true
	}
	if known.GetEtag() == run.GetEtag() {
		return RunUpdate{}, false
	}
	before := bySteps(known.GetSteps())
	update := RunUpdate{Run: run, Reset: reset}
	for _, step := range run.GetSteps() {
		if old, ok := before[step.GetStep()]; !ok || !proto.Equal(old, step) {
			update.Changed = append(update.Changed, step)
		}
	}
	return update, true
}

// merged returns the update for a change: what it leaves out of the run stays as it was.
func merged(known *conveyorv1.Run, change *conveyorv1.RunChange) RunUpdate {
	run := proto.CloneOf(change.GetRun())
	update := RunUpdate{Run: run, Skipped: change.GetSkipped()}
	if known == nil {
		run.Steps = change.GetSteps()
		update.Changed = run.Steps
		return update
	}
	changed := bySteps(change.GetSteps())
	seen := bySteps(change.GetSteps())
	for _, step := range known.GetSteps() {
		if newer, ok := changed[step.GetStep()]; ok {
			delete(changed, step.GetStep())
			step = newer
		}
		run.Steps = append(run.Steps, step)
	}
	for _, step := range change.GetSteps() {
		if _, fresh := changed[step.GetStep()]; fresh {
			run.Steps = append(run.Steps, step)
		}
	}
	run.PipelineSnapshot, run.ResourceSnapshot, run.Params = known.PipelineSnapshot, known.ResourceSnapshot, known.Params
	// Every step has its state in the run itself, also those that have not started and hence are not sent.
	for i, state := range run.GetStepStates() {
		if i < len(run.Steps) && run.Steps[i].GetState() != state {
			// The one before belongs to who got an earlier update.
			run.Steps[i] = proto.CloneOf(run.Steps[i])
			run.Steps[i].State = state
			seen[run.Steps[i].GetStep()] = run.Steps[i]
		}
	}
	for _, step := range run.Steps {
		if _, ok := seen[step.GetStep()]; ok {
			update.Changed = append(update.Changed, step)
		}
	}
	return update
}

func bySteps(steps []*conveyorv1.StepRun) map[string]*conveyorv1.StepRun {
	found := make(map[string]*conveyorv1.StepRun, len(steps))
	for _, step := range steps {
		found[step.GetStep()] = step
	}
	return found
}
