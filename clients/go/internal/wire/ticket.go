package wire

import (
	"encoding/json"
	"errors"
	"fmt"
	"strconv"
	"strings"
	"time"

	"google.golang.org/protobuf/types/known/durationpb"
	"google.golang.org/protobuf/types/known/structpb"
	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/conveyor-ci/conveyor/clients/go/conveyor"
	conveyorv1 "github.com/conveyor-ci/conveyor/clients/go/conveyor/v1"
)

const (
	own         = "conveyor."
	olderResult = "driverresults."
)

// object is a JSON object whose values are not looked into, so that they go back as they came.
type object = map[string]json.RawMessage

// Ticket is a message that asks for work.
type Ticket struct {
	Assignment *conveyorv1.Assignment
	// Problem is why the job cannot be done: something in the ticket cannot be read. Empty when it can.
	Problem string
	// The resource and its metadata as they came; they go back with the result.
	resource, metadata object
}

// DecodeTicket returns the work that a message asks a driver for. An error when not even the run can be told.
func DecodeTicket(body []byte, namespace, driver string) (*Ticket, error) {
	var message struct {
		Run     json.RawMessage `json:"run_id"`
		Payload json.RawMessage `json:"payload"`
	}
	if err := json.Unmarshal(body, &message); err != nil {
		return nil, fmt.Errorf("not a JSON object: %w", err)
	}
	resource, err := mapping(message.Payload)
	run := text(message.Run)
	if err != nil || run == "" || len(resource) == 0 {
		return nil, errors.New("the ticket has no run_id, or its payload is no resource")
	}
	metadata, err := mapping(resource["metadata"])
	if err != nil {
		metadata = object{}
	}
	key := func(name string) json.RawMessage { return metadata[own+name] }
	pipeline := text(resource["pipeline"])
	ticket := &Ticket{resource: resource, metadata: metadata, Assignment: &conveyorv1.Assignment{
		Namespace: namespace, Run: run, Step: text(key("step")), Attempt: uint32(number(key("attempt"))),
		Token: text(key("token")), Driver: driver, Pipeline: either(text(key("pipeline")), pipeline),
		MaxAttempts: uint32(number(key("max_attempts"))),
		Resource: &conveyorv1.Resource{
			Namespace: namespace, Name: text(resource["name"]), Definition: text(resource["resource"]),
			Pipeline: pipeline, Uid: text(resource["id"]), Generation: number(metadata["version"]),
		},
	}}
	if err := ticket.fill(); err != nil {
		ticket.Problem = "the ticket cannot be read: " + err.Error()
	}
	return ticket, nil
}

// fill reads all of the assignment that may be unreadable.
func (t *Ticket) fill() error {
	made := t.Assignment
	var err error
	if made.Resource.Spec, err = structure(t.resource["spec"]); err != nil {
		return fmt.Errorf("spec: %w", err)
	}
	if made.Context, err = structure(t.metadata[own+"context"]); err != nil {
		return fmt.Errorf("context: %w", err)
	}
	if made.Params, err = structure(t.metadata[own+"params"]); err != nil {
		return fmt.Errorf("params: %w", err)
	}
	labels, err := mapping(t.metadata[own+"labels"])
	if err != nil {
		return fmt.Errorf("labels: %w", err)
	}
	made.Resource.Labels = map[string]string{}
	for name, value := range labels {
		made.Resource.Labels[name] = text(value)
	}
	// A later server may know more states: these are unspecified, as over gRPC.
	made.RunState = conveyorv1.RunState(conveyorv1.RunState_value["RUN_STATE_"+text(t.metadata[own+"run_state"])])
	if err := t.fillTimes(); err != nil {
		return err
	}
	return t.fillResults()
}

func (t *Ticket) fillTimes() error {
	if value := text(t.metadata[own+"deadline"]); value != "" {
		deadline, err := time.Parse(time.RFC3339Nano, value)
		if err != nil {
			return fmt.Errorf("deadline: %w", err)
		}
		t.Assignment.Deadline = timestamppb.New(deadline)
	}
	if value := text(t.metadata[own+"timeout"]); value != "" {
		timeout, err := time.ParseDuration(value)
		if err != nil {
			return fmt.Errorf("timeout: %w", err)
		}
		t.Assignment.Timeout = durationpb.New(timeout)
	}
	return nil
}

func (t *Ticket) fillResults() error {
	t.Assignment.Results = map[string]*conveyorv1.StepResult{}
	if raw, ok := t.metadata[own+"results"]; ok {
		results, err := mapping(raw)
		if err != nil {
			return fmt.Errorf("results: %w", err)
		}
		for step, answer := range results {
			if err := t.addResult(step, answer, ""); err != nil {
				return err
			}
		}
		return nil
	}
	// An older server names no steps: its results are found under the names of their drivers.
	for key, answer := range t.metadata {
		if driver, ok := strings.CutPrefix(key, olderResult); ok {
			if err := t.addResult(driver, answer, driver); err != nil {
				return err
			}
		}
	}
	return nil
}

// addResult reads what a step came to. older is the driver's name in an answer that has no state.
func (t *Ticket) addResult(step string, raw json.RawMessage, older string) error {
	answer, err := mapping(raw)
	if err != nil {
		return fmt.Errorf("results.%s: %w", step, err)
	}
	state := text(answer["state"])
	if older != "" {
		state = "FAILED"
		if string(answer["success"]) == "true" {
			state = "SUCCEEDED"
		}
	}
	value := conveyorv1.StepState_value["STEP_STATE_"+state]
	result := &conveyorv1.StepResult{
		State: conveyorv1.StepState(value), Driver: either(text(answer["driver"]), older), Message: text(answer["message"]),
	}
	if data := answer["data"]; len(data) > 0 && string(data) != "null" {
		if data[0] != '{' {
			// Older drivers may answer with anything.
			data = json.RawMessage(`{"value":` + string(data) + `}`)
		}
		if result.Data, err = conveyor.ParseStruct(data); err != nil {
			return fmt.Errorf("results.%s: %w", step, err)
		}
	}
	t.Assignment.Results[step] = result
	return nil
}

// plain returns a value, or the JSON that a text has.
func plain(raw json.RawMessage) []byte {
	if len(raw) > 0 && raw[0] == '"' {
		return []byte(text(raw))
	}
	return raw
}

// mapping returns a JSON object, or the one in a JSON text; nothing counts as an empty one.
func mapping(raw json.RawMessage) (object, error) {
	found := object{}
	body := plain(raw)
	if len(body) == 0 || string(body) == "null" {
		return found, nil
	}
	if err := json.Unmarshal(body, &found); err != nil {
		return nil, errors.New("not a JSON object")
	}
	return found, nil
}

func structure(raw json.RawMessage) (*structpb.Struct, error) {
	body := plain(raw)
	if len(body) == 0 || string(body) == "null" {
		return &structpb.Struct{}, nil
	}
	return conveyor.ParseStruct(body)
}

// text returns a JSON string; anything else is empty.
func text(raw json.RawMessage) string {
	var value string
	if json.Unmarshal(raw, &value) != nil {
		return ""
	}
	return value
}

// number returns a whole number of up to nine digits, or that of a JSON text; anything else is 0.
func number(raw json.RawMessage) int64 {
	digits := string(plain(raw))
	value, err := strconv.ParseUint(digits, 10, 32)
	if err != nil || len(digits) > 9 {
		return 0
	}
	return int64(value)
}

func either(value, otherwise string) string {
	if value != "" {
		return value
	}
	return otherwise
}
