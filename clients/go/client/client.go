// Package client asks a Conveyor installation for everything that its users can: definitions, pipelines, resources,
// schedules, runs and their logs.
//
// Methods take the request messages of conveyor/v1, so that every field can be set; an empty namespace becomes that of
// the client, an empty request id a new one. They return the object, or the whole answer where it says more. Failures
// are of type [conveyor.Error], which works with [errors.Is] and [errors.As].
//
// Calls that only read or that carry a request id are repeated for some seconds while no server answers. Lists and
// watches are iterators: they page, and go on by themselves after a lost connection, without gaps.
package client

import (
	"context"
	"crypto/tls"
	"log/slog"
	"time"

	"google.golang.org/grpc"

	conveyorv1 "github.com/conveyor-ci/conveyor/clients/go/conveyor/v1"
	"github.com/conveyor-ci/conveyor/clients/go/internal/link"
)

// Client is a client of one installation and one namespace. Safe for use by several goroutines.
type Client struct {
	link      *link.Link
	namespace string
	patience  time.Duration

	definitions conveyorv1.ResourceDefinitionServiceClient
	pipelines   conveyorv1.PipelineServiceClient
	resources   conveyorv1.ResourceServiceClient
	schedules   conveyorv1.ScheduleServiceClient
	runs        conveyorv1.RunServiceClient
	logs        conveyorv1.LogServiceClient
	drivers     conveyorv1.DriverServiceClient
	server      conveyorv1.ServerServiceClient
}

type settings struct {
	link.Settings
	namespace string
	patience  time.Duration
}

// Option is a setting of a [Client]. One that is not given comes from the environment: CONVEYOR_ADDRESS,
// CONVEYOR_NAMESPACE and CONVEYOR_TLS_*.
type Option func(*settings)

// WithAddress says where the server is, as host:port. Several are servers of the same installation: when one does not
// answer, the next is taken.
func WithAddress(addresses ...string) Option {
	return func(s *settings) { s.Addresses = append(s.Addresses, addresses...) }
}

// WithNamespace says whose objects are meant.
func WithNamespace(namespace string) Option {
	return func(s *settings) { s.namespace = namespace }
}

// WithTLS secures the connection.
func WithTLS(config *tls.Config) Option {
	return func(s *settings) { s.TLS = config }
}

// WithTimeout bounds each call but the streams, repetitions included; 30 s by default.
func WithTimeout(timeout time.Duration) Option {
	return func(s *settings) { s.Timeout = timeout }
}

// WithGiveUpAfter bounds how long a watch, or the reading of logs, tries to reach a server before it fails. By default
// it tries for as long as its context lives.
func WithGiveUpAfter(patience time.Duration) Option {
	return func(s *settings) { s.patience = patience }
}

// WithLogger says who is told of lost connections; [slog.Default] by default.
func WithLogger(logger *slog.Logger) Option {
	return func(s *settings) { s.Logger = logger }
}

// New returns a client. Nothing is sent before the first call; an error is a malformed setting.
func New(options ...Option) (*Client, error) {
	var s settings
	for _, option := range options {
		option(&s)
	}
	way, err := link.New(s.Settings)
	if err != nil {
		return nil, err
	}
	return &Client{
		link:        way,
		namespace:   link.Namespace(s.namespace),
		patience:    s.patience,
		definitions: conveyorv1.NewResourceDefinitionServiceClient(way),
		pipelines:   conveyorv1.NewPipelineServiceClient(way),
		resources:   conveyorv1.NewResourceServiceClient(way),
		schedules:   conveyorv1.NewScheduleServiceClient(way),
		runs:        conveyorv1.NewRunServiceClient(way),
		logs:        conveyorv1.NewLogServiceClient(way),
		drivers:     conveyorv1.NewDriverServiceClient(way),
		server:      conveyorv1.NewServerServiceClient(way),
	}, nil
}

// Close closes the connections; calls that run are cancelled.
func (c *Client) Close() error { return c.link.Close() }

// Namespace returns the one that calls are about.
func (c *Client) Namespace() string { return c.namespace }

// Address returns the one that calls go to now.
func (c *Client) Address() string { return c.link.Address() }

// Conn returns what generated stubs take. Their calls are repeated, move on to other addresses, and fail with a
// [conveyor.Error], as those of the client.
func (c *Client) Conn() grpc.ClientConnInterface { return c.link }

// ServerInfo returns what the server says of itself: version, store, broker, limits, time.
func (c *Client) ServerInfo(ctx context.Context, opts ...grpc.CallOption) (*conveyorv1.ServerInfo, error) {
	answer, err := c.server.GetServerInfo(ctx, &conveyorv1.GetServerInfoRequest{}, opts...)
	return answer.GetServerInfo(), err
}
