package wire

import (
	"encoding/json"
	"errors"
	"strconv"
	"strings"
	"time"

	conveyorv1 "github.com/conveyor-ci/conveyor/clients/go/conveyor/v1"
)

// What of a ticket's metadata goes back to a server that knows tokens.
var echoed = []string{own + "step", own + "attempt", own + "token", own + "namespace", own + "driver", "version"}

type driverResult struct {
	Success   bool           `json:"success"`
	Outcome   string         `json:"outcome,omitempty"`
	Message   string         `json:"message"`
	Data      map[string]any `json:"data"`
	Driver    string         `json:"driver"`
	Retryable *bool          `json:"retryable,omitempty"`
}

// EncodeResult returns the body that answers a ticket.
func EncodeResult(ticket *Ticket, result *conveyorv1.DriverResult) ([]byte, error) {
	answer := driverResult{
		Success: result.GetOutcome() == conveyorv1.Outcome_OUTCOME_SUCCEEDED,
		Message: result.GetMessage(), Driver: ticket.Assignment.GetDriver(), Retryable: result.Retryable,
	}
	if result.GetOutcome() == conveyorv1.Outcome_OUTCOME_CANCELLED {
		answer.Outcome = "CANCELLED"
	}
	if result.GetData() != nil {
		answer.Data = result.GetData().AsMap()
	}
	resource, err := echo(ticket)
	if err != nil {
		return nil, err
	}
	return json.Marshal(map[string]any{
		"event": "driver.result", "run_id": ticket.Assignment.GetRun(), "driverresult": answer, "resource": resource,
	})
}

// echo returns what goes back of the resource: all of it to an older engine, which knows nothing but what it gets back.
func echo(ticket *Ticket) (object, error) {
	if ticket.Assignment.GetToken() == "" {
		return ticket.resource, nil
	}
	metadata := object{}
	for _, key := range echoed {
		if value, ok := ticket.metadata[key]; ok {
			metadata[key] = value
		}
	}
	body, err := json.Marshal(metadata)
	if err != nil {
		return nil, err
	}
	resource := object{"metadata": body}
	for key, value := range ticket.resource {
		if key != "spec" && key != "metadata" {
			resource[key] = value
		}
	}
	return resource, nil
}

type line struct {
	Driver    string `json:"driver"`
	Message   string `json:"message"`
	Pipeline  string `json:"pipeline"`
	Run       string `json:"runid"`
	Timestamp string `json:"timestamp"`
	Step      string `json:"step"`
	Attempt   uint32 `json:"attempt"`
	Seq       uint64 `json:"seq"`
	Stream    string `json:"stream"`
	Time      string `json:"time"`
	Partial   bool   `json:"partial,omitempty"`
}

// EncodeLines returns the body for lines of one attempt; their numbers follow the lines that it has already.
func EncodeLines(lines []*conveyorv1.LogLine, driver, pipeline string, after uint64) ([]byte, error) {
	body := make([]line, len(lines))
	for i, each := range lines {
		at := each.GetTime().AsTime()
		body[i] = line{
			Driver: driver, Message: each.GetText(), Pipeline: pipeline, Run: each.GetRun(),
			Timestamp: strconv.FormatInt(at.Unix(), 10), Step: each.GetStep(), Attempt: each.GetAttempt(),
			Seq:    after + each.GetSeq(),
			Stream: strings.ToLower(strings.TrimPrefix(each.GetStream().String(), "LOG_STREAM_")),
			Time:   at.Format(time.RFC3339Nano), Partial: each.GetPartial(),
		}
	}
	return json.Marshal(body)
}

// LastSeq returns the number of the last line of an attempt in a message with log lines; 0 when it has none.
func LastSeq(body []byte, attempt uint32) uint64 {
	var lines []object
	if json.Unmarshal(body, &lines) != nil {
		one := object{}
		if json.Unmarshal(body, &one) != nil {
			return 0
		}
		lines = []object{one}
	}
	last := int64(0)
	for _, each := range lines {
		if number(each["attempt"]) == int64(attempt) {
			last = max(last, number(each["seq"]))
		}
	}
	return uint64(last)
}

// Cancel is what the server says on cancel.{run}.{step}. Fields that it leaves out are 0 or empty.
type Cancel struct {
	Run, Step, Token, Message string
	Attempt                   uint32
	Grace                     time.Duration
}

// DecodeCancel returns what a message on a cancel subject says.
func DecodeCancel(subject string, body []byte) (Cancel, error) {
	tokens := strings.Split(subject, ".")
	message, err := mapping(body)
	if err != nil || len(tokens) < 3 {
		return Cancel{}, errors.New("it is no cancellation")
	}
	seconds, err := strconv.ParseFloat(strings.TrimSuffix(string(plain(message["grace"])), "s"), 64)
	if err != nil || !(seconds > 0 && seconds < 1e6) {
		seconds = 0
	}
	return Cancel{
		Run: tokens[len(tokens)-2], Step: tokens[len(tokens)-1], Token: text(message["token"]),
		Message: text(message["message"]), Attempt: uint32(number(message["attempt"])),
		Grace: time.Duration(seconds * float64(time.Second)),
	}, nil
}
