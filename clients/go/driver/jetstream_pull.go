package driver

import (
	"context"
	"encoding/json"
	"strconv"
	"strings"
	"time"

	"github.com/nats-io/nats.go"

	"github.com/conveyor-ci/conveyor/clients/go/internal/link"
	"github.com/conveyor-ci/conveyor/clients/go/internal/wire"
)

const (
	// Short, so that requests which a restarted broker forgot are made anew soon.
	pullExpires = 4 * time.Second
	pullLate    = time.Second
	// What a worker that drains waits for at most, for messages that are on their way.
	endWithin = 2 * time.Second
)

// pull is an open request: how many messages it may still bring, and when it is over.
type pull struct {
	left int
	ends time.Time
}

// puller keeps requests for as many messages open as there are free slots. The library's own way asks for more than
// that, to have them at hand: here others may take them.
type puller struct {
	worker  *jetWorker
	subject string
	inbox   string
	wake    chan struct{}

	// All guarded by the runner's mu.
	gone    bool
	refused bool
	ended   bool
	number  int
	open    map[int]*pull
}

func newPuller(w *jetWorker) *puller {
	return &puller{
		worker: w, subject: "$JS.API.CONSUMER.MSG.NEXT." + wire.MessagesStream + "." + w.consumer,
		inbox: w.nc.NewInbox(), wake: make(chan struct{}, 1), open: map[int]*pull{},
	}
}

// reconnected says that the broker may have forgotten all requests.
func (p *puller) reconnected() {
	p.worker.mu.Lock()
	clear(p.open)
	p.worker.mu.Unlock()
	signalTo(p.wake)
}

func (p *puller) run(ctx context.Context) {
	w := p.worker
	messages, err := w.nc.Subscribe(p.inbox+".*", func(message *nats.Msg) { p.take(ctx, message) })
	if err != nil {
		w.logger.Error("cannot pull", "error", err)
		return
	}
	// No more comes than was asked for.
	_ = messages.SetPendingLimits(-1, -1)
	go func() {
		select {
		case <-w.drained:
			p.end(messages)
		case <-ctx.Done():
		}
	}()
	waits := link.Backoff{Longest: 2 * time.Second}
	for ctx.Err() == nil {
		w.mu.Lock()
		gone, refused := p.gone, p.refused
		p.gone, p.refused = false, false
		w.mu.Unlock()
		if gone {
			w.logger.Warn("the consumer is gone; making it anew", "consumer", w.consumer)
			if w.makeConsumer(ctx) != nil {
				return
			}
		}
		if refused {
			_ = link.Sleep(ctx, waits.Next())
		} else {
			waits.Reset()
		}
		p.ask()
		p.pause(ctx)
	}
}

// end withdraws the open requests, and waits for what is on its way: it goes to other workers at once.
func (p *puller) end(messages *nats.Subscription) {
	w := p.worker
	_ = messages.Drain()
	_ = w.nc.FlushTimeout(endWithin)
	for late := time.Now().Add(endWithin); messages.IsValid() && time.Now().Before(late); {
		time.Sleep(time.Millisecond)
	}
	w.mu.Lock()
	p.ended = true
	w.mu.Unlock()
	signalTo(w.changed)
}

// ask opens a request for the slots that no other one is for.
func (p *puller) ask() {
	w := p.worker
	w.mu.Lock()
	wanted := w.free()
	now := time.Now()
	for number, each := range p.open {
		if each.left == 0 || now.After(each.ends) {
			delete(p.open, number)
			continue
		}
		wanted -= each.left
	}
	if wanted <= 0 || !w.nc.IsConnected() {
		w.mu.Unlock()
		return
	}
	p.number++
	p.open[p.number] = &pull{wanted, now.Add(pullExpires + pullLate)}
	reply := p.inbox + "." + strconv.Itoa(p.number)
	w.mu.Unlock()
	body, _ := json.Marshal(map[string]int64{"batch": int64(wanted), "expires": int64(pullExpires)})
	_ = w.nc.PublishRequest(p.subject, reply, body)
}

// pause waits until there may be something to ask for.
func (p *puller) pause(ctx context.Context) {
	p.worker.mu.Lock()
	ends := time.Now().Add(pullExpires)
	for _, each := range p.open {
		if each.ends.Before(ends) {
			ends = each.ends
		}
	}
	p.worker.mu.Unlock()
	timer := time.NewTimer(time.Until(ends) + time.Millisecond)
	defer timer.Stop()
	select {
	case <-p.wake:
	case <-timer.C:
	case <-ctx.Done():
	}
}

// take takes what a request brought.
func (p *puller) take(ctx context.Context, message *nats.Msg) {
	p.worker.mu.Lock()
	defer p.worker.mu.Unlock()
	status := message.Header.Get("Status")
	if status == "" {
		p.countDelivery()
		p.worker.deliver(ctx, message)
		return
	}
	if status == "100" {
		return
	}
	number, _ := strconv.Atoi(message.Subject[strings.LastIndexByte(message.Subject, '.')+1:])
	delete(p.open, number)
	text := strings.ToLower(message.Header.Get("Description"))
	switch {
	case status == "503", strings.Contains(text, "consumer deleted"), strings.Contains(text, "consumer not found"),
		strings.Contains(text, "no responders"):
		p.gone = true
	case status == "409":
		p.refused = true
	}
	signalTo(p.wake)
}

// countDelivery says that the oldest open request brought a message: the broker serves them in order.
func (p *puller) countDelivery() {
	oldest := 0
	for number, each := range p.open {
		if each.left > 0 && (oldest == 0 || number < oldest) {
			oldest = number
		}
	}
	if oldest > 0 {
		p.open[oldest].left--
	}
}
