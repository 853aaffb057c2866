package driver

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"time"

	"github.com/nats-io/nats.go"
	"google.golang.org/protobuf/proto"

	conveyorv1 "github.com/conveyor-ci/conveyor/clients/go/conveyor/v1"
	"github.com/conveyor-ci/conveyor/clients/go/internal/link"
	"github.com/conveyor-ci/conveyor/clients/go/internal/wire"
)

const logMessageBytes = 128 << 10

// answer publishes a result, after the log lines that were written before it, and acks its ticket.
func (w *jetWorker) answer(ctx context.Context, each *ticket, result *conveyorv1.DriverResult, lines uint64) {
	w.awaitLines(ctx, lines)
	token, key := each.Assignment.GetToken(), keyOf(each.Assignment)
	message := nats.NewMsg(wire.ResultSubject(w.settings.namespace))
	message.Data = w.body(each, result)
	if token != "" {
		// The broker leaves out what comes again under the same id: the answer to a publish may be lost.
		message.Header.Set(nats.MsgIdHdr, token+".result")
	}
	if !w.publish(ctx, message) {
		return
	}
	w.mu.Lock()
	w.remember(answered{key, token})
	if w.tickets[key] == each {
		delete(w.tickets, key)
	}
	delivery := each.delivery
	w.mu.Unlock()
	_ = delivery.Ack()
	signalTo(w.puller.wake)
}

// remember needs mu.
func (w *jetWorker) remember(each answered) {
	w.answers[each] = true
	w.order = append(w.order, each)
	if len(w.order) > remembered {
		delete(w.answers, w.order[0])
		w.order = w.order[1:]
	}
}

// awaitLines waits until so many lines are published, but not for ever.
func (w *jetWorker) awaitLines(ctx context.Context, lines uint64) {
	late := time.NewTimer(logsWithin)
	defer late.Stop()
	for {
		w.mu.Lock()
		enough, more := w.lines >= lines, w.moreLines
		w.mu.Unlock()
		if enough {
			return
		}
		select {
		case <-more:
		case <-late.C:
			return
		case <-ctx.Done():
			return
		}
	}
}

func (w *jetWorker) body(each *ticket, result *conveyorv1.DriverResult) []byte {
	body, err := wire.EncodeResult(each.Ticket, result)
	limit := w.nc.MaxPayload()
	if err == nil && (int64(len(body)) <= limit || limit <= 0) {
		return body
	}
	text := fmt.Sprintf("the result has %d bytes; the broker takes %d", len(body), limit)
	if err != nil {
		text = fmt.Sprintf("the result cannot be sent: %v", err)
	}
	body, _ = wire.EncodeResult(each.Ticket, failed(text, proto.Bool(false)))
	return body
}

// publishLines publishes log lines as they gather, those of one attempt in one message.
func (w *jetWorker) publishLines(ctx context.Context) {
	for {
		select {
		case <-ctx.Done():
			return
		case <-w.wake:
		}
		for {
			lines := w.logs.take(logMessageBytes)
			if len(lines) == 0 {
				break
			}
			for len(lines) > 0 {
				key, count := keyOf(lines[0]), 1
				for count < len(lines) && keyOf(lines[count]) == key {
					count++
				}
				if !w.publishGroup(ctx, key, lines[:count], w.earlier(ctx, key)) {
					return
				}
				w.logs.ack(key, lines[count-1].GetSeq()+1)
				lines = lines[count:]
				w.published(count)
			}
		}
	}
}

func (w *jetWorker) published(count int) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.lines += uint64(count)
	close(w.moreLines)
	w.moreLines = make(chan struct{})
}

// earlier returns how many lines an attempt has from a worker that had it before; 0 when that cannot be told.
func (w *jetWorker) earlier(ctx context.Context, key attemptKey) uint64 {
	log := w.logs.get(key)
	if log == nil || !log.followsOther {
		return 0
	}
	// Only this goroutine looks at the two.
	if !log.asked {
		log.asked = true
		log.earlier = w.lastSeq(ctx, key)
	}
	return log.earlier
}

// lastSeq asks the broker for the last message of a step's log.
func (w *jetWorker) lastSeq(ctx context.Context, key attemptKey) uint64 {
	ctx, cancel := context.WithTimeout(ctx, publishWithin)
	defer cancel()
	request, _ := json.Marshal(map[string]string{
		"last_by_subj": wire.LogSubject(w.settings.namespace, key.run, key.step),
	})
	reply, err := w.nc.RequestWithContext(ctx, "$JS.API.STREAM.MSG.GET."+wire.LogsStream, request)
	if err != nil {
		return 0
	}
	var stored struct {
		Message struct {
			Data []byte `json:"data"`
		} `json:"message"`
	}
	if json.Unmarshal(reply.Data, &stored) != nil {
		return 0
	}
	return wire.LastSeq(stored.Message.Data, key.attempt)
}

func (w *jetWorker) publishGroup(
	ctx context.Context, key attemptKey, lines []*conveyorv1.LogLine, earlier uint64,
) bool {
	w.mu.Lock()
	pipeline := ""
	if held := w.tickets[key]; held != nil {
		pipeline = held.Assignment.GetPipeline()
	}
	w.mu.Unlock()
	body, err := wire.EncodeLines(lines, w.settings.driver, pipeline, earlier)
	if err != nil {
		w.logger.Error("log lines cannot be sent", "run", key.run, "error", err)
		return true
	}
	if limit := w.nc.MaxPayload(); limit > 0 && int64(len(body)) > limit && len(lines) > 1 {
		half := len(lines) / 2
		return w.publishGroup(ctx, key, lines[:half], earlier) && w.publishGroup(ctx, key, lines[half:], earlier)
	}
	return w.publish(ctx, &nats.Msg{Subject: wire.LogSubject(w.settings.namespace, key.run, key.step), Data: body})
}

// publish publishes until the broker says that it has it; false when ctx was done before.
func (w *jetWorker) publish(ctx context.Context, message *nats.Msg) bool {
	waits := link.Backoff{Longest: 2 * time.Second}
	told := false
	for {
		asking, cancel := context.WithTimeout(ctx, publishWithin)
		_, err := w.js.PublishMsg(asking, message)
		cancel()
		if err == nil {
			return true
		}
		if ctx.Err() != nil {
			return false
		}
		if errors.Is(err, nats.ErrMaxPayload) {
			w.logger.Error("a message is too large for the broker and is left out",
				"bytes", len(message.Data), "subject", message.Subject)
			return true
		}
		if !told {
			w.logger.Warn("cannot publish; trying again", "subject", message.Subject, "error", err)
			told = true
		}
		if link.Sleep(ctx, waits.Next()) != nil {
			return false
		}
	}
}
