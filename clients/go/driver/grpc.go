package driver

import (
	"context"
	"errors"
	"fmt"
	"io"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/durationpb"

	"github.com/conveyor-ci/conveyor/clients/go/conveyor"
	conveyorv1 "github.com/conveyor-ci/conveyor/clients/go/conveyor/v1"
	"github.com/conveyor-ci/conveyor/clients/go/internal/link"
)

const (
	workMessageBytes = 2 << 20
	welcomeWithin    = 20 * time.Second
	// What a drained worker waits for at most: the server's answer to Drain, and after the last job that all is stored.
	drainedWithin = 5 * time.Second
	flushedWithin = 30 * time.Second
)

var errSilent = errors.New("the server has been silent for too long")

type workStream = grpc.BidiStreamingClient[conveyorv1.WorkRequest, conveyorv1.WorkResponse]

// pending is a result until it is acked, with the number of log lines that must go out before it.
type pending struct {
	lines  uint64
	report *conveyorv1.ResultReport
}

// worker takes part on a Work stream: one session that outlives its connections. What it holds, it keeps.
type worker struct {
	*runner
	link     *link.Link
	settings settings
	changed  chan struct{}

	// All guarded by the runner's mu.
	session      string
	welcomed     bool
	connected    bool
	unacked      map[attemptKey]*pending
	unsent       []*pending
	heartbeatDue bool
	draining     time.Time
	drainSent    bool
	drained      bool
	heard        time.Time
}

func newWorker(way *link.Link, s settings, r *runner) *worker {
	w := &worker{
		runner: r, link: way, settings: s,
		changed: make(chan struct{}, 1), unacked: map[attemptKey]*pending{},
	}
	r.report = w.keep
	return w
}

func (w *worker) run(ctx context.Context) error {
	defer func() { _ = w.link.Close() }()
	defer w.close()
	ctx, stop := context.WithCancel(ctx)
	defer stop()
	finished := make(chan struct{})
	go func() {
		defer close(finished)
		w.untilFinished(ctx)
		stop()
	}()
	err := w.stayConnected(ctx)
	stop()
	<-finished
	return err
}

func (w *worker) drain() {
	w.mu.Lock()
	w.draining = time.Now()
	w.mu.Unlock()
	signalTo(w.wake)
	signalTo(w.changed)
}

// untilFinished returns when a drained worker has nothing left to do, or ctx is done.
func (w *worker) untilFinished(ctx context.Context) {
	var idleSince time.Time
	for {
		select {
		case <-ctx.Done():
			return
		case <-w.changed:
		case <-time.After(time.Second):
		}
		w.mu.Lock()
		asked := !w.draining.IsZero() &&
			(w.drained || !w.connected || time.Since(w.draining) >= drainedWithin)
		idle, stored := len(w.jobs) == 0, len(w.unacked) == 0
		w.mu.Unlock()
		switch {
		case !asked || !idle:
		case stored && w.logs.empty():
			return
		case idleSince.IsZero():
			idleSince = time.Now()
		case time.Since(idleSince) >= flushedWithin:
			w.logger.Warn("the server did not take the last results and log lines; they are lost")
			return
		}
	}
}

// stayConnected returns nil when ctx is done, and an error when the server refuses the worker before it ever took it.
func (w *worker) stayConnected(ctx context.Context) error {
	var waits link.Backoff
	told := ""
	for {
		address := w.link.Address()
		err := w.work(ctx, &waits)
		w.mu.Lock()
		w.connected = false
		welcomed := w.welcomed
		w.mu.Unlock()
		signalTo(w.changed)
		if ctx.Err() != nil {
			return nil
		}
		failure := link.AsError(err, address)
		if failure.Code == codes.FailedPrecondition || failure.Code == codes.Aborted {
			// The session is not ours any more: begin a new one.
			w.mu.Lock()
			w.session = ""
			w.mu.Unlock()
		}
		if isRefusal(failure) && !welcomed {
			return failure
		}
		w.link.Failed(address)
		if text := failure.Error(); text != told {
			w.logger.Warn("trying again", "error", failure)
			told = text
		}
		_ = link.Sleep(ctx, waits.Next())
	}
}

