// Testdriver is a driver for tests: its name, what it does, and arguments of that. Settings come from the environment.
package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log"
	"log/slog"
	"os"
	"os/exec"
	"runtime"
	"strconv"
	"strings"
	"time"

	"github.com/conveyor-ci/conveyor/clients/go/driver"
)

var kinds = map[string]driver.Handler{
	"ok":   ok,
	"echo": echo,
	"fail": func(context.Context, *driver.Job) (driver.Result, error) {
		return driver.Result{}, errors.New("it is broken")
	},
	"permanent": permanent,
	"panic":     func(context.Context, *driver.Job) (driver.Result, error) { panic("out of luck") },
	"data":      tooLarge,
	"giveup":    func(context.Context, *driver.Job) (driver.Result, error) { return driver.Result{}, driver.ErrCancelled },
	"goexit":    func(context.Context, *driver.Job) (driver.Result, error) { runtime.Goexit(); panic("never") },
	"flaky":     flaky,
	"hold":      hold,
	"lines":     lines,
	"logging":   logging,
	"sleep":     sleep,
}

var arguments []string

func main() {
	name, kind := os.Args[1], os.Args[2]
	arguments = os.Args[3:]
	slog.SetDefault(slog.New(driver.LogHandler(slog.NewTextHandler(os.Stderr, nil))))
	var options []driver.Option
	if names := os.Getenv("DEFINITIONS"); names != "" {
		options = append(options, driver.WithDefinitions(strings.Split(names, ",")...))
	}
	if text := os.Getenv("DRAIN_TIMEOUT"); text != "" {
		timeout, err := time.ParseDuration(text)
		if err != nil {
			log.Fatal(err)
		}
		options = append(options, driver.WithDrainTimeout(timeout))
	}
	if err := driver.New(name, kinds[kind], options...).Run(context.Background()); err != nil {
		log.Fatal(err)
	}
}

func ok(_ context.Context, job *driver.Job) (driver.Result, error) {
	return driver.Result{Data: map[string]any{"by": job.Driver()}}, nil
}

// echo gives back what it got.
func echo(_ context.Context, job *driver.Job) (driver.Result, error) {
	results := map[string]any{}
	for step, outcome := range job.Results() {
		results[step] = outcome.Data
	}
	return driver.Result{
		Message: "echoed",
		Data:    map[string]any{"spec": job.Spec(), "context": job.Context(), "results": results},
	}, nil
}

func permanent(context.Context, *driver.Job) (driver.Result, error) {
	err := driver.Permanent(errors.New("never again"))
	return driver.Result{Data: map[string]any{"code": 7}}, err
}

// tooLarge returns a number that would arrive as another one.
func tooLarge(context.Context, *driver.Job) (driver.Result, error) {
	return driver.Result{Data: map[string]any{"build": map[string]any{"id": int64(1)<<60 + 1}}}, nil
}

// flaky fails so many times, then succeeds.
func flaky(_ context.Context, job *driver.Job) (driver.Result, error) {
	failures, _ := strconv.Atoi(arguments[0])
	job.Logf("attempt %d", job.Attempt())
	if job.Attempt() <= failures {
		return driver.Result{}, errors.New("not yet")
	}
	return driver.Result{}, nil
}

// hold writes a line into one file when it starts, and succeeds when there is another. Cancelled, it writes the cause.
func hold(ctx context.Context, job *driver.Job) (driver.Result, error) {
	if err := note(arguments[0], fmt.Sprintf("started %d", job.Attempt())); err != nil {
		return driver.Result{}, err
	}
	job.Logf("holding")
	for {
		select {
		case <-ctx.Done():
			return driver.Result{}, note(arguments[0], fmt.Sprintf("cancelled: %v", context.Cause(ctx)), ctx.Err())
		case <-time.After(5 * time.Millisecond):
		}
		if _, err := os.Stat(arguments[1]); err == nil {
			job.Logf("released")
			if err := note(arguments[0], "released"); err != nil {
				return driver.Result{}, err
			}
			return driver.Result{Data: map[string]any{"attempt": job.Attempt()}}, nil
		}
	}
}

func note(file, line string, also ...error) error {
	to, err := os.OpenFile(file, os.O_APPEND|os.O_CREATE|os.O_WRONLY, 0o600)
	if err != nil {
		return err
	}
	_, err = io.WriteString(to, line+"\n")
	return errors.Join(append(also, err, to.Close())...)
}

// lines writes so many numbered lines.
func lines(_ context.Context, job *driver.Job) (driver.Result, error) {
	count, _ := strconv.Atoi(arguments[0])
	for i := range count {
		job.Logf("line %d", i+1)
	}
	return driver.Result{}, nil
}

// logging writes in all ways that there are.
func logging(ctx context.Context, job *driver.Job) (driver.Result, error) {
	job.Logf("two\nlines")
	job.Logger().With("a", 1).WithGroup("g").Warn("from the job's logger", "b", "x y")
	slog.With("c", 3).InfoContext(ctx, "from the default logger")
	slog.Info("not of a job")
	command := exec.CommandContext(ctx, "sh", "-c", "echo out; echo err >&2; printf unended")
	command.Stdout, command.Stderr = job.Stdout(), job.Stderr()
	return driver.Result{}, command.Run()
}

func sleep(ctx context.Context, _ *driver.Job) (driver.Result, error) {
	wait, err := time.ParseDuration(arguments[0])
	if err != nil {
		return driver.Result{}, err
	}
	select {
	case <-time.After(wait):
		return driver.Result{}, nil
	case <-ctx.Done():
		return driver.Result{}, ctx.Err()
	}
}
