package client

import (
	"context"
	"iter"

	"google.golang.org/grpc"

	conveyorv1 "github.com/conveyor-ci/conveyor/clients/go/conveyor/v1"
	"github.com/conveyor-ci/conveyor/clients/go/internal/link"
)

// ReadLogs yields the lines of a run in the order in which they were stored. With Follow, new ones come until the run
// has ended.
//
// It goes on by itself after the connection was lost, without loss and without repetition. A line's Cursor is where a
// later call goes on.
func (c *Client) ReadLogs(
	ctx context.Context, request *conveyorv1.ReadLogsRequest, opts ...grpc.CallOption,
) iter.Seq2[*conveyorv1.LogLine, error] {
	return func(yield func(*conveyorv1.LogLine, error) bool) {
		next := complete(c, request)
		open := func(ctx context.Context) (grpc.ServerStreamingClient[conveyorv1.ReadLogsResponse], error) {
			return c.logs.ReadLogs(ctx, next, opts...)
		}
		for message, err := range link.Resumed(ctx, c.link, 0, c.patience, open) {
			if err != nil {
				yield(nil, err)
				return
			}
			for _, line := range message.GetLines() {
				if !yield(line, nil) {
					return
				}
				if line.GetCursor() != "" {
					next.Cursor, next.Tail = line.GetCursor(), 0
				}
			}
		}
	}
}
