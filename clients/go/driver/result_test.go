package driver

import (
	"errors"
	"fmt"
	"strings"
	"testing"

	conveyorv1 "github.com/conveyor-ci/conveyor/clients/go/conveyor/v1"
)

const (
	won  = conveyorv1.Outcome_OUTCOME_SUCCEEDED
	lost = conveyorv1.Outcome_OUTCOME_FAILED
	gone = conveyorv1.Outcome_OUTCOME_CANCELLED
)

func TestWhatAHandlerReturnsBecomesTheResult(t *testing.T) {
	broken := errors.New("broken")
	data := map[string]any{"n": 1}
	for _, each := range []struct {
		result    Result
		err       error
		cancelled *Cancellation
		outcome   conveyorv1.Outcome
		message   string
		final     bool
	}{
		{Result{}, nil, nil, won, "", false},
		{Result{Message: "done", Data: data}, nil, nil, won, "done", false},
		{Result{Message: "done", Data: data}, broken, nil, lost, "broken", false},
		{Result{}, Permanent(broken), nil, lost, "broken", true},
		{Result{}, fmt.Errorf("very %w", Permanent(broken)), nil, lost, "very broken", true},
		{Result{}, fmt.Errorf("no use: %w", ErrCancelled), nil, gone, "no use: cancelled by the driver", false},
		{Result{}, broken, &Cancellation{Message: "enough"}, gone, "enough", false},
		{Result{}, nil, &Cancellation{Message: "enough"}, won, "", false},
		{Result{Data: []int{1}}, nil, nil, lost, "$: not an object but a JSON array", true},
		{Result{Data: 7}, broken, nil, lost, "broken (its data was left out: $: not an object but a JSON number)", false},
		{Result{Message: "a\xff"}, nil, nil, won, "a\uFFFD", false},
	} {
		got := answer(each.result, each.err, each.cancelled)
		if got.GetOutcome() != each.outcome || got.GetMessage() != each.message ||
			(got.Retryable != nil && !got.GetRetryable()) != each.final {
			t.Errorf("%+v: got %v", each, got)
		}
		if _, ok := each.result.Data.(map[string]any); ok && got.GetData().AsMap()["n"] != 1.0 {
			t.Errorf("%+v: its data is %v", each, got.GetData())
		}
	}
	if Permanent(nil) != nil {
		t.Error("no error became one")
	}
}

func TestResultsFitTheirLimits(t *testing.T) {
	limits := &conveyorv1.Limits{MessageBytes: headroom + 1000, ResultMessageBytes: 10, ResultDataBytes: 5}
	short := withinLimits(answer(Result{Message: "ääääääääää"}, nil, nil), limits)
	if short.GetMessage() != "äää…" {
		t.Error(short)
	}
	data := map[string]any{"x": strings.Repeat("x", 2000)}
	large := withinLimits(answer(Result{Data: data}, nil, nil), limits)
	if large.GetOutcome() != lost || large.GetRetryable() || !strings.Contains(large.GetMessage(), "the limit is 5") {
		t.Error(large)
	}
}
