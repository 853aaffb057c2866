package link

import (
	"context"
	"errors"
	"fmt"
	"iter"
	"log/slog"
	"time"

	"google.golang.org/grpc/codes"

	"github.com/conveyor-ci/conveyor/clients/go/conveyor"
)

// Patience is the waits between attempts to reach a server, and when they end. Not for several goroutines.
type Patience struct {
	limit   time.Duration
	logger  *slog.Logger
	backoff Backoff
	heard   time.Time
	told    bool
}

// NewPatience returns one that ends after a time without an answer; 0 means never.
func NewPatience(limit time.Duration, logger *slog.Logger) *Patience {
	return &Patience{limit: limit, logger: logger, heard: time.Now()}
}

// Heard says that the server answered.
func (p *Patience) Heard() {
	p.backoff.Reset()
	p.heard = time.Now()
	p.told = false
}

// Wait waits before the next attempt. It returns an error when no other attempt can help, or the patience is over.
func (p *Patience) Wait(ctx context.Context, failure *conveyor.Error) error {
	if ctx.Err() != nil {
		return translate(ctx.Err(), "")
	}
	if !IsTransient(failure) {
		return failure
	}
	wait := p.backoff.Next()
	if p.limit > 0 && time.Since(p.heard)+wait > p.limit {
		return fmt.Errorf("given up after %v: %w", p.limit, failure)
	}
	if !p.told {
		p.logger.Warn("trying again", "error", failure)
		p.told = true
	}
	if err := Sleep(ctx, wait); err != nil {
		return translate(err, "")
	}
	return nil
}

// Receiver is a server stream.
type Receiver[M any] interface {
	Recv() (*M, error)
}

// Resumed yields what a stream sends, until it ends with OK.
//
// open opens the stream behind the last message that was seen. It is called again, with growing waits, when the
// connection breaks, and when nothing came for a time of silence (0: however long). An error is the last that is
// yielded.
func Resumed[M any, R Receiver[M]](
	ctx context.Context, link *Link, silence, limit time.Duration, open func(context.Context) (R, error),
) iter.Seq2[*M, error] {
	return func(yield func(*M, error) bool) {
		patience := NewPatience(limit, link.Logger)
		for {
			address := link.Address()
			stopped, failure := once(ctx, silence, open, func(message *M) bool {
				patience.Heard()
				return yield(message, nil)
			})
			if stopped {
				return
			}
			if failure == nil {
				failure = &conveyor.Error{
					Code:    codes.Unavailable,
					Message: fmt.Sprintf("the server at %s has been silent for %v", address, silence),
				}
			}
			reason := AsError(failure, address)
			if IsTransient(reason) && ctx.Err() == nil {
				link.Failed(address)
			}
			if err := patience.Wait(ctx, reason); err != nil {
				yield(nil, err)
				return
			}
		}
	}
}

// once reads one stream. It says whether that is the end of it all; otherwise how it failed, which is nil for silence.
func once[M any, R Receiver[M]](
	ctx context.Context, silence time.Duration, open func(context.Context) (R, error), take func(*M) bool,
) (bool, error) {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	stream, err := open(ctx)
	if err != nil {
		return false, err
	}
	for {
		message, err := receive(silence, stream, cancel)
		switch {
		case err == nil:
			if !take(message) {
				return true, nil
			}
		case isEnd(err):
			return true, nil
		case errors.Is(context.Cause(ctx), errSilent):
			return false, nil
		default:
			return false, err
		}
	}
}

var errSilent = errors.New("silent")

// receive returns the next message, and cancels the stream when none comes in time.
func receive[M any, R Receiver[M]](silence time.Duration, stream R, cancel context.CancelCauseFunc) (*M, error) {
	if silence > 0 {
		watch := time.AfterFunc(silence, func() { cancel(errSilent) })
		defer watch.Stop()
	}
	return stream.Recv()
}
