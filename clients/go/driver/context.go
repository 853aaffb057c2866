package driver

import (
	"context"
	"log/slog"
)

type jobKey struct{}

func withJob(ctx context.Context, job *Job) context.Context {
	return context.WithValue(ctx, jobKey{}, job)
}

// JobFrom returns the job that a handler's context belongs to; nil when it is no handler's.
func JobFrom(ctx context.Context) *Job {
	job, _ := ctx.Value(jobKey{}).(*Job)
	return job
}

// LogHandler returns a handler that sends records with a job's context to that job's log, and all records to next:
//
//	slog.SetDefault(slog.New(driver.LogHandler(slog.NewTextHandler(os.Stderr, nil))))
//	slog.InfoContext(ctx, "building", "repository", repository) // in a handler, or in what it calls
func LogHandler(next slog.Handler) slog.Handler {
	return &contextHandler{next: next, dress: func(handler slog.Handler) slog.Handler { return handler }}
}

// contextHandler keeps how to give a job's handler the attributes and groups that this one was given.
type contextHandler struct {
	next  slog.Handler
	dress func(slog.Handler) slog.Handler
}

func (h *contextHandler) Enabled(ctx context.Context, level slog.Level) bool {
	return h.next.Enabled(ctx, level)
}

func (h *contextHandler) Handle(ctx context.Context, record slog.Record) error {
	if job := JobFrom(ctx); job != nil {
		if err := h.dress(job.logger.Handler()).Handle(ctx, record.Clone()); err != nil {
			return err
		}
	}
	return h.next.Handle(ctx, record)
}

func (h *contextHandler) WithAttrs(attrs []slog.Attr) slog.Handler {
	return &contextHandler{h.next.WithAttrs(attrs), func(handler slog.Handler) slog.Handler {
		return h.dress(handler).WithAttrs(attrs)
	}}
}

func (h *contextHandler) WithGroup(name string) slog.Handler {
	return &contextHandler{h.next.WithGroup(name), func(handler slog.Handler) slog.Handler {
		return h.dress(handler).WithGroup(name)
	}}
}
