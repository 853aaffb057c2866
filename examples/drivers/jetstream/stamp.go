package main

import (
	"cmp"
	"encoding/json"
	"fmt"
	"maps"
	"strings"
	"time"

	"github.com/nats-io/nats.go/jetstream"
)

type object = map[string]any

// work does the job of a ticket, or only acknowledges what is no ticket or was answered before.
func work(message jetstream.Msg) {
	defer func() { _ = message.Ack() }()
	var ticket, resource struct {
		Run      string `json:"run_id"`
		Payload  string
		Metadata map[string]string
		Spec     object
	}
	if json.Unmarshal(message.Data(), &ticket) != nil || json.Unmarshal([]byte(ticket.Payload), &resource) != nil {
		return
	}
	given := resource.Metadata
	step, attempt, token := given["conveyor.step"], given["conveyor.attempt"], given["conveyor.token"]
	if answered[token] {
		return
	}
	cancels, _ := nc.SubscribeSync(prefix + "cancel." + ticket.Run + "." + step)
	defer func() { _ = cancels.Unsubscribe() }()
	stamps := []string{}
	var earlier map[string]struct{ Data struct{ Stamps []string } }
	_ = json.Unmarshal([]byte(given["conveyor.results"]), &earlier)
	for _, result := range earlier {
		if len(result.Data.Stamps) > len(stamps) {
			stamps = result.Data.Stamps
		}
	}
	lines, _ := resource.Spec["log"].([]any)
	if greeting := given["greeting"]; greeting != "" {
		text := greeting + " from jetstream, after: " + cmp.Or(strings.Join(stamps, ", "), "nobody")
		lines = append([]any{text}, lines...)
	}
	for i, line := range lines {
		tell("logs."+ticket.Run+"."+step, fmt.Sprint(token, ".", i), object{"driver": "jetstream", "runid": ticket.Run,
			"step": step, "attempt": json.Number(attempt), "seq": i + 1, "message": line, "time": time.Now()})
	}
	result := object{"driver": "jetstream", "outcome": "SUCCEEDED", "success": true}
	seconds, _ := resource.Spec["seconds"].(float64)
	for end := time.Now().Add(time.Duration(seconds * float64(time.Second))); time.Now().Before(end); {
		_ = message.InProgress()
		told, err := cancels.NextMsg(min(time.Until(end), 10*time.Second))
		if err == nil && strings.Contains(string(told.Data), token) {
			result = object{"driver": "jetstream", "outcome": "CANCELLED", "success": false, "message": "stopped as told"}
			break
		}
	}
	if failure := resource.Spec["fail"]; failure != nil && result["success"] == true {
		result = object{"driver": "jetstream", "outcome": "FAILED", "success": false, "message": failure}
	} else if result["success"] == true {
		data, _ := resource.Spec["data"].(object)
		result["data"] = object{"stamps": append(stamps, "jetstream")}
		maps.Copy(result["data"].(object), data)
	}
	place := object{"conveyor.step": step, "conveyor.attempt": attempt, "conveyor.token": token}
	tell("pipelines.driver.result", token+".result", object{"run_id": ticket.Run, "event": "driver.result",
		"driverresult": result, "resource": object{"metadata": place}})
	answered[token] = true
}
