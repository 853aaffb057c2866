package driver

import (
	"context"
	"log/slog"
	"strings"
	"testing"

	conveyorv1 "github.com/conveyor-ci/conveyor/clients/go/conveyor/v1"
)

func assignment(step, token string) *conveyorv1.Assignment {
	return &conveyorv1.Assignment{Run: "r", Step: step, Attempt: 1, Token: token}
}

// newTestWorker returns one that is not connected; its messages are taken by the test.
func newTestWorker(handler Handler) *worker {
	logger := slog.New(slog.DiscardHandler)
	return newWorker(nil, settings{driver: "d"}, newRunner(context.Background(), handler, logger))
}

func assign(w *worker, assignments ...*conveyorv1.Assignment) {
	w.take(&conveyorv1.WorkResponse{Assignments: assignments})
	w.calls.Wait()
}

func TestAResultFollowsItsLines(t *testing.T) {
	w := newTestWorker(func(_ context.Context, job *Job) (Result, error) {
		for range 30 {
			job.Logf("%s", strings.Repeat("x", 200<<10))
		}
		return Result{Message: "done"}, nil
	})
	assign(w, assignment("a", "t"))
	lines := 0
	for {
		request := w.gathered()
		if request == nil {
			t.Fatal("there is no result")
		}
		lines += len(request.GetLogs())
		if len(request.GetResults()) > 0 {
			break
		}
	}
	if lines != 30 {
		t.Errorf("the result comes after %d lines", lines)
	}
	if w.gathered() != nil {
		t.Error("there is something left to say")
	}
}

func TestANewConnectionIsToldAllThatIsNotAcked(t *testing.T) {
	w := newTestWorker(func(_ context.Context, job *Job) (Result, error) {
		job.Logf("line of %s", job.Step())
		return Result{}, nil
	})
	assign(w, assignment("a", "t"), assignment("b", "t"))
	w.gathered()
	w.take(&conveyorv1.WorkResponse{
		Acks:    []*conveyorv1.ResultAck{{Run: "r", Step: "a", Attempt: 1, Disposition: accepted}},
		LogAcks: []*conveyorv1.LogAck{{Run: "r", Step: "a", Attempt: 1, NextSeq: 2}},
	})
	hello := w.hello()
	if len(hello.GetHolding()) != 1 || hello.GetHolding()[0].GetStep() != "b" {
		t.Error(hello)
	}
	w.takeWelcome(&conveyorv1.Welcome{Session: "s"}, "address")
	request := w.gathered()
	if len(request.GetResults()) != 1 || request.GetResults()[0].GetStep() != "b" || texts(request.GetLogs()) != "line of b" {
		t.Error(request)
	}
	if w.hello().GetSession() != "s" {
		t.Error("the session is forgotten")
	}
	w.takeWelcome(&conveyorv1.Welcome{Session: "s", Revoked: hello.GetHolding()}, "address")
	if request := w.gathered(); request != nil {
		t.Error("what was revoked is still told", request)
	}
}

func TestAnAttemptRunsOncePerToken(t *testing.T) {
	calls := make(chan string, 10)
	release := make(chan struct{})
	w := newTestWorker(func(ctx context.Context, job *Job) (Result, error) {
		calls <- job.assignment.GetToken()
		select {
		case <-release:
		case <-ctx.Done():
		}
		return Result{}, ctx.Err()
	})
	w.take(&conveyorv1.WorkResponse{Assignments: []*conveyorv1.Assignment{assignment("a", "1"), assignment("a", "1")}})
	if token := <-calls; token != "1" {
		t.Error(token)
	}
	// A new token: the one before is void.
	w.take(&conveyorv1.WorkResponse{Assignments: []*conveyorv1.Assignment{assignment("a", "2")}})
	if token := <-calls; token != "2" {
		t.Error(token)
	}
	close(release)
	w.calls.Wait()
	assign(w, assignment("a", "2"))
	if len(calls) > 0 {
		t.Error("what was answered runs again")
	}
	results := w.gathered().GetResults()
	if len(results) != 1 || results[0].GetToken() != "2" || results[0].GetResult().GetOutcome() != won {
		t.Error(results)
	}
}

const accepted = conveyorv1.Disposition_DISPOSITION_ACCEPTED
