package wire

import (
	"bufio"
	"encoding/json"
	"os"
	"reflect"
	"strings"
	"testing"
	"time"

	"google.golang.org/protobuf/types/known/timestamppb"

	conveyorv1 "github.com/conveyor-ci/conveyor/clients/go/conveyor/v1"
)

const ticketText = `{"id": "9f", "event": "process", "run_id": "run-1", "payload": ` +
	`"{\"id\": \"u\", \"name\": \"web\", \"pipeline\": \"release\", \"resource\": \"app\", \"spec\": {\"n\": 3},` +
	` \"metadata\": {\"version\": \"7\", \"env\": \"stage\", \"conveyor.step\": \"deploy\", \"conveyor.attempt\": \"2\",` +
	` \"conveyor.token\": \"t\", \"conveyor.driver\": \"kube\", \"conveyor.timeout\": \"90.5s\",` +
	` \"conveyor.context\": \"{\\\"env\\\": \\\"stage\\\"}\", \"conveyor.run_state\": \"FAILED\",` +
	` \"conveyor.results\": \"{\\\"build\\\": {\\\"state\\\": \\\"SUCCEEDED\\\", \\\"driver\\\": \\\"make\\\",` +
	` \\\"data\\\": {\\\"id\\\": 1}}}\", \"conveyor.labels\": \"{\\\"a\\\": \\\"b\\\"}\"}}"}`

func TestATicketIsWork(t *testing.T) {
	ticket, err := DecodeTicket([]byte(ticketText), "default", "kube")
	if err != nil || ticket.Problem != "" {
		t.Fatal(err, ticket)
	}
	got := ticket.Assignment
	if got.GetRun() != "run-1" || got.GetStep() != "deploy" || got.GetAttempt() != 2 || got.GetToken() != "t" ||
		got.GetResource().GetGeneration() != 7 || got.GetResource().GetLabels()["a"] != "b" ||
		got.GetTimeout().AsDuration() != 90500*time.Millisecond || got.GetDeadline() != nil ||
		got.GetRunState() != conveyorv1.RunState_RUN_STATE_FAILED ||
		got.GetContext().AsMap()["env"] != "stage" || got.GetResource().GetSpec().AsMap()["n"] != 3.0 ||
		got.GetResults()["build"].GetData().AsMap()["id"] != 1.0 {
		t.Error(got)
	}
	retryable := false
	body, err := EncodeResult(ticket, &conveyorv1.DriverResult{
		Outcome: conveyorv1.Outcome_OUTCOME_CANCELLED, Message: "m", Retryable: &retryable,
	})
	if err != nil {
		t.Fatal(err)
	}
	same(t, body, `{"event": "driver.result", "run_id": "run-1",
		"driverresult": {"success": false, "outcome": "CANCELLED", "message": "m", "data": null, "driver": "kube",
			"retryable": false},
		"resource": {"id": "u", "name": "web", "pipeline": "release", "resource": "app", "metadata": {"version": "7",
			"conveyor.step": "deploy", "conveyor.attempt": "2", "conveyor.token": "t", "conveyor.driver": "kube"}}}`)
}

func TestWhatCannotBeReadIsSaid(t *testing.T) {
	for _, text := range []string{
		"", "[]", "{}", `{"run_id": "r"}`, `{"run_id": "r", "payload": "no"}`, `{"payload": "{}"}`,
	} {
		if _, err := DecodeTicket([]byte(text), "default", "d"); err == nil {
			t.Errorf("%q is a ticket", text)
		}
	}
	for problem, change := range map[string][2]string{
		"spec: $.n: the integer 9007199254740993": {`\"n\": 3`, `\"n\": 9007199254740993`},
		"timeout: ": {"90.5s", "soon"},
	} {
		ticket, err := DecodeTicket([]byte(strings.Replace(ticketText, change[0], change[1], 1)), "default", "d")
		if err != nil || !strings.Contains(ticket.Problem, problem) || ticket.Assignment.GetToken() != "t" {
			t.Errorf("%s: %v, %+v", problem, err, ticket)
		}
	}
}

func TestStatesOfALaterServerAreUnspecified(t *testing.T) {
	later := strings.NewReplacer("FAILED", "PAUSED", "SUCCEEDED", "PARKED").Replace(ticketText)
	ticket, err := DecodeTicket([]byte(later), "default", "d")
	if err != nil || ticket.Problem != "" {
		t.Fatal(err, ticket.Problem)
	}
	if state := ticket.Assignment.GetRunState(); state != conveyorv1.RunState_RUN_STATE_UNSPECIFIED {
		t.Error(state)
	}
	if state := ticket.Assignment.GetResults()["build"].GetState(); state != conveyorv1.StepState_STEP_STATE_UNSPECIFIED {
		t.Error(state)
	}
}

