package driver

import (
	"context"
	"fmt"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/timestamppb"

	conveyorv1 "github.com/conveyor-ci/conveyor/clients/go/conveyor/v1"
	"github.com/conveyor-ci/conveyor/clients/go/internal/link"
	"github.com/conveyor-ci/conveyor/clients/go/internal/wire"
)

const (
	ackWait         = 30 * time.Second
	inProgressEvery = 10 * time.Second
	publishWithin   = 5 * time.Second
	// After so long a result goes out although its log lines do not: the stream of the logs may be away alone.
	logsWithin = 10 * time.Second
	remembered = 4096
)

// ticket is a message that asks for work, and its last delivery.
type ticket struct {
	*wire.Ticket
	delivery *nats.Msg
}

type answered struct {
	key   attemptKey
	token string
}

// jetWorker takes part over NATS JetStream: tickets come from the driver's consumer, results and log lines are
// published.
//
// A ticket is acked after its result was stored by the broker; until then the broker is told that work goes on.
type jetWorker struct {
	*runner
	settings settings
	consumer string
	nc       *nats.Conn
	js       jetstream.JetStream
	puller   *puller
	changed  chan struct{}
	drained  chan struct{}

	// All guarded by the runner's mu.
	tickets map[attemptKey]*ticket
	// Tickets that were answered: the broker may deliver them once more when an ack was lost.
	answers map[answered]bool
	order   []answered
	tasks   int
	// How many lines were published, and a channel that is closed when there are more.
	lines     uint64
	moreLines chan struct{}
}

func newJetWorker(s settings, r *runner) *jetWorker {
	w := &jetWorker{
		runner: r, settings: s, consumer: wire.Consumer(s.namespace, s.driver),
		changed: make(chan struct{}, 1), drained: make(chan struct{}), moreLines: make(chan struct{}),
		tickets: map[attemptKey]*ticket{}, answers: map[answered]bool{},
	}
	return w
}

func (w *jetWorker) run(ctx context.Context) error {
	ctx, stop := context.WithCancel(ctx)
	defer stop()
	if err := w.connect(); err != nil {
		return err
	}
	defer w.end()
	w.report = func(job *Job, result *conveyorv1.DriverResult) {
		each, lines := w.tickets[job.key()], w.logs.written()
		w.later(func() { w.answer(ctx, each, result, lines) })
	}
	starting, started := context.WithCancel(ctx)
	defer started()
	go func() {
		select {
		case <-w.drained:
			started()
		case <-starting.Done():
		}
	}()
	cancels, err := w.nc.Subscribe(wire.CancelFilter(w.settings.namespace), w.takeCancel)
	if err != nil {
		return err
	}
	defer func() { _ = cancels.Unsubscribe() }()
	if w.makeConsumer(starting) != nil {
		return nil
	}
	w.learnLimits()
	w.logger.Info("connected", "url", w.nc.ConnectedUrlRedacted(), "consumer", w.consumer)
	parts := []func(context.Context){w.puller.run, w.publishLines, w.sayInProgress}
	ended := make(chan struct{}, len(parts))
	for _, part := range parts {
		go func() {
			part(ctx)
			ended <- struct{}{}
		}()
	}
	w.untilFinished(ctx)
	stop()
	for range parts {
		<-ended
	}
	return nil
}

func (w *jetWorker) drain() {
	w.mu.Lock()
	defer w.mu.Unlock()
	if !w.draining() {
		close(w.drained)
	}
	signalTo(w.changed)
}

func (w *jetWorker) draining() bool {
	select {
	case <-w.drained:
		return true
	default:
		return false
	}
}

func (w *jetWorker) connect() error {
	options := append([]nats.Option{
		nats.Name(w.settings.driver + " " + w.settings.worker),
		nats.RetryOnFailedConnect(true), nats.MaxReconnects(-1), nats.ReconnectWait(time.Second),
		nats.IgnoreAuthErrorAbort(), nats.PingInterval(10 * time.Second), nats.MaxPingsOutstanding(2),
		// What cannot be sent now is sent again by who has it.
		nats.ReconnectBufSize(-1),
		nats.DisconnectErrHandler(func(_ *nats.Conn, err error) {
			if err != nil {
				w.logger.Warn("the connection to the broker was lost; trying again", "error", err)
			}
		}),
		nats.ReconnectHandler(func(*nats.Conn) {
			w.logger.Info("connected to the broker again")
			w.learnLimits()
			w.puller.reconnected()
		}),
		nats.ErrorHandler(func(_ *nats.Conn, _ *nats.Subscription, err error) {
			w.logger.Warn("broker", "error", err)
		}),
	}, w.settings.natsOptions...)
	var err error
	if w.nc, err = nats.Connect(w.settings.nats, options...); err != nil {
		return fmt.Errorf("the broker at %s: %w", w.settings.nats, err)
	}
	if w.js, err = jetstream.New(w.nc); err != nil {
		return err
	}
	w.puller = newPuller(w)
	return nil
}

