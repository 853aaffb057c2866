// Stamps parcels: the driver of these examples in Go on NATS JetStream, from docs/jetstream.md, with nats.go alone.
package main

import (
	"context"
	"encoding/json"
	"errors"
	"log"
	"os"
	"os/signal"
	"syscall"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
)

var (
	nc       *nats.Conn
	js       jetstream.JetStream
	prefix   string              // of all subjects in the namespace
	answered = map[string]bool{} // tokens: such a ticket comes once more when its acknowledgement was lost
)

func main() {
	leaving, _ := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	url := nats.DefaultURL
	if given := os.Getenv("CONVEYOR_NATS"); given != "" {
		url = given
	}
	config := jetstream.ConsumerConfig{Name: "jetstream", AckWait: 30 * time.Second}
	if namespace := os.Getenv("CONVEYOR_NAMESPACE"); namespace != "" && namespace != "default" {
		prefix, config.Name = "ns."+namespace+".", namespace+"_jetstream"
	}
	config.FilterSubject = prefix + "drivers.jetstream.resources.*"
	var err error
	if nc, err = nats.Connect(url, nats.RetryOnFailedConnect(true), nats.MaxReconnects(-1)); err != nil {
		log.Fatal(err)
	}
	js, _ = jetstream.New(nc)
	for leaving.Err() == nil {
		log.Print(take(leaving, config))
		time.Sleep(100 * time.Millisecond)
	}
	nc.Close()
}

// take makes the consumer, and takes one ticket after the other until it is to leave or the consumer may be gone.
func take(leaving context.Context, config jetstream.ConsumerConfig) error {
	consumer, err := js.CreateOrUpdateConsumer(leaving, "messages", config)
	for err == nil && leaving.Err() == nil {
		var message jetstream.Msg
		if message, err = consumer.Next(jetstream.FetchMaxWait(time.Second)); err == nil {
			work(message)
		} else if errors.Is(err, nats.ErrTimeout) {
			err = nil
		}
	}
	return err
}

// tell publishes until the broker has it.
func tell(subject, id string, body any) {
	encoded, _ := json.Marshal(body)
	for {
		_, err := js.Publish(context.Background(), prefix+subject, encoded, jetstream.WithMsgID(id))
		if err == nil || errors.Is(err, nats.ErrMaxPayload) {
			return
		}
		time.Sleep(100 * time.Millisecond)
	}
}
