package driver

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"runtime/debug"
	"sync"
	"time"

	"google.golang.org/protobuf/proto"

	conveyorv1 "github.com/conveyor-ci/conveyor/clients/go/conveyor/v1"
)

const (
	givenAgain = "[this attempt was given out again: the driver that had it went away]"
	// How long a worker that stops waits for handlers whose results nobody wants.
	closePatience = 5 * time.Second
)

// runner has the jobs of a worker: one handler's call per assignment, and of whatever it does exactly one result.
type runner struct {
	base    context.Context
	handler Handler
	logger  *slog.Logger
	logs    *logBuffer
	// report is called with mu locked.
	report func(*Job, *conveyorv1.DriverResult)
	wake   chan struct{}

	// mu guards what follows, and what the transport adds to it.
	mu     sync.Mutex
	jobs   map[attemptKey]*Job
	limits *conveyorv1.Limits
	calls  sync.WaitGroup
}

func newRunner(base context.Context, handler Handler, logger *slog.Logger) *runner {
	r := &runner{
		base: base, handler: handler, logger: logger,
		wake: make(chan struct{}, 1),
		jobs: map[attemptKey]*Job{},
		limits: &conveyorv1.Limits{
			MessageBytes: 4 << 20, ResultDataBytes: 64 << 10, ResultMessageBytes: 4 << 10, LogLineBytes: 256 << 10,
		},
	}
	r.logs = newLogBuffer(func() { signalTo(r.wake) })
	return r
}

// start begins with an assignment. One that is held already, with the same token, is left alone. It needs mu.
//
// again: another worker had it, and may have left lines in its log.
func (r *runner) start(assignment *conveyorv1.Assignment, again bool) *Job {
	key := keyOf(assignment)
	if held := r.jobs[key]; held != nil {
		if held.assignment.GetToken() == assignment.GetToken() {
			return held
		}
		r.forget(key, "the attempt was given out again")
	}
	job := newJob(assignment, r.logs.open(key))
	job.log.followsOther = again
	ctx, cancel := context.WithCancelCause(r.base)
	job.cancel = cancel
	r.jobs[key] = job
	r.calls.Go(func() { r.finish(job, r.call(ctx, job, again)) })
	return job
}

// stop tells a job to stop; one that has ended does not hear it. It needs mu.
func (r *runner) stop(key attemptKey, message string, grace time.Duration) {
	if job := r.jobs[key]; job != nil {
		job.stop(message, grace)
	}
}

// forget stops a job whose result nobody wants any more. It needs mu.
func (r *runner) forget(key attemptKey, message string) {
	if job := r.jobs[key]; job != nil {
		delete(r.jobs, key)
		job.stop(message, 0)
	}
}

// takeLimits knows what the server accepts. Values that it does not state stay as they are. It needs mu.
func (r *runner) takeLimits(limits *conveyorv1.Limits) {
	proto.Merge(r.limits, limits)
	r.logs.setLineBytes(int(r.limits.GetLogLineBytes()))
}

// close stops what still runs, waits a little for it, and reports nothing of it.
func (r *runner) close() {
	r.mu.Lock()
	for key := range r.jobs {
		r.forget(key, "the worker stops")
	}
	r.mu.Unlock()
	ended := make(chan struct{})
	go func() {
		r.calls.Wait()
		close(ended)
	}()
	select {
	case <-ended:
	case <-time.After(closePatience):
	}
}

// call calls the handler. Whatever that does, there is a result.
func (r *runner) call(ctx context.Context, job *Job, again bool) (made *conveyorv1.DriverResult) {
	returned := false
	defer func() {
		if text := recover(); text != nil {
			job.Logf("panic: %v\n\n%s", text, debug.Stack())
			made = failed(fmt.Sprintf("panic: %v", text), nil)
		} else if !returned {
			// By runtime.Goexit: the goroutine ends with this, so the result is sent from here.
			r.finish(job, failed("the handler ended its goroutine", nil))
		}
	}()
	if again {
		job.Logf(givenAgain)
	}
	result, err := r.handler(withJob(ctx, job), job)
	returned = true
	var cancelled *Cancellation
	if ctx.Err() != nil {
		errors.As(context.Cause(ctx), &cancelled)
	}
	return answer(result, err, cancelled)
}

// finish reports the result of a job that was not forgotten.
func (r *runner) finish(job *Job, result *conveyorv1.DriverResult) {
	job.log.close()
	job.cancel(nil)
	r.mu.Lock()
	defer r.mu.Unlock()
	key := job.key()
	if r.jobs[key] != job {
		return
	}
	delete(r.jobs, key)
	if result.GetOutcome() == conveyorv1.Outcome_OUTCOME_FAILED {
		r.logger.Info("job failed", "run", key.run, "step", key.step, "attempt", key.attempt, "error", result.GetMessage())
	}
	r.report(job, withinLimits(result, r.limits))
}

// signalTo leaves one signal in a channel that has room for one.
func signalTo(channel chan struct{}) {
	select {
	case channel <- struct{}{}:
	default:
	}
}
