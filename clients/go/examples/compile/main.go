// Compile is a driver.
package main

import (
	"context"
	"log"
	"os/exec"

	"github.com/conveyor-ci/conveyor/clients/go/driver"
)

func main() {
	d := driver.New("compile", compile, driver.WithDefinitions("app"), driver.WithSlots(4))
	if err := d.Run(context.Background()); err != nil {
		log.Fatal(err)
	}
}

func compile(ctx context.Context, job *driver.Job) (driver.Result, error) {
	var spec struct {
		Repository string `json:"repository"`
	}
	if err := job.DecodeSpec(&spec); err != nil {
		return driver.Result{}, driver.Permanent(err)
	}
	job.Logf("building %s", spec.Repository)
	build := exec.CommandContext(ctx, "go", "version")
	build.Stdout, build.Stderr = job.Stdout(), job.Stderr()
	if err := build.Run(); err != nil {
		return driver.Result{}, err
	}
	return driver.Result{Message: "built", Data: map[string]any{"binary": "dist/app"}}, nil
}
