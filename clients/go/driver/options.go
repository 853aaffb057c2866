package driver

import (
	"crypto/tls"
	"fmt"
	"log/slog"
	"maps"
	"os"
	"strconv"
	"strings"
	"time"

	"github.com/nats-io/nats.go"

	"github.com/conveyor-ci/conveyor/clients/go/conveyor"
	"github.com/conveyor-ci/conveyor/clients/go/internal/link"
)

// Transport is how a driver takes part.
type Transport string

const (
	// GRPC is the Work stream of a server: the fastest, and all that it needs is the server.
	GRPC Transport = "grpc"
	// JetStream is a consumer of NATS JetStream, for workers that reach only the broker.
	JetStream Transport = "jetstream"
)

const (
	maxSlots       = 10_000
	defaultNatsURL = "nats://127.0.0.1:4222"
)

type settings struct {
	link.Settings
	driver       string
	namespace    string
	definitions  []string
	slots        int
	worker       string
	labels       map[string]string
	transport    Transport
	nats         string
	natsOptions  []nats.Option
	drainTimeout time.Duration
}

// Option is a setting of a [Driver]. One that is not given comes from the environment: CONVEYOR_ADDRESS,
// CONVEYOR_NAMESPACE, CONVEYOR_TLS_*, CONVEYOR_SLOTS, CONVEYOR_WORKER_LABELS, CONVEYOR_TRANSPORT and CONVEYOR_NATS.
type Option func(*settings)

// WithDefinitions names the definitions whose resources the driver wants: their steps, and broadcasts of them. Without
// it, it takes steps for any definition, and no broadcasts.
func WithDefinitions(names ...string) Option {
	return func(s *settings) { s.definitions = append(s.definitions, names...) }
}

// WithSlots says how many jobs the worker takes at a time: 1 to 10,000; 1 by default.
func WithSlots(slots int) Option {
	return func(s *settings) { s.slots = slots }
}

// WithAddress says where the server is, as host:port. Several are servers of the same installation: when one is gone,
// the next is taken.
func WithAddress(addresses ...string) Option {
	return func(s *settings) { s.Addresses = append(s.Addresses, addresses...) }
}

// WithNamespace names the tenant that the driver serves.
func WithNamespace(namespace string) Option {
	return func(s *settings) { s.namespace = namespace }
}

// WithTLS secures the connection to the server.
func WithTLS(config *tls.Config) Option {
	return func(s *settings) { s.TLS = config }
}

// WithWorker says what this process calls itself; host-pid by default.
func WithWorker(name string) Option {
	return func(s *settings) { s.worker = name }
}

// WithLabels says what steps may choose this worker by, over the transport [GRPC]. Those of CONVEYOR_WORKER_LABELS are
// added whose keys are not among them.
func WithLabels(labels map[string]string) Option {
	return func(s *settings) { s.labels = labels }
}

// WithTransport says how to take part; [GRPC] by default.
func WithTransport(transport Transport) Option {
	return func(s *settings) { s.transport = transport }
}

// WithNATS is the URL of the broker, for the transport [JetStream]; several with commas between them.
func WithNATS(url string) Option {
	return func(s *settings) { s.nats = url }
}

// WithNATSOptions says how to connect to the broker, e.g. with which credentials.
func WithNATSOptions(options ...nats.Option) Option {
	return func(s *settings) { s.natsOptions = append(s.natsOptions, options...) }
}

// WithDrainTimeout bounds how long a drain waits for what runs. After it, the server counts this worker as lost. By
// default it waits until all has ended.
func WithDrainTimeout(timeout time.Duration) Option {
	return func(s *settings) { s.drainTimeout = timeout }
}

// WithLogger says where the driver itself logs, as opposed to its jobs; [slog.Default] by default.
func WithLogger(logger *slog.Logger) Option {
	return func(s *settings) { s.Logger = logger }
}

// complete returns the settings with what the environment says and the defaults.
func (s settings) complete(name string) (settings, error) {
	s.driver = name
	s.namespace = link.Namespace(s.namespace)
	if s.slots == 0 {
		number, err := strconv.Atoi(either(os.Getenv("CONVEYOR_SLOTS"), "1"))
		if err != nil {
			return s, fmt.Errorf("CONVEYOR_SLOTS is %q, which is not a number", os.Getenv("CONVEYOR_SLOTS"))
		}
		s.slots = number
	}
	if s.slots < 1 || s.slots > maxSlots {
		return s, fmt.Errorf("slots is %d; it must be from 1 to %d", s.slots, maxSlots)
	}
	labels, err := workerLabels(s.labels, os.Getenv("CONVEYOR_WORKER_LABELS"))
	if err != nil {
		return s, err
	}
	s.labels = labels
	s.transport = Transport(either(string(s.transport), either(os.Getenv("CONVEYOR_TRANSPORT"), string(GRPC))))
	if s.transport != GRPC && s.transport != JetStream {
		return s, fmt.Errorf("the transport %q is none of %s, %s", s.transport, GRPC, JetStream)
	}
	s.nats = either(s.nats, either(os.Getenv("CONVEYOR_NATS"), defaultNatsURL))
	if s.worker == "" {
		host, _ := os.Hostname()
		s.worker = fmt.Sprintf("%s-%d", either(host, "worker"), os.Getpid())
	}
	if s.Logger == nil {
		s.Logger = slog.Default()
	}
	return s, nil
}

// workerLabels returns the labels that were given, and those of the text, key=value with commas between them, whose keys
// are not among them.
func workerLabels(given map[string]string, text string) (map[string]string, error) {
	labels := map[string]string{}
	for part := range strings.SplitSeq(text, ",") {
		if part = strings.TrimSpace(part); part == "" {
			continue
		}
		key, value, found := strings.Cut(part, "=")
		if key = strings.TrimSpace(key); !found || key == "" {
			return nil, fmt.Errorf("CONVEYOR_WORKER_LABELS has %q, which is not KEY=VALUE, e.g. os=linux", part)
		}
		labels[key] = strings.TrimSpace(value)
	}
	maps.Copy(labels, given)
	return labels, nil
}

func sdk() string { return "conveyor-go/" + conveyor.Version }

func either(value, otherwise string) string {
	if value != "" {
		return value
	}
	return otherwise
}