// makeConsumer makes the driver's consumer, or makes it what it should be. It waits for broker and stream without end.
func (w *jetWorker) makeConsumer(ctx context.Context) error {
	subjects := wire.Filters(w.settings.namespace, w.settings.driver, w.settings.definitions)
	config := jetstream.ConsumerConfig{
		Name: w.consumer, AckPolicy: jetstream.AckExplicitPolicy, AckWait: ackWait,
		// All workers of the driver share it.
		MaxAckPending: 10_000,
	}
	if len(subjects) == 1 {
		config.FilterSubject = subjects[0]
	} else {
		config.FilterSubjects = subjects
	}
	waits := link.Backoff{Longest: 2 * time.Second}
	told := ""
	for {
		asking, cancel := context.WithTimeout(ctx, publishWithin)
		_, err := w.js.CreateOrUpdateConsumer(asking, wire.MessagesStream, config)
		cancel()
		if err == nil || ctx.Err() != nil {
			return ctx.Err()
		}
		if text := err.Error(); text != told {
			w.logger.Warn("cannot make the consumer; trying again",
				"consumer", w.consumer, "url", w.settings.nats, "error", err)
			told = text
		}
		if err := link.Sleep(ctx, waits.Next()); err != nil {
			return err
		}
	}
}

func (w *jetWorker) learnLimits() {
	payload := w.nc.MaxPayload()
	if payload <= 0 {
		return
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	w.takeLimits(&conveyorv1.Limits{
		MessageBytes: uint64(payload),
		// Escapes make a line up to six times as long.
		LogLineBytes: uint64(min(256<<10, payload/8)),
	})
}

// untilFinished returns when a drained worker has nothing left to do, or ctx is done.
func (w *jetWorker) untilFinished(ctx context.Context) {
	var idleSince time.Time
	for {
		select {
		case <-ctx.Done():
			return
		case <-w.changed:
		case <-time.After(time.Second):
		}
		w.mu.Lock()
		idle, done := w.puller.ended && len(w.jobs) == 0, len(w.tickets) == 0 && w.tasks == 0
		w.mu.Unlock()
		switch {
		case !idle:
		case done:
			return
		case idleSince.IsZero():
			idleSince = time.Now()
		case time.Since(idleSince) >= flushedWithin:
			w.logger.Warn("the broker did not take the last results; their tickets go to other workers")
			return
		}
	}
}

// end gives tickets that were not answered back to the broker, for other workers.
func (w *jetWorker) end() {
	w.close()
	w.mu.Lock()
	left := w.tickets
	w.tickets = map[attemptKey]*ticket{}
	w.mu.Unlock()
	for _, each := range left {
		_ = each.delivery.Nak()
	}
	_ = w.nc.FlushTimeout(2 * time.Second)
	w.nc.Close()
}

// later does something that may take its time, aside. It needs mu.
func (w *jetWorker) later(body func()) {
	w.tasks++
	go func() {
		body()
		w.mu.Lock()
		w.tasks--
		w.mu.Unlock()
		signalTo(w.changed)
	}()
}

// free returns how many tickets may come. It needs mu.
func (w *jetWorker) free() int {
	if w.draining() {
		return 0
	}
	return w.settings.slots - len(w.tickets)
}

// deliver begins with a ticket. It needs mu.
func (w *jetWorker) deliver(ctx context.Context, message *nats.Msg) {
	decoded, err := wire.DecodeTicket(message.Data, w.settings.namespace, w.settings.driver)
	if err != nil {
		w.logger.Warn("a message is no ticket and is left out", "subject", message.Subject, "error", err)
		w.later(func() { _ = message.Term() })
		return
	}
	assignment := decoded.Assignment
	key := keyOf(assignment)
	held := w.tickets[key]
	switch {
	case w.answers[answered{key, assignment.GetToken()}]:
		w.later(func() { _ = message.Ack() })
		return
	case held != nil && held.Assignment.GetToken() == assignment.GetToken():
		// Delivered again, e.g. by a restarted broker: it is this delivery that counts now.
		held.delivery = message
		return
	case held == nil && w.draining():
		w.later(func() { _ = message.Nak() })
		return
	case held != nil:
		w.forget(key, "the attempt was given out again")
		old := held.delivery
		w.later(func() { _ = old.Ack() })
	}
	if assignment.GetTimeout() != nil && assignment.GetDeadline() == nil {
		assignment.Deadline = timestamppb.New(time.Now().Add(assignment.GetTimeout().AsDuration()))
	}
	each := &ticket{decoded, message}
	w.tickets[key] = each
	if decoded.Problem != "" {
		lines := w.logs.written()
		w.later(func() { w.answer(ctx, each, failed(decoded.Problem, proto.Bool(false)), lines) })
		return
	}
	delivery, err := message.Metadata()
	w.start(assignment, err == nil && delivery.NumDelivered > 1)
}

func (w *jetWorker) takeCancel(message *nats.Msg) {
	notice, err := wire.DecodeCancel(message.Subject, message.Data)
	if err != nil {
		w.logger.Warn("a message is left out", "subject", message.Subject, "error", err)
		return
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	for key, each := range w.tickets {
		token := each.Assignment.GetToken()
		if key.run == notice.Run && key.step == notice.Step &&
			(notice.Attempt == 0 || notice.Attempt == key.attempt) && (notice.Token == "" || notice.Token == token) {
			w.stop(key, notice.Message, notice.Grace)
		}
	}
}

// sayInProgress tells the broker that work goes on, so that it gives it to nobody else.
func (w *jetWorker) sayInProgress(ctx context.Context) {
	beat := time.NewTicker(inProgressEvery)
	defer beat.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-beat.C:
		}
		w.mu.Lock()
		var deliveries []*nats.Msg
		for _, each := range w.tickets {
			deliveries = append(deliveries, each.delivery)
		}
		w.mu.Unlock()
		for _, each := range deliveries {
			_ = each.InProgress()
		}
	}
}
