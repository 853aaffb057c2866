package driver

import (
	"context"
	"fmt"
	"io"
	"log/slog"
	"strings"
	"time"

	"google.golang.org/protobuf/types/known/structpb"

	"github.com/conveyor-ci/conveyor/clients/go/conveyor"
	conveyorv1 "github.com/conveyor-ci/conveyor/clients/go/conveyor/v1"
)

// Job is one attempt of one step. Everything in it is as it was when the attempt was given out. Safe for use by several
// goroutines.
type Job struct {
	assignment *conveyorv1.Assignment
	log        *jobLog
	logger     *slog.Logger
	cancel     context.CancelCauseFunc
}

// Cancellation is why a job's context was cancelled.
type Cancellation struct {
	// Message is for people.
	Message string
	// Grace is how long the server waits for the confirmation.
	Grace time.Duration
}

// Error returns the message.
func (c *Cancellation) Error() string { return either(c.Message, "cancelled") }

// StepOutcome is what an earlier step of the run came to.
type StepOutcome struct {
	// State is SUCCEEDED, FAILED or CANCELLED.
	State string
	// Driver is the driver's name.
	Driver string
	// Message is what the driver said.
	Message string
	// Data is what the driver returned.
	Data map[string]any
}

func newJob(assignment *conveyorv1.Assignment, log *jobLog) *Job {
	return &Job{assignment: assignment, log: log, logger: slog.New(&recordHandler{next: textHandler(log)})}
}

// Assignment returns the message that the server sent. It is not to be changed.
func (j *Job) Assignment() *conveyorv1.Assignment { return j.assignment }

// Namespace returns the tenant.
func (j *Job) Namespace() string { return j.assignment.GetNamespace() }

// Run returns the run's id.
func (j *Job) Run() string { return j.assignment.GetRun() }

// Step returns the step's id.
func (j *Job) Step() string { return j.assignment.GetStep() }

// Driver returns the driver's name.
func (j *Job) Driver() string { return j.assignment.GetDriver() }

// Pipeline returns the pipeline's name. Empty when the resource went to all drivers at once.
func (j *Job) Pipeline() string { return j.assignment.GetPipeline() }

// Attempt returns the attempt's number, from 1.
func (j *Job) Attempt() int { return int(j.assignment.GetAttempt()) }

// MaxAttempts returns how many attempts the step's retry policy allows.
func (j *Job) MaxAttempts() int { return int(j.assignment.GetMaxAttempts()) }

// Deadline returns when the attempt times out, by the server's clock; false when it does not. The server then cancels
// the job's context.
func (j *Job) Deadline() (time.Time, bool) {
	if j.assignment.GetDeadline() == nil {
		return time.Time{}, false
	}
	return j.assignment.GetDeadline().AsTime(), true
}

// RunState returns the state that the run is heading for: finally steps can tell a failed run from a good one.
func (j *Job) RunState() conveyorv1.RunState { return j.assignment.GetRunState() }

// Resource returns the resource as it was when the run was created.
func (j *Job) Resource() *conveyorv1.Resource { return j.assignment.GetResource() }

// Spec returns the resource's spec. Numbers are float64; [Job.DecodeSpec] makes them what you want.
func (j *Job) Spec() map[string]any { return j.assignment.GetResource().GetSpec().AsMap() }

// DecodeSpec stores the resource's spec into what target points to, as encoding/json would.
func (j *Job) DecodeSpec(target any) error {
	return decode(j.assignment.GetResource().GetSpec(), target)
}

// Context returns the values that the pipeline shares among its drivers.
func (j *Job) Context() map[string]any { return j.assignment.GetContext().AsMap() }

// DecodeContext stores the pipeline's context into what target points to, as encoding/json would.
func (j *Job) DecodeContext(target any) error { return decode(j.assignment.GetContext(), target) }

// Params returns this step's own parameters.
func (j *Job) Params() map[string]any { return j.assignment.GetParams().AsMap() }

// DecodeParams stores the step's parameters into what target points to, as encoding/json would.
func (j *Job) DecodeParams(target any) error { return decode(j.assignment.GetParams(), target) }

// Results returns what earlier steps came to, by step id. Steps that were skipped are not in it.
func (j *Job) Results() map[string]StepOutcome {
	results := make(map[string]StepOutcome, len(j.assignment.GetResults()))
	for step, result := range j.assignment.GetResults() {
		results[step] = StepOutcome{
			State:   strings.TrimPrefix(result.GetState().String(), "STEP_STATE_"),
			Driver:  result.GetDriver(),
			Message: result.GetMessage(),
			Data:    result.GetData().AsMap(),
		}
	}
	return results
}

// Logf writes a line into the run's log.
func (j *Job) Logf(format string, args ...any) {
	j.log.write(fmt.Sprintf(format, args...), conveyorv1.LogStream_LOG_STREAM_LOG)
}

// Logger returns a logger whose records go into the run's log, and nowhere else.
func (j *Job) Logger() *slog.Logger { return j.logger }

// Stdout returns a writer into the run's log, marked as standard output; for the Stdout of an [os/exec.Cmd]. What ends
// without a line end is written when the job ends.
func (j *Job) Stdout() io.Writer {
	return &lineWriter{log: j.log, stream: conveyorv1.LogStream_LOG_STREAM_STDOUT}
}

// Stderr returns a writer into the run's log, marked as standard error.
func (j *Job) Stderr() io.Writer {
	return &lineWriter{log: j.log, stream: conveyorv1.LogStream_LOG_STREAM_STDERR}
}

func (j *Job) key() attemptKey { return keyOf(j.assignment) }

// stop cancels the job's context.
func (j *Job) stop(message string, grace time.Duration) {
	j.log.doNotWait()
	j.cancel(&Cancellation{Message: message, Grace: grace})
}

func decode(value *structpb.Struct, target any) error { return conveyor.Decode(value, target) }

// attemptKey is run, step and attempt.
type attemptKey struct {
	run, step string
	attempt   uint32
}

type attempt interface {
	GetRun() string
	GetStep() string
	GetAttempt() uint32
}

func keyOf(message attempt) attemptKey {
	return attemptKey{message.GetRun(), message.GetStep(), message.GetAttempt()}
}
