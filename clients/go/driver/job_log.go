package driver

import (
	"bytes"
	"context"
	"io"
	"log/slog"
	"strings"
	"sync"
	"time"
	"unicode/utf8"

	conveyorv1 "github.com/conveyor-ci/conveyor/clients/go/conveyor/v1"
)

// jobLog is the log of one attempt. Its fields need the mutex of the buffer.
type jobLog struct {
	buffer  *logBuffer
	key     attemptKey
	nextSeq uint64
	dropped int
	closed  bool
	hurry   bool
	unacked []*conveyorv1.LogLine
	// Whether an earlier job of the same attempt may have left lines, which its numbers do not count.
	followsOther bool
	// How many these are, once that was asked.
	earlier uint64
	asked   bool

	mu      sync.Mutex
	writers []*lineWriter
}

type part struct {
	text    string
	partial bool
}

// write writes a text of one or more lines. Those above the server's limit are split. After close nothing is written.
func (l *jobLog) write(text string, stream conveyorv1.LogStream) {
	l.buffer.mu.Lock()
	limit := l.buffer.lineBytes
	l.buffer.mu.Unlock()
	var parts []part
	for line := range strings.SplitSeq(strings.TrimSuffix(text, "\n"), "\n") {
		parts = append(parts, split(strings.TrimSuffix(line, "\r"), limit)...)
	}
	l.buffer.add(l, parts, stream)
}

// doNotWait says that the job is to stop: nobody waits for room any more.
func (l *jobLog) doNotWait() {
	l.buffer.mu.Lock()
	defer l.buffer.mu.Unlock()
	l.hurry = true
	l.buffer.room.Broadcast()
}

// close writes what ended without a line end. No more lines after that.
func (l *jobLog) close() {
	l.mu.Lock()
	writers := l.writers
	l.mu.Unlock()
	for _, writer := range writers {
		writer.flush()
	}
	l.buffer.close(l)
}

// split returns parts of at most limit bytes of UTF-8; all but the last are partial.
func split(line string, limit int) []part {
	line = strings.ToValidUTF8(line, "\uFFFD")
	var parts []part
	for len(line) > limit {
		end := limit
		for end > 0 && !utf8.RuneStart(line[end]) {
			end--
		}
		parts = append(parts, part{line[:end], true})
		line = line[end:]
	}
	return append(parts, part{line, false})
}

// lineWriter turns what is written into lines.
type lineWriter struct {
	log    *jobLog
	stream conveyorv1.LogStream

	mu   sync.Mutex
	rest []byte
	held bool
}

// A line that does not end is written in parts of so many bytes.
const longestRest = 64 << 10

func (w *lineWriter) Write(data []byte) (int, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if !w.held {
		w.held = true
		w.log.mu.Lock()
		w.log.writers = append(w.log.writers, w)
		w.log.mu.Unlock()
	}
	w.rest = append(w.rest, data...)
	if end := bytes.LastIndexByte(w.rest, '\n'); end >= 0 {
		w.log.write(string(w.rest[:end+1]), w.stream)
		w.rest = append(w.rest[:0], w.rest[end+1:]...)
	}
	if len(w.rest) > longestRest {
		w.log.buffer.add(w.log, []part{{strings.ToValidUTF8(string(w.rest), "\uFFFD"), true}}, w.stream)
		w.rest = w.rest[:0]
	}
	return len(data), nil
}

func (w *lineWriter) flush() {
	w.mu.Lock()
	defer w.mu.Unlock()
	if len(w.rest) > 0 {
		w.log.write(string(w.rest), w.stream)
		w.rest = nil
	}
}

// recordWriter takes whole records of slog's.
type recordWriter struct{ log *jobLog }

func (w recordWriter) Write(data []byte) (int, error) {
	w.log.write(string(data), conveyorv1.LogStream_LOG_STREAM_LOG)
	return len(data), nil
}

func textHandler(log *jobLog) slog.Handler {
	var to io.Writer = recordWriter{log}
	return slog.NewTextHandler(to, &slog.HandlerOptions{Level: slog.LevelDebug})
}

// recordHandler leaves the time out: each line of a run's log has its own.
type recordHandler struct{ next slog.Handler }

func (h *recordHandler) Enabled(ctx context.Context, level slog.Level) bool {
	return h.next.Enabled(ctx, level)
}

func (h *recordHandler) Handle(ctx context.Context, record slog.Record) error {
	record.Time = time.Time{}
	return h.next.Handle(ctx, record)
}

func (h *recordHandler) WithAttrs(attrs []slog.Attr) slog.Handler {
	return &recordHandler{h.next.WithAttrs(attrs)}
}

func (h *recordHandler) WithGroup(name string) slog.Handler {
	return &recordHandler{h.next.WithGroup(name)}
}