// work is one connection, from Hello to its end.
func (w *worker) work(ctx context.Context, waits *link.Backoff) error {
	address := w.link.Address()
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	silent := time.AfterFunc(welcomeWithin, func() { cancel(errSilent) })
	defer silent.Stop()
	stream, err := conveyorv1.NewWorkerServiceClient(w.link).Work(ctx)
	if err != nil {
		return unlessSilent(ctx, err, address)
	}
	// When it cannot be sent, Recv says why.
	_ = stream.Send(&conveyorv1.WorkRequest{Hello: w.hello()})
	first, err := stream.Recv()
	silent.Stop()
	if err != nil {
		return unlessSilent(ctx, err, address)
	}
	waits.Reset()
	w.takeWelcome(first.GetWelcome(), address)
	ended := make(chan struct{}, 2)
	defer func() {
		cancel(nil)
		<-ended
		<-ended
	}()
	go func() {
		w.write(ctx, stream)
		ended <- struct{}{}
	}()
	go func() {
		w.pulse(ctx, cancel, first.GetWelcome())
		ended <- struct{}{}
	}()
	for message := first; ; {
		w.take(message)
		if message, err = stream.Recv(); err != nil {
			return unlessSilent(ctx, err, address)
		}
	}
}

// unlessSilent says what an error of a stream means.
func unlessSilent(ctx context.Context, err error, address string) error {
	lost := &conveyor.Error{Code: codes.Unavailable}
	switch {
	case errors.Is(context.Cause(ctx), errSilent):
		lost.Message = fmt.Sprintf("the server at %s has been silent for too long", address)
		return lost
	case errors.Is(err, io.EOF):
		lost.Message = fmt.Sprintf("the server at %s closed the stream", address)
		return lost
	}
	return err
}

// pulse asks for a heartbeat every interval, and ends the connection when the server has said nothing for the ttl.
func (w *worker) pulse(ctx context.Context, cancel context.CancelCauseFunc, welcome *conveyorv1.Welcome) {
	ttl := seconds(welcome.GetSessionTtl(), 15*time.Second)
	beat := time.NewTicker(seconds(welcome.GetHeartbeatInterval(), 5*time.Second))
	defer beat.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-beat.C:
		}
		w.mu.Lock()
		silent := time.Since(w.heard) >= ttl
		w.heartbeatDue = true
		w.mu.Unlock()
		if silent {
			cancel(errSilent)
			return
		}
		w.logs.check()
		signalTo(w.wake)
	}
}

// write sends whatever has gathered, as one message after the other, until the connection ends.
func (w *worker) write(ctx context.Context, stream workStream) {
	for {
		if request := w.gathered(); request != nil {
			// The reader meets the same end, and says why.
			if stream.Send(request) != nil {
				return
			}
			continue
		}
		select {
		case <-w.wake:
		case <-ctx.Done():
			return
		}
	}
}

// gathered returns all that there is to say, up to the size of a message; nil when there is nothing.
func (w *worker) gathered() *conveyorv1.WorkRequest {
	w.mu.Lock()
	defer w.mu.Unlock()
	request := &conveyorv1.WorkRequest{Logs: w.logs.take(workMessageBytes)}
	said := len(request.Logs) > 0
	budget := workMessageBytes - proto.Size(request)
	for len(w.unsent) > 0 && w.logs.sentAll(w.unsent[0].lines) {
		report := w.unsent[0].report
		budget -= proto.Size(report)
		// One that is larger than all that is usual goes alone.
		if budget < 0 && said {
			break
		}
		w.unsent = w.unsent[1:]
		request.Results = append(request.Results, report)
		said = true
	}
	if w.heartbeatDue {
		w.heartbeatDue = false
		request.Heartbeat = &conveyorv1.Heartbeat{}
		said = true
	}
	if !w.draining.IsZero() && !w.drainSent {
		w.drainSent = true
		request.Drain = &conveyorv1.Drain{}
		said = true
	}
	if !said {
		return nil
	}
	return request
}

// keep has a result sent until it is acked. It needs mu.
func (w *worker) keep(job *Job, result *conveyorv1.DriverResult) {
	each := &pending{lines: w.logs.written(), report: &conveyorv1.ResultReport{
		Run: job.Run(), Step: job.Step(), Attempt: job.assignment.GetAttempt(), Token: job.assignment.GetToken(),
		Result: result,
	}}
	w.unacked[job.key()] = each
	w.unsent = append(w.unsent, each)
	signalTo(w.wake)
	signalTo(w.changed)
}

func seconds(duration *durationpb.Duration, otherwise time.Duration) time.Duration {
	if duration.AsDuration() > 0 {
		return duration.AsDuration()
	}
	return otherwise
}

// isRefusal says whether the server has something against this worker; all else may be different the next time.
func isRefusal(failure *conveyor.Error) bool {
	switch failure.Code {
	case codes.InvalidArgument, codes.Unauthenticated, codes.PermissionDenied, codes.Unimplemented:
		return true
	}
	return failure.Reason == conveyorv1.ErrorReason_ERROR_REASON_PROTOCOL_VIOLATION
}
