// Testclient is a client for tests: a command and its arguments. It writes one line per thing that it gets.
package main

import (
	"context"
	"errors"
	"fmt"
	"iter"
	"os"
	"os/signal"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/conveyor-ci/conveyor/clients/go/client"
	"github.com/conveyor-ci/conveyor/clients/go/conveyor"
	conveyorv1 "github.com/conveyor-ci/conveyor/clients/go/conveyor/v1"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM)
	defer stop()
	var options []client.Option
	if patience, err := time.ParseDuration(os.Getenv("GIVE_UP_AFTER")); err == nil {
		options = append(options, client.WithGiveUpAfter(patience))
	}
	c, err := client.New(options...)
	if err == nil {
		err = do(ctx, c, os.Args[1], os.Args[2:])
	}
	if err != nil {
		explain(err)
		os.Exit(1)
	}
}

func do(ctx context.Context, c *client.Client, command string, arguments []string) error {
	switch command {
	case "start":
		return start(ctx, c, arguments)
	case "wait":
		return wait(ctx, c, arguments)
	case "get":
		return show(c.GetRun(ctx, arguments[0]))
	case "cancel":
		return show(c.CancelRun(ctx, &conveyorv1.CancelRunRequest{Id: arguments[0], Message: "enough"}))
	case "approve":
		gate, err := c.DecideStep(ctx, &conveyorv1.DecideStepRequest{
			Id: arguments[0], Step: arguments[1], By: arguments[2], Decision: conveyorv1.Decision_DECISION_APPROVED,
		})
		fmt.Println(gate.GetMessage())
		return err
	case "list":
		size, err := strconv.ParseUint(arguments[0], 10, 32)
		if err != nil {
			return err
		}
		return each(c.ListRuns(ctx, &conveyorv1.ListRunsRequest{PageSize: uint32(size)}), func(run *conveyorv1.Run) {
			fmt.Println(run.GetId())
		})
	case "locks":
		request := &conveyorv1.ListLocksRequest{PageSize: 1}
		return each(c.ListLocks(ctx, request), func(lock *conveyorv1.HeldLock) {
			fmt.Println(lock.GetKey(), lock.GetHolders()[0].GetStep(), lock.GetWaitingCount())
		})
	case "schedule":
		return schedule(ctx, c, arguments[0])
	case "watch":
		return each(c.WatchRun(ctx, arguments[0]), update)
	case "watch-all":
		return each(c.WatchRuns(ctx, &conveyorv1.WatchRunsRequest{}), update)
	case "logs":
		request := &conveyorv1.ReadLogsRequest{Run: arguments[0], Follow: len(arguments) > 1}
		return each(c.ReadLogs(ctx, request), func(line *conveyorv1.LogLine) { fmt.Println(line.GetText()) })
	case "pipeline":
		_, err := c.ApplyPipeline(ctx, &conveyorv1.ApplyPipelineRequest{Pipeline: &conveyorv1.Pipeline{
			Name: arguments[0], Steps: []*conveyorv1.Step{{Id: "NOT GOOD"}},
		}})
		return err
	}
	return fmt.Errorf("there is no command %s", command)
}

// start starts a run, once connected and once there is a file of the given name.
func start(ctx context.Context, c *client.Client, arguments []string) error {
	if _, err := c.ServerInfo(ctx); err != nil {
		return err
	}
	fmt.Println("connected")
	for {
		if _, err := os.Stat(arguments[3]); err == nil {
			break
		}
		time.Sleep(5 * time.Millisecond)
	}
	return show(c.StartRun(ctx, &conveyorv1.StartRunRequest{
		Definition: arguments[0], Resource: arguments[1], Pipeline: arguments[2],
	}))
}

// schedule makes a schedule of a resource, triggers it, lists and deletes it.
func schedule(ctx context.Context, c *client.Client, resource string) error {
	made, err := c.CreateSchedule(ctx, &conveyorv1.CreateScheduleRequest{Schedule: &conveyorv1.Schedule{
		Name: "nightly", Definition: "app", Resource: resource, Cron: "30 2 * * *", TimeZone: "Europe/Berlin",
	}})
	if err != nil {
		return err
	}
	run, err := c.TriggerSchedule(ctx, &conveyorv1.TriggerScheduleRequest{Name: made.GetName()})
	if err != nil {
		return err
	}
	fmt.Println(run.GetSchedule(), made.GetStatus().GetNextTime().AsTime().Minute())
	made.Cron = "0 0 31 2 *"
	if _, err = c.UpdateSchedule(ctx, &conveyorv1.UpdateScheduleRequest{Schedule: made}); err != nil {
		fmt.Println(err)
	}
	request := &conveyorv1.ListSchedulesRequest{}
	if err := each(c.ListSchedules(ctx, request), func(one *conveyorv1.Schedule) {
		fmt.Println(one.GetName(), one.GetStatus().GetStarted())
	}); err != nil {
		return err
	}
	_, err = c.DeleteSchedule(ctx, &conveyorv1.DeleteScheduleRequest{Name: made.GetName()})
	return err
}

func wait(ctx context.Context, c *client.Client, arguments []string) error {
	if len(arguments) > 1 {
		limit, err := time.ParseDuration(arguments[1])
		if err != nil {
			return err
		}
		timed, cancel := context.WithTimeout(ctx, limit)
		defer cancel()
		ctx = timed
	}
	return show(c.WaitRun(ctx, arguments[0]))
}

func each[T any](all iter.Seq2[T, error], show func(T)) error {
	for one, err := range all {
		if err != nil {
			return err
		}
		show(one)
	}
	return nil
}

func show(run *conveyorv1.Run, err error) error {
	if err == nil {
		fmt.Println(run.GetId(), strings.TrimPrefix(run.GetState().String(), "RUN_STATE_"))
	}
	return err
}

func update(update client.RunUpdate) {
	var changed []string
	for _, step := range update.Changed {
		state := strings.TrimPrefix(step.GetState().String(), "STEP_STATE_")
		changed = append(changed, step.GetStep()+"="+state)
	}
	state := strings.TrimPrefix(update.Run.GetState().String(), "RUN_STATE_")
	fmt.Println(update.Run.GetId(), state, strings.Join(changed, " "))
}

// explain writes what errors.Is and errors.As make of an error.
func explain(err error) {
	fmt.Println("error:", err)
	for name, target := range map[string]error{
		"NotFound": conveyor.ErrNotFound, "InvalidArgument": conveyor.ErrInvalidArgument,
		"Unavailable": conveyor.ErrUnavailable, "FailedPrecondition": conveyor.ErrFailedPrecondition,
		"Canceled": context.Canceled, "DeadlineExceeded": context.DeadlineExceeded,
	} {
		if errors.Is(err, target) {
			fmt.Println("is:", name)
		}
	}
	var failure *conveyor.Error
	if errors.As(err, &failure) {
		fmt.Println("reason:", strings.TrimPrefix(failure.Reason.String(), "ERROR_REASON_"))
		for _, violation := range failure.Violations {
			fmt.Printf("violation: %s: %s\n", violation.Field, violation.Description)
		}
	}
}
