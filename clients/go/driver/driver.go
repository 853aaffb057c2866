// Package driver is for writing drivers: a name, the resources it wants, and a function that reconciles one.
//
//	func main() {
//		compile := driver.New("compile", func(ctx context.Context, job *driver.Job) (driver.Result, error) {
//			job.Logf("building %v", job.Spec()["repository"])
//			return driver.Result{Data: map[string]any{"wheel": "dist/app.whl"}}, nil
//		}, driver.WithDefinitions("app"))
//		if err := compile.Run(context.Background()); err != nil {
//			log.Fatal(err)
//		}
//	}
//
// A driver connects by itself, and again for as long as it lives; it keeps what it holds, and sends results until the
// server has them. An attempt may still be given out more than once, after a crash or a long silence, and then only one
// result counts. So reconcile: look first at what is there.
package driver

import (
	"context"
	"fmt"
	"os"
	"os/signal"
	"syscall"
	"time"

	"github.com/conveyor-ci/conveyor/clients/go/internal/link"
)

// Handler reconciles the resource of a job.
//
// What it returns is the attempt's result: success, or failure with the error's text; an error after ctx was cancelled
// is a cancellation. The data of the result goes to later steps either way. A panic fails the attempt with its text,
// and the driver lives on.
//
// ctx is cancelled when the attempt should stop: its run was cancelled, it timed out, or the server has given it to
// somebody else. [context.Cause] is then a [*Cancellation].
type Handler func(ctx context.Context, job *Job) (Result, error)

// Driver is a driver and one worker of it.
type Driver struct {
	name     string
	handler  Handler
	settings settings
}

// New returns a driver. Its settings are looked at when it is run.
func New(name string, handler Handler, options ...Option) *Driver {
	d := &Driver{name: name, handler: handler}
	for _, option := range options {
		option(&d.settings)
	}
	return d
}

// Run serves as a process does: until ctx is done, or SIGTERM or SIGINT comes. Then it takes no more work, ends what it
// has, and returns nil when the server has all results. A second signal ends the process at once.
//
// It waits for a server as long as it takes. An error is a malformed setting, a server that refuses this worker, or
// work that was given up at the end of [WithDrainTimeout].
func (d *Driver) Run(ctx context.Context) error {
	ctx, stop := signal.NotifyContext(ctx, os.Interrupt, syscall.SIGTERM)
	defer stop()
	context.AfterFunc(ctx, stop)
	return d.Serve(ctx)
}

// Serve is [Driver.Run] without the signals, for programs that have their own.
func (d *Driver) Serve(ctx context.Context) error {
	way, err := d.open(ctx)
	if err != nil {
		return err
	}
	// What runs when ctx is done may end.
	working, stop := context.WithCancel(context.WithoutCancel(ctx))
	defer stop()
	done := make(chan error, 1)
	go func() { done <- way.run(working) }()
	select {
	case err := <-done:
		return err
	case <-ctx.Done():
		way.drain()
	}
	var late <-chan time.Time
	if d.settings.drainTimeout > 0 {
		late = time.After(d.settings.drainTimeout)
	}
	select {
	case err := <-done:
		return err
	case <-late:
		stop()
		<-done
		return fmt.Errorf("given up what still ran after %v", d.settings.drainTimeout)
	}
}

// transport is a way to take part.
type transport interface {
	// run takes part until drained. When ctx is done it stops what runs and reports nothing of it.
	run(ctx context.Context) error
	// drain takes no more work; run returns when what runs has ended and its results are stored.
	drain()
}

func (d *Driver) open(ctx context.Context) (transport, error) {
	s, err := d.settings.complete(d.name)
	if err != nil {
		return nil, err
	}
	if d.handler == nil {
		return nil, fmt.Errorf("the driver %s has no handler", d.name)
	}
	base := context.WithoutCancel(ctx)
	if s.transport == JetStream {
		return newJetWorker(s, newRunner(base, d.handler, s.Logger)), nil
	}
	way, err := link.New(s.Settings)
	if err != nil {
		return nil, err
	}
	return newWorker(way, s, newRunner(base, d.handler, s.Logger)), nil
}
