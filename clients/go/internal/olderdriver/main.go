// Olderdriver is a driver of the older protocol for tests: its name, what it does, and arguments of that. It knows
// nothing of this repository; what it asks for and says is what tests/vectors has of the real ones.
//
// It prints "ready" when it takes tickets, and each ticket that it is given on a line of its own.
package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log"
	"os"
	"strings"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
)

type driver struct {
	name string
	nc   *nats.Conn
	js   jetstream.JetStream
	work func() result
	// What it has acked and not begun with.
	tickets chan []byte
	// Whether it drops the metadata of the resource that it sends back.
	mute bool
}

type ticket struct {
	Payload string `json:"payload"`
	RunID   string `json:"run_id"`
}

type resource struct {
	ID       string            `json:"id"`
	Name     string            `json:"name"`
	Pipeline string            `json:"pipeline,omitempty"`
	Resource string            `json:"resource"`
	Metadata map[string]string `json:"metadata"`
	Spec     json.RawMessage   `json:"spec"`
}

type result struct {
	Success bool   `json:"success"`
	Message string `json:"message"`
	Data    any    `json:"data"`
	Driver  string `json:"driver"`
}

type answer struct {
	RunID        string   `json:"run_id"`
	Event        string   `json:"event"`
	Resource     resource `json:"resource"`
	DriverResult result   `json:"driverresult"`
}

type line struct {
	Driver    string `json:"driver"`
	Message   string `json:"message"`
	Pipeline  string `json:"pipeline"`
	RunID     string `json:"runid"`
	Timestamp string `json:"timestamp"`
}

func main() {
	d := &driver{name: os.Args[1], mute: os.Getenv("MUTE") != "", work: kind(os.Args[2:])}
	d.tickets = make(chan []byte, 10_000)
	filters := []string{"resources.app", "drivers." + d.name + ".resources.app"}
	if given := os.Getenv("FILTERS"); given != "" {
		filters = strings.Split(given, ",")
	}
	// What starts such a driver anew whenever it ends is here too.
	for {
		log.Print(d.serve(filters))
		time.Sleep(100 * time.Millisecond)
	}
}

// kind returns what a driver of these words does with a ticket.
func kind(words []string) func() result {
	switch words[0] {
	case "fail":
		return func() result { return result{Message: "boom", Data: map[string]int{"code": 7}} }
	case "hold":
		return func() result {
			for {
				if _, err := os.Stat(words[1]); err == nil {
					return result{Success: true, Message: "ok", Data: map[string]int{"n": 1}}
				}
				time.Sleep(5 * time.Millisecond)
			}
		}
	default:
		return func() result { return result{Success: true, Message: "ok", Data: map[string]int{"n": 1}} }
	}
}

// serve makes the consumer and takes all that comes. An error when the consumer is gone.
func (d *driver) serve(filters []string) error {
	var err error
	d.nc, err = nats.Connect(os.Getenv("CONVEYOR_NATS"), nats.MaxReconnects(-1), nats.ReconnectWait(50*time.Millisecond))
	if err != nil {
		return err
	}
	defer d.nc.Close()
	if d.js, err = jetstream.New(d.nc); err != nil {
		return err
	}
	config := jetstream.ConsumerConfig{
		Name: d.name, FilterSubjects: filters, MaxAckPending: 1,
		AckPolicy: jetstream.AckExplicitPolicy, DeliverPolicy: jetstream.DeliverAllPolicy,
	}
	consumer, err := d.js.CreateOrUpdateConsumer(context.Background(), "messages", config)
	// A server that has just started makes the stream a moment later.
	for errors.Is(err, jetstream.ErrStreamNotFound) {
		time.Sleep(20 * time.Millisecond)
		consumer, err = d.js.CreateOrUpdateConsumer(context.Background(), "messages", config)
	}
	if err != nil {
		return err
	}
	failed := make(chan error, 1)
	consuming, err := consumer.Consume(func(message jetstream.Msg) {
		fmt.Println(string(message.Data()))
		// It acks before it works.
		if err := message.Ack(); err != nil {
			log.Print(err)
		}
		d.tickets <- message.Data()
	}, jetstream.ConsumeErrHandler(func(_ jetstream.ConsumeContext, err error) { log.Print(err) }))
	if err != nil {
		return err
	}
	go func() {
		<-consuming.Closed()
		failed <- jetstream.ErrConsumerDeleted
	}()
	fmt.Println("ready")
	for {
		select {
		case body := <-d.tickets:
			if err := d.do(body); err != nil {
				return err
			}
		case err := <-failed:
			return err
		}
	}
}

// do works on a ticket: it writes its line of the log, twice as the real ones do, and answers.
func (d *driver) do(body []byte) error {
	var given ticket
	var about resource
	if err := json.Unmarshal(body, &given); err != nil {
		return err
	}
	if err := json.Unmarshal([]byte(given.Payload), &about); err != nil {
		return err
	}
	said := line{
		Driver: d.name, Message: "hello from " + d.name, RunID: given.RunID, Timestamp: fmt.Sprint(time.Now().Unix()),
	}
	d.publish("logs."+given.RunID, said)
	live, _ := json.Marshal(said)
	if err := d.nc.Publish("live.logs."+given.RunID+"."+d.name, live); err != nil {
		log.Print(err)
	}
	ended := d.work()
	ended.Driver = d.name
	if d.mute {
		about.Metadata = nil
	}
	d.publish("pipelines.driver.result", answer{given.RunID, "driver.result", about, ended})
	return nil
}

// publish goes on until the broker has it.
func (d *driver) publish(subject string, body any) {
	encoded, err := json.Marshal(body)
	for err == nil {
		asking, cancel := context.WithTimeout(context.Background(), time.Second)
		_, failed := d.js.Publish(asking, subject, encoded)
		cancel()
		if failed == nil {
			return
		}
		time.Sleep(20 * time.Millisecond)
	}
	log.Fatal(err)
}
