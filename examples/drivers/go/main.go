// Stamps parcels: the driver of these examples, with the SDK for Go.
package main

import (
	"cmp"
	"context"
	"errors"
	"log"
	"strings"
	"time"

	"github.com/conveyor-ci/conveyor/clients/go/conveyor"
	"github.com/conveyor-ci/conveyor/clients/go/driver"
)

func main() {
	if err := driver.New("go", stamp).Run(context.Background()); err != nil {
		log.Fatal(err)
	}
}

func stamp(ctx context.Context, job *driver.Job) (driver.Result, error) {
	var spec struct {
		Log     []string
		Seconds float64
		Fail    string
		Data    map[string]any
	}
	var shared struct{ Greeting string }
	if err := errors.Join(job.DecodeSpec(&spec), job.DecodeContext(&shared)); err != nil {
		return driver.Result{}, driver.Permanent(err)
	}
	stamps, err := before(job)
	if err != nil {
		return driver.Result{}, driver.Permanent(err)
	}
	if shared.Greeting != "" {
		job.Logf("%s from go, after: %s", shared.Greeting, cmp.Or(strings.Join(stamps, ", "), "nobody"))
	}
	for _, line := range spec.Log {
		job.Logf("%s", line)
	}
	select {
	case <-time.After(time.Duration(spec.Seconds * float64(time.Second))):
	case <-ctx.Done():
		return driver.Result{}, ctx.Err()
	}
	if spec.Fail != "" {
		return driver.Result{}, errors.New(spec.Fail)
	}
	data := map[string]any{"stamps": append(stamps, "go")}
	for key, value := range spec.Data {
		data[key] = value
	}
	return driver.Result{Data: data}, nil
}

// before returns the stamps so far: the most that an earlier step knew of.
func before(job *driver.Job) ([]string, error) {
	var longest []string
	for _, result := range job.Assignment().GetResults() {
		var data struct{ Stamps []string }
		if err := conveyor.Decode(result.GetData(), &data); err != nil {
			return nil, err
		}
		if len(data.Stamps) > len(longest) {
			longest = data.Stamps
		}
	}
	return longest, nil
}