// What an older server published, and its drivers' answers, as they were recorded.
func TestOlderServersAreUnderstood(t *testing.T) {
	file, err := os.Open("../../../../tests/vectors/older-protocol.jsonl")
	if err != nil {
		t.Fatal(err)
	}
	defer file.Close()
	count := 0
	for lines := bufio.NewScanner(file); lines.Scan(); {
		var record struct {
			Kind, Subject string
			Body          json.RawMessage
		}
		if err := json.Unmarshal(lines.Bytes(), &record); err != nil {
			t.Fatal(err)
		}
		if record.Kind != "js-publish" || !strings.HasPrefix(record.Subject, "drivers.") {
			continue
		}
		count++
		driver := strings.Split(record.Subject, ".")[1]
		ticket, err := DecodeTicket(record.Body, "default", driver)
		if err != nil || ticket.Problem != "" || ticket.Assignment.GetRun() == "" {
			t.Fatal(err, ticket)
		}
		body, err := EncodeResult(ticket, &conveyorv1.DriverResult{Outcome: conveyorv1.Outcome_OUTCOME_SUCCEEDED})
		if err != nil {
			t.Fatal(err)
		}
		var answer struct{ Resource json.RawMessage }
		if err := json.Unmarshal(body, &answer); err != nil {
			t.Fatal(err)
		}
		var asked struct{ Payload string }
		if err := json.Unmarshal(record.Body, &asked); err != nil {
			t.Fatal(err)
		}
		// An older engine knows nothing but what it gets back: all of it, unchanged.
		same(t, answer.Resource, asked.Payload)
	}
	if count == 0 {
		t.Error("there is no ticket among the records")
	}
}

func TestAnOlderServersResultsAreFoundByDriver(t *testing.T) {
	text := `{"run_id": "r", "payload": "{\"name\": \"web\", \"metadata\": {` +
		`\"driverresults.d1\": \"{\\\"success\\\": true, \\\"data\\\": [1]}\",` +
		`\"driverresults.d2\": \"{\\\"success\\\": false, \\\"message\\\": \\\"no\\\"}\"}}"}`
	ticket, err := DecodeTicket([]byte(text), "default", "d3")
	if err != nil || ticket.Problem != "" {
		t.Fatal(err, ticket)
	}
	results := ticket.Assignment.GetResults()
	if results["d1"].GetState() != conveyorv1.StepState_STEP_STATE_SUCCEEDED || results["d2"].GetMessage() != "no" ||
		!reflect.DeepEqual(results["d1"].GetData().AsMap(), map[string]any{"value": []any{1.0}}) {
		t.Error(results)
	}
}

func TestLinesSayTheirPlace(t *testing.T) {
	at := time.Date(2026, 11, 25, 0, 42, 16, 5, time.UTC)
	body, err := EncodeLines([]*conveyorv1.LogLine{{
		Run: "r", Step: "s", Attempt: 1, Seq: 2, Time: timestamppb.New(at), Text: "t", Partial: true,
		Stream: conveyorv1.LogStream_LOG_STREAM_STDOUT,
	}}, "d", "p", 3)
	if err != nil {
		t.Fatal(err)
	}
	same(t, body, `[{"driver": "d", "message": "t", "pipeline": "p", "runid": "r", "timestamp": "1795567336", "step": "s",
		"attempt": 1, "seq": 5, "stream": "stdout", "time": "2026-11-25T00:42:16.000000005Z", "partial": true}]`)
	if LastSeq(body, 1) != 5 || LastSeq(body, 2) != 0 || LastSeq([]byte("no"), 1) != 0 ||
		LastSeq([]byte(`{"attempt": "1", "seq": 9}`), 1) != 9 {
		t.Error("the last line is not found")
	}
}

func TestACancelNamesItsAttempt(t *testing.T) {
	got, err := DecodeCancel("ns.x.cancel.r.s", []byte(`{"attempt": 2, "token": "t", "message": "m", "grace": 1.5}`))
	if err != nil || got != (Cancel{"r", "s", "t", "m", 2, 1500 * time.Millisecond}) {
		t.Error(got, err)
	}
	if got, err := DecodeCancel("cancel.r.s", []byte(`{"grace": "NaN"}`)); err != nil || got.Grace != 0 {
		t.Error(got, err)
	}
	if _, err := DecodeCancel("cancel.r.s", []byte("[]")); err == nil {
		t.Error("a list is a cancellation")
	}
}

func TestSubjects(t *testing.T) {
	for _, each := range [][2]string{
		{Consumer("default", "d"), "d"},
		{Consumer("x", "d"), "x_d"},
		{strings.Join(Filters("default", "d", nil), " "), "drivers.d.resources.*"},
		{strings.Join(Filters("x", "d", []string{"a"}), " "), "ns.x.resources.a ns.x.drivers.d.resources.a"},
		{ResultSubject("x"), "ns.x.pipelines.driver.result"},
		{LogSubject("default", "r", "s"), "logs.r.s"},
		{LogSubject("default", "r", ""), "logs.r"},
		{CancelFilter("x"), "ns.x.cancel.*.*"},
	} {
		if each[0] != each[1] {
			t.Errorf("got %s, want %s", each[0], each[1])
		}
	}
}

func same(t *testing.T, got []byte, want string) {
	t.Helper()
	var left, right any
	if err := json.Unmarshal(got, &left); err != nil {
		t.Fatal(err)
	}
	if err := json.Unmarshal([]byte(want), &right); err != nil {
		t.Fatal(err)
	}
	if !reflect.DeepEqual(left, right) {
		t.Errorf("got %s, want %s", got, want)
	}
}
