package driver

import (
	"strings"
	"testing"
	"time"

	conveyorv1 "github.com/conveyor-ci/conveyor/clients/go/conveyor/v1"
)

const plainLog = conveyorv1.LogStream_LOG_STREAM_LOG

var firstKey = attemptKey{"r", "a", 1}

func texts(lines []*conveyorv1.LogLine) string {
	var all []string
	for _, line := range lines {
		all = append(all, line.GetText())
	}
	return strings.Join(all, "|")
}

func TestLinesAreKeptUntilTheyAreAcked(t *testing.T) {
	buffer := newLogBuffer(func() {})
	log := buffer.open(firstKey)
	log.write("one\ntwo\r\n", plainLog)
	log.write("three", plainLog)
	if got := texts(buffer.take(1 << 20)); got != "one|two|three" {
		t.Error(got)
	}
	buffer.ack(firstKey, 2)
	written := buffer.written()
	buffer.rewind()
	if buffer.written() != written || buffer.sentAll(written) {
		t.Error("a rewind counts lines anew")
	}
	if got := texts(buffer.take(1 << 20)); got != "two|three" {
		t.Error(got)
	}
	log.close()
	log.write("too late", plainLog)
	buffer.ack(firstKey, 4)
	if !buffer.empty() || buffer.get(firstKey) != nil || !buffer.sentAll(written) {
		t.Error("something is left")
	}
}

func TestAFullBufferMakesWritersWait(t *testing.T) {
	buffer := newLogBuffer(func() {})
	buffer.bound = 100
	log := buffer.open(firstKey)
	log.write(strings.Repeat("x", 200), plainLog)
	wrote := make(chan struct{})
	go func() {
		log.write("after", plainLog)
		close(wrote)
	}()
	buffer.take(1 << 20)
	select {
	case <-wrote:
		t.Fatal("it did not wait")
	default:
	}
	buffer.ack(firstKey, 2)
	<-wrote
	if got := texts(buffer.take(1 << 20)); got != "after" {
		t.Error(got)
	}
}

func TestJobsGoOnWhileNothingIsStored(t *testing.T) {
	buffer := newLogBuffer(func() {})
	buffer.bound = 100
	log := buffer.open(firstKey)
	log.write(strings.Repeat("x", 200), plainLog)
	buffer.take(1 << 20)
	buffer.waitingSince = time.Now().Add(-2 * logPatience)
	buffer.check()
	log.write("lost\nlost", plainLog)
	if !buffer.sentAll(buffer.written()) {
		t.Error("results wait for lines")
	}
	if got := texts(buffer.take(1 << 20)); got != strings.Repeat("x", 200) {
		t.Error("it does not ask with a line", got)
	}
	if len(buffer.take(1<<20)) > 0 {
		t.Error("it asks with more lines before there is an answer")
	}
	buffer.ack(firstKey, 2)
	log.write("again", plainLog)
	want := "[2 lines are left out here: they came faster than the server stores them]|again"
	if got := texts(buffer.take(1 << 20)); got != want {
		t.Error(got)
	}
}

func TestAJobThatIsToStopDoesNotWait(t *testing.T) {
	buffer := newLogBuffer(func() {})
	buffer.bound = 100
	log := buffer.open(firstKey)
	log.write(strings.Repeat("x", 200), plainLog)
	log.doNotWait()
	log.write("dropped", plainLog)
	log.close()
	if got := texts(buffer.take(1 << 20)); !strings.Contains(got, "[1 lines are left out here") {
		t.Error(got)
	}
}

func TestADiscardedAttemptLeavesTheOthers(t *testing.T) {
	buffer := newLogBuffer(func() {})
	other := attemptKey{"r", "b", 1}
	first, second := buffer.open(firstKey), buffer.open(other)
	first.write("a", plainLog)
	second.write("b", plainLog)
	written := buffer.written()
	buffer.discard(firstKey)
	first.write("too late", plainLog)
	if buffer.written() != written || texts(buffer.take(1<<20)) != "b" {
		t.Error("what is left is not right")
	}
	buffer.ack(other, 2)
	if !buffer.empty() {
		t.Error("room is lost")
	}
}

func TestLongLinesAreSplitBetweenCharacters(t *testing.T) {
	parts := split("aaäää", 4)
	want := []part{{"aaä", true}, {"ää", false}}
	if len(parts) != 2 || parts[0] != want[0] || parts[1] != want[1] {
		t.Error(parts)
	}
	if parts := split("\xff", 4); parts[0].text != "\uFFFD" {
		t.Error(parts)
	}
}

func TestOutputBecomesLines(t *testing.T) {
	buffer := newLogBuffer(func() {})
	log := buffer.open(firstKey)
	writer := &lineWriter{log: log, stream: conveyorv1.LogStream_LOG_STREAM_STDOUT}
	for _, piece := range []string{"on", "e\ntw", "o\nth", "ree"} {
		if _, err := writer.Write([]byte(piece)); err != nil {
			t.Fatal(err)
		}
	}
	log.close()
	lines := buffer.take(1 << 20)
	if texts(lines) != "one|two|three" || lines[0].GetStream() != conveyorv1.LogStream_LOG_STREAM_STDOUT {
		t.Error(lines)
	}
}
