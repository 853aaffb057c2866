package client_test

import (
	"context"
	"errors"
	"fmt"
	"log"

	"github.com/conveyor-ci/conveyor/clients/go/client"
	"github.com/conveyor-ci/conveyor/clients/go/conveyor"
	conveyorv1 "github.com/conveyor-ci/conveyor/clients/go/conveyor/v1"
	"github.com/conveyor-ci/conveyor/clients/go/driver"
)

// A pipeline, a resource that moves on it, and the run that this starts.
func Example() {
	ctx, stop := context.WithCancel(context.Background())
	defer stop()
	c, err := client.New()
	if err != nil {
		log.Fatal(err)
	}
	defer c.Close()

	definition := &conveyorv1.ResourceDefinition{Name: "app"}
	_, err = c.ApplyResourceDefinition(ctx, &conveyorv1.ApplyResourceDefinitionRequest{ResourceDefinition: definition})
	if err != nil {
		log.Fatal(err)
	}
	pipeline := &conveyorv1.Pipeline{Name: "go-client", Steps: []*conveyorv1.Step{
		{Id: "compile", Action: &conveyorv1.Step_Driver{Driver: "go-client"}},
	}}
	if _, err = c.ApplyPipeline(ctx, &conveyorv1.ApplyPipelineRequest{Pipeline: pipeline}); err != nil {
		log.Fatal(err)
	}

	// Usually this is another program.
	compile := driver.New("go-client", func(context.Context, *driver.Job) (driver.Result, error) {
		return driver.Result{Message: "compiled"}, nil
	})
	go func() { _ = compile.Serve(ctx) }()

	spec, err := conveyor.Struct(map[string]any{"repository": "https://example.org/shop.git"})
	if err != nil {
		log.Fatal(err)
	}
	resource := &conveyorv1.Resource{Definition: "app", Name: "shop", Pipeline: "go-client", Spec: spec}
	created, err := c.CreateResource(ctx, &conveyorv1.CreateResourceRequest{Resource: resource})
	if err != nil {
		log.Fatal(err)
	}
	run, err := c.WaitRun(ctx, created.GetRun().GetId())
	if err != nil {
		log.Fatal(err)
	}
	fmt.Println(run.GetState(), run.GetSteps()[0].GetResult().GetMessage())

	for run, err := range c.ListRuns(ctx, &conveyorv1.ListRunsRequest{Pipeline: "go-client"}) {
		if err != nil {
			log.Fatal(err)
		}
		fmt.Println(run.GetDefinition(), run.GetResource())
	}
	// Output:
	// RUN_STATE_SUCCEEDED compiled
	// app shop
}

func ExampleClient_GetRun() {
	c, err := client.New()
	if err != nil {
		log.Fatal(err)
	}
	defer c.Close()
	_, err = c.GetRun(context.Background(), "not an id")
	if errors.Is(err, conveyor.ErrInvalidArgument) {
		var failure *conveyor.Error
		errors.As(err, &failure)
		fmt.Println(failure.Reason, failure.Violations[0].Field)
	}
	// Output: ERROR_REASON_INVALID_FIELD id
}

func ExampleClient_StartRun() {
	c, err := client.New()
	if err != nil {
		log.Fatal(err)
	}
	defer c.Close()
	_, err = c.StartRun(context.Background(), &conveyorv1.StartRunRequest{
		Definition: "app", Resource: "nowhere", Labels: map[string]string{"by": "me"},
	})
	fmt.Println(errors.Is(err, conveyor.ErrNotFound))
	// Output: true
}
