package driver

import (
	"slices"
	"strings"
	"time"

	conveyorv1 "github.com/conveyor-ci/conveyor/clients/go/conveyor/v1"
)

// hello says who this is, and all that it holds.
func (w *worker) hello() *conveyorv1.Hello {
	w.mu.Lock()
	defer w.mu.Unlock()
	s := w.settings
	hello := &conveyorv1.Hello{
		Namespace: s.namespace, Driver: s.driver, Worker: s.worker, Session: w.session, Slots: uint32(s.slots),
		Definitions: s.definitions, Labels: s.labels, Sdk: sdk(), Protocol: 1,
	}
	hold := func(key attemptKey, token string) {
		held := &conveyorv1.Holding{Run: key.run, Step: key.step, Attempt: key.attempt, Token: token}
		hello.Holding = append(hello.Holding, held)
	}
	for key, job := range w.jobs {
		hold(key, job.assignment.GetToken())
	}
	for key, each := range w.unacked {
		hold(key, each.report.GetToken())
	}
	return hello
}

func (w *worker) takeWelcome(welcome *conveyorv1.Welcome, address string) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.session = welcome.GetSession()
	w.takeLimits(welcome.GetLimits())
	for _, each := range welcome.GetRevoked() {
		w.revoke(keyOf(each), "the server gave the attempt up")
	}
	// What was sent on the old connection may not have arrived.
	w.logs.rewind()
	everything := w.logs.written()
	w.unsent = nil
	for _, each := range w.unacked {
		each.lines = everything
		w.unsent = append(w.unsent, each)
	}
	w.welcomed, w.connected = true, true
	w.drainSent, w.drained = false, false
	w.heard = time.Now()
	w.logger.Info("connected", "address", address, "session", w.session, "driver", w.settings.driver)
	signalTo(w.wake)
	signalTo(w.changed)
}

// revoke forgets an attempt that is not ours any more. It needs mu.
func (w *worker) revoke(key attemptKey, message string) {
	w.forget(key, message)
	if each := w.unacked[key]; each != nil {
		delete(w.unacked, key)
		w.unsent = slices.DeleteFunc(w.unsent, func(other *pending) bool { return other == each })
	}
	w.logs.discard(key)
}

func (w *worker) take(message *conveyorv1.WorkResponse) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.heard = time.Now()
	for _, assignment := range message.GetAssignments() {
		w.takeAssignment(assignment)
	}
	for _, ack := range message.GetAcks() {
		w.takeAck(ack)
	}
	for _, ack := range message.GetLogAcks() {
		w.logs.ack(keyOf(ack), ack.GetNextSeq())
	}
	for _, each := range message.GetCancellations() {
		w.stop(keyOf(each), each.GetMessage(), seconds(each.GetGrace(), 30*time.Second))
	}
	if message.GetDrained() != nil {
		w.drained = true
	}
	if !w.draining.IsZero() {
		signalTo(w.changed)
	}
}

// takeAssignment begins with an assignment, unless it was answered. It needs mu.
func (w *worker) takeAssignment(assignment *conveyorv1.Assignment) {
	key := keyOf(assignment)
	if answered := w.unacked[key]; answered != nil {
		if answered.report.GetToken() == assignment.GetToken() {
			return
		}
		w.revoke(key, "")
	}
	w.start(assignment, false)
}

// takeAck forgets a result. It needs mu.
func (w *worker) takeAck(ack *conveyorv1.ResultAck) {
	delete(w.unacked, keyOf(ack))
	switch ack.GetDisposition() {
	case conveyorv1.Disposition_DISPOSITION_ACCEPTED, conveyorv1.Disposition_DISPOSITION_DUPLICATE:
		return
	}
	w.logger.Warn("a result does not count",
		"run", ack.GetRun(), "step", ack.GetStep(), "attempt", ack.GetAttempt(),
		"disposition", strings.TrimPrefix(ack.GetDisposition().String(), "DISPOSITION_"), "message", ack.GetMessage())
}
