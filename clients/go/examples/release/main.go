// Release puts a resource on a pipeline, and follows the run.
package main

import (
	"context"
	"errors"
	"fmt"
	"log"

	"github.com/conveyor-ci/conveyor/clients/go/client"
	"github.com/conveyor-ci/conveyor/clients/go/conveyor"
	conveyorv1 "github.com/conveyor-ci/conveyor/clients/go/conveyor/v1"
)

func main() {
	if err := release(context.Background()); err != nil {
		var failure *conveyor.Error
		if errors.As(err, &failure) {
			for _, violation := range failure.Violations {
				log.Print(violation.Field, ": ", violation.Description)
			}
		}
		log.Fatal(err)
	}
}

func release(ctx context.Context) error {
	c, err := client.New()
	if err != nil {
		return err
	}
	defer c.Close()

	_, err = c.ApplyResourceDefinition(ctx, &conveyorv1.ApplyResourceDefinitionRequest{
		ResourceDefinition: &conveyorv1.ResourceDefinition{Name: "app"},
	})
	if err != nil {
		return err
	}
	_, err = c.ApplyPipeline(ctx, &conveyorv1.ApplyPipelineRequest{Pipeline: &conveyorv1.Pipeline{
		Name:  "release",
		Steps: []*conveyorv1.Step{{Id: "build", Action: &conveyorv1.Step_Driver{Driver: "compile"}}},
	}})
	if err != nil {
		return err
	}
	spec, err := conveyor.Struct(map[string]any{"repository": "https://example.org/shop.git"})
	if err != nil {
		return err
	}
	_, err = c.ApplyResource(ctx, &conveyorv1.ApplyResourceRequest{Resource: &conveyorv1.Resource{
		Definition: "app", Name: "shop", Spec: spec,
	}})
	if err != nil {
		return err
	}

	run, err := c.StartRun(ctx, &conveyorv1.StartRunRequest{Definition: "app", Resource: "shop", Pipeline: "release"})
	if err != nil {
		return err
	}
	for line, err := range c.ReadLogs(ctx, &conveyorv1.ReadLogsRequest{Run: run.GetId(), Follow: true}) {
		if err != nil {
			return err
		}
		fmt.Println(line.GetStep(), line.GetText())
	}
	run, err = c.WaitRun(ctx, run.GetId())
	if err != nil {
		return err
	}
	fmt.Println(run.GetId(), run.GetState())
	return nil
}
