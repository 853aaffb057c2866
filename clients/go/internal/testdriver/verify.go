package main

import (
	"context"
	"errors"
	"time"

	"github.com/conveyor-ci/conveyor/clients/go/driver"
)

func init() {
	kinds["verify"] = verify
}

// verify does what docs/conformance.md asks of a driver that is verified.
func verify(ctx context.Context, job *driver.Job) (driver.Result, error) {
	var spec struct {
		Log     []string       `json:"log"`
		Seconds float64        `json:"seconds"`
		Fail    string         `json:"fail"`
		Data    map[string]any `json:"data"`
	}
	if err := job.DecodeSpec(&spec); err != nil {
		return driver.Result{}, driver.Permanent(err)
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
	return driver.Result{Data: spec.Data}, nil
}
