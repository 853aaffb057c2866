package driver

import (
	"fmt"
	"sync"
	"time"

	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/timestamppb"

	conveyorv1 "github.com/conveyor-ci/conveyor/clients/go/conveyor/v1"
)

const (
	logBufferBytes = 16 << 20
	lineOverhead   = 16
	probeBytes     = 64 << 10
	// After so long without an ack the server is asked, with a few lines, whether it stores at all.
	logPatience = 10 * time.Second
)

// logBuffer has the lines of all jobs of a worker, until the server says that it has stored them.
//
// Memory is bounded: who writes into a full buffer waits until there is room. While the server takes lines but does not
// store them, e.g. because its broker is away, jobs go on without logs: what does not fit is left out, and a line in
// its place says so.
type logBuffer struct {
	notify func()
	bound  int

	mu        sync.Mutex
	room      sync.Cond
	lineBytes int
	unsent    []*conveyorv1.LogLine
	logs      map[attemptKey]*jobLog
	bytes     int
	sent      uint64
	// Since when lines that were sent have not been acked, and whether the server is being asked if it stores again.
	waitingSince time.Time
	probing      bool
}

func newLogBuffer(notify func()) *logBuffer {
	b := &logBuffer{notify: notify, bound: logBufferBytes, lineBytes: 256 << 10, logs: map[attemptKey]*jobLog{}}
	b.room.L = &b.mu
	return b
}

// written returns how many lines were ever written: a result goes out when sentAll has reached this.
func (b *logBuffer) written() uint64 {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.sent + uint64(len(b.unsent))
}

// sentAll says whether so many lines were handed to the transport, or results need not wait for their lines.
func (b *logBuffer) sentAll(lines uint64) bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.sent >= lines || b.probing
}

// empty says whether the server has all lines.
func (b *logBuffer) empty() bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.bytes == 0
}

func (b *logBuffer) setLineBytes(limit int) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.lineBytes = limit
}

// open returns the log of an attempt that begins. One that is there under the same key is forgotten.
func (b *logBuffer) open(key attemptKey) *jobLog {
	b.discard(key)
	b.mu.Lock()
	defer b.mu.Unlock()
	log := &jobLog{buffer: b, key: key, nextSeq: 1}
	b.logs[key] = log
	return log
}

// get returns the log of an attempt whose lines are not all stored yet, or will be more; else nil.
func (b *logBuffer) get(key attemptKey) *jobLog {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.logs[key]
}

// take returns the next lines to send, up to about so many bytes.
func (b *logBuffer) take(budget int) []*conveyorv1.LogLine {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.probing {
		if budget = min(budget, probeBytes); !b.waitingSince.IsZero() {
			budget = 0
		}
	}
	count := 0
	for count < len(b.unsent) && budget > 0 {
		budget -= size(b.unsent[count])
		count++
	}
	lines := b.unsent[:count:count]
	b.unsent = b.unsent[count:]
	b.sent += uint64(count)
	if count > 0 && b.waitingSince.IsZero() {
		b.waitingSince = time.Now()
	}
	return lines
}

// ack says that the lines of an attempt below nextSeq are stored.
func (b *logBuffer) ack(key attemptKey, nextSeq uint64) {
	b.mu.Lock()
	defer b.mu.Unlock()
	log := b.logs[key]
	if log == nil {
		return
	}
	if len(log.unacked) > 0 && log.unacked[0].GetSeq() < nextSeq {
		b.waitingSince = time.Now()
		if b.probing {
			b.probing = false
			b.notify()
		}
	}
	for len(log.unacked) > 0 && log.unacked[0].GetSeq() < nextSeq {
		b.bytes -= size(log.unacked[0])
		log.unacked = log.unacked[1:]
	}
	if b.bytes == 0 {
		b.waitingSince = time.Time{}
	}
	if log.closed && len(log.unacked) == 0 {
		delete(b.logs, key)
	}
	b.room.Broadcast()
}

// rewind sends all that is not acked once more: the connection is a new one.
func (b *logBuffer) rewind() {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.waitingSince = time.Time{}
	b.probing = false
	b.resend()
}

// check is to be called now and then while connected: when nothing was stored for a while, it asks with a few lines.
func (b *logBuffer) check() {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.waitingSince.IsZero() || time.Since(b.waitingSince) < logPatience {
		return
	}
	b.waitingSince = time.Time{}
	b.probing = true
	b.resend()
	b.room.Broadcast()
	b.notify()
}

// discard forgets an attempt whose lines nobody wants any more.
func (b *logBuffer) discard(key attemptKey) {
	b.mu.Lock()
	defer b.mu.Unlock()
	log := b.logs[key]
	if log == nil {
		return
	}
	delete(b.logs, key)
	log.closed = true
	for _, line := range log.unacked {
		b.bytes -= size(line)
	}
	written := b.sent + uint64(len(b.unsent))
	kept := make([]*conveyorv1.LogLine, 0, len(b.unsent))
	for _, line := range b.unsent {
		if keyOf(line) != key {
			kept = append(kept, line)
		}
	}
	b.unsent = kept
	b.sent = written - uint64(len(kept))
	b.room.Broadcast()
}

// resend needs b.mu.
func (b *logBuffer) resend() {
	written := b.sent + uint64(len(b.unsent))
	b.unsent = nil
	for _, log := range b.logs {
		b.unsent = append(b.unsent, log.unacked...)
	}
	b.sent = written - uint64(len(b.unsent))
}

// add appends the parts of a text, once there is room.
func (b *logBuffer) add(log *jobLog, parts []part, stream conveyorv1.LogStream) {
	b.mu.Lock()
	defer b.mu.Unlock()
	for b.bytes > b.bound && !log.hurry && !log.closed && !b.probing {
		b.room.Wait()
	}
	if log.closed {
		return
	}
	if b.bytes > b.bound {
		log.dropped += len(parts)
		return
	}
	b.tellDropped(log)
	for _, each := range parts {
		b.append(log, each, stream)
	}
	b.notify()
}

// append needs b.mu.
func (b *logBuffer) append(log *jobLog, each part, stream conveyorv1.LogStream) {
	line := &conveyorv1.LogLine{
		Run: log.key.run, Step: log.key.step, Attempt: log.key.attempt, Seq: log.nextSeq,
		Time: timestamppb.Now(), Text: each.text, Stream: stream, Partial: each.partial,
	}
	log.nextSeq++
	log.unacked = append(log.unacked, line)
	b.unsent = append(b.unsent, line)
	b.bytes += size(line)
}

// tellDropped needs b.mu.
func (b *logBuffer) tellDropped(log *jobLog) {
	if log.dropped == 0 {
		return
	}
	text := fmt.Sprintf("[%d lines are left out here: they came faster than the server stores them]", log.dropped)
	log.dropped = 0
	b.append(log, part{text: text}, conveyorv1.LogStream_LOG_STREAM_LOG)
}

func (b *logBuffer) close(log *jobLog) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if log.closed {
		return
	}
	b.tellDropped(log)
	log.closed = true
	if len(log.unacked) == 0 && b.logs[log.key] == log {
		delete(b.logs, log.key)
	}
	b.room.Broadcast()
}

func size(line *conveyorv1.LogLine) int { return proto.Size(line) + lineOverhead }
