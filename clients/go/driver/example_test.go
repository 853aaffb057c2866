package driver_test

import (
	"context"
	"errors"
	"fmt"
	"log"
	"os/exec"

	"github.com/conveyor-ci/conveyor/clients/go/client"
	"github.com/conveyor-ci/conveyor/clients/go/conveyor"
	conveyorv1 "github.com/conveyor-ci/conveyor/clients/go/conveyor/v1"
	"github.com/conveyor-ci/conveyor/clients/go/driver"
)

func reconcile(ctx context.Context, job *driver.Job) (driver.Result, error) {
	var spec struct {
		Greeting string `json:"greeting"`
	}
	if err := job.DecodeSpec(&spec); err != nil {
		return driver.Result{}, driver.Permanent(err)
	}
	if spec.Greeting == "" {
		return driver.Result{}, driver.Permanent(errors.New("the spec has no greeting"))
	}
	// The command ends when the job is cancelled, and what it writes becomes lines of the run's log.
	command := exec.CommandContext(ctx, "echo", spec.Greeting)
	command.Stdout, command.Stderr = job.Stdout(), job.Stderr()
	if err := command.Run(); err != nil {
		return driver.Result{}, err
	}
	job.Logger().Info("done", "attempt", job.Attempt())
	return driver.Result{Message: "greeted", Data: map[string]any{"length": len(spec.Greeting)}}, nil
}

// A driver that runs inside of another program; one of its own calls Run instead of Serve.
func Example() {
	ctx, stop := context.WithCancel(context.Background())
	greet := driver.New("go-greet", reconcile, driver.WithDefinitions("greeting"), driver.WithSlots(4))
	served := make(chan error)
	go func() { served <- greet.Serve(ctx) }()

	run := start(ctx, "hello")
	fmt.Println(run.GetSteps()[0].GetResult().GetMessage(), run.GetSteps()[0].GetResult().GetData().AsMap())
	stop()
	fmt.Println(<-served)
	// Output:
	// hello
	// level=INFO msg=done attempt=1
	// greeted map[length:5]
	// <nil>
}

// start runs a greeting through a pipeline of one step, and prints its log.
func start(ctx context.Context, greeting string) *conveyorv1.Run {
	c, err := client.New()
	if err != nil {
		log.Fatal(err)
	}
	defer c.Close()
	definition := &conveyorv1.ResourceDefinition{Name: "greeting"}
	_, err = c.ApplyResourceDefinition(ctx, &conveyorv1.ApplyResourceDefinitionRequest{ResourceDefinition: definition})
	if err != nil {
		log.Fatal(err)
	}
	steps := []*conveyorv1.Step{{Id: "greet", Action: &conveyorv1.Step_Driver{Driver: "go-greet"}}}
	pipeline := &conveyorv1.Pipeline{Name: "greet", Steps: steps}
	if _, err = c.ApplyPipeline(ctx, &conveyorv1.ApplyPipelineRequest{Pipeline: pipeline}); err != nil {
		log.Fatal(err)
	}
	resource := &conveyorv1.Resource{Definition: "greeting", Name: "first", Pipeline: "greet"}
	if resource.Spec, err = conveyor.Struct(map[string]string{"greeting": greeting}); err != nil {
		log.Fatal(err)
	}
	created, err := c.CreateResource(ctx, &conveyorv1.CreateResourceRequest{Resource: resource})
	if err != nil {
		log.Fatal(err)
	}
	id := created.GetRun().GetId()
	for line, err := range c.ReadLogs(ctx, &conveyorv1.ReadLogsRequest{Run: id, Follow: true}) {
		if err != nil {
			log.Fatal(err)
		}
		fmt.Println(line.GetText())
	}
	run, err := c.WaitRun(ctx, id)
	if err != nil {
		log.Fatal(err)
	}
	return run
}
