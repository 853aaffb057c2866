package link

import (
	"context"
	"crypto/tls"
	"log/slog"
	"strings"
	"sync"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/backoff"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/keepalive"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"

	"github.com/conveyor-ci/conveyor/clients/go/conveyor"
)

// Settings say where the servers are. What is zero comes from the environment, then from the defaults.
type Settings struct {
	Addresses []string
	TLS       *tls.Config
	// Timeout bounds each unary call; 30 s when it is 0.
	Timeout time.Duration
	// Logger is told of lost connections; slog's default when it is nil.
	Logger *slog.Logger
}

// For so long a call that may be repeated is repeated.
const retryFor = 2 * time.Second

// The server's limits count; this only must not be below them.
const messageBytes = 64 << 20

// Link is connections to servers of one installation, opened at need.
//
// It is what generated stubs take: calls go to the current address, and one that does not answer makes the next address
// the current one, for all calls. Failures are of type *conveyor.Error.
type Link struct {
	Logger    *slog.Logger
	addresses []string
	tls       *tls.Config
	timeout   time.Duration

	mu      sync.Mutex
	current int
	conns   map[string]*grpc.ClientConn
	closed  bool
}

// New checks the settings. Nothing is sent before the first call.
func New(settings Settings) (*Link, error) {
	addresses, err := Addresses(settings.Addresses)
	if err != nil {
		return nil, err
	}
	config := settings.TLS
	if config == nil {
		if config, err = TLS(); err != nil {
			return nil, err
		}
	}
	link := &Link{
		Logger: settings.Logger, addresses: addresses, tls: config, timeout: settings.Timeout,
		conns: map[string]*grpc.ClientConn{},
	}
	if link.timeout == 0 {
		link.timeout = 30 * time.Second
	}
	if link.Logger == nil {
		link.Logger = slog.Default()
	}
	return link, nil
}

// Address returns the one that calls go to now.
func (l *Link) Address() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.addresses[l.current]
}

// Failed says that an address did not answer: the next one becomes current, unless that has happened already.
func (l *Link) Failed(address string) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if address == l.addresses[l.current] {
		l.current = (l.current + 1) % len(l.addresses)
	}
}

// Close closes all connections; calls that run are cancelled.
func (l *Link) Close() error {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.closed = true
	for address, conn := range l.conns {
		_ = conn.Close()
		delete(l.conns, address)
	}
	return nil
}

// Invoke sends a unary call.
//
// One that only reads, or that carries a request id, is repeated while the answer is UNAVAILABLE: at once on each other
// address, then with growing waits, for a few seconds in all. So is one that never left, because nobody could be
// connected to.
func (l *Link) Invoke(ctx context.Context, method string, request, reply any, opts ...grpc.CallOption) error {
	ctx, cancel := context.WithTimeout(ctx, l.timeout)
	defer cancel()
	giveUp := time.Now().Add(min(retryFor, l.timeout))
	repeatable := isRepeatable(request)
	waits := Backoff{Longest: time.Second}
	untried := len(l.addresses) - 1
	for {
		address, conn, err := l.conn()
		if err != nil {
			return translate(err, address)
		}
		err = conn.Invoke(ctx, method, request, reply, opts...)
		if err == nil {
			return nil
		}
		failure := translate(err, address)
		if failure.Code != codes.Unavailable {
			return failure
		}
		l.Failed(address)
		if !repeatable && !neverSent(err) {
			return failure
		}
		if untried > 0 {
			untried--
			continue
		}
		wait := waits.Next()
		if !time.Now().Add(wait).Before(giveUp) {
			return l.nobody(failure)
		}
		if err := Sleep(ctx, wait); err != nil {
			return translate(err, address)
		}
		untried = len(l.addresses) - 1
	}
}

// NewStream opens a stream to the current address. When it breaks, the next address becomes the current one.
func (l *Link) NewStream(
	ctx context.Context, desc *grpc.StreamDesc, method string, opts ...grpc.CallOption,
) (grpc.ClientStream, error) {
	address, conn, err := l.conn()
	if err != nil {
		return nil, translate(err, address)
	}
	inner, err := conn.NewStream(ctx, desc, method, opts...)
	if err != nil {
		return nil, l.broken(err, address)
	}
	return &stream{ClientStream: inner, link: l, address: address}, nil
}

func (l *Link) broken(err error, address string) error {
	failure := translate(err, address)
	if IsTransient(failure) {
		l.Failed(address)
	}
	return failure
}

func (l *Link) nobody(failure *conveyor.Error) error {
	if failure.Reason != 0 || len(l.addresses) == 1 {
		return failure
	}
	failure.Message = "none of " + strings.Join(l.addresses, ", ") + " answers; the last one: " + failure.Message
	return failure
}

func (l *Link) conn() (string, *grpc.ClientConn, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	address := l.addresses[l.current]
	if l.closed {
		return address, nil, status.Error(codes.FailedPrecondition, "the client is closed")
	}
	if conn, ok := l.conns[address]; ok {
		return address, conn, nil
	}
	conn, err := l.open(address)
	if err == nil {
		l.conns[address] = conn
	}
	return address, conn, err
}

func (l *Link) open(address string) (*grpc.ClientConn, error) {
	creds := insecure.NewCredentials()
	if l.tls != nil {
		creds = credentials.NewTLS(l.tls)
	}
	options := []grpc.DialOption{
		grpc.WithTransportCredentials(creds),
		grpc.WithUserAgent("conveyor-go/" + conveyor.Version),
		// What lies on the way may cut connections on which nothing has passed for half a minute.
		grpc.WithKeepaliveParams(keepalive.ClientParameters{
			Time: 20 * time.Second, Timeout: 10 * time.Second, PermitWithoutStream: true,
		}),
		grpc.WithDefaultCallOptions(grpc.MaxCallRecvMsgSize(messageBytes), grpc.MaxCallSendMsgSize(messageBytes)),
		// A server that was away a moment ago is found within seconds of its return.
		grpc.WithConnectParams(grpc.ConnectParams{
			Backoff:           backoff.Config{BaseDelay: firstWait, Multiplier: 1.6, Jitter: 0.2, MaxDelay: 3 * time.Second},
			MinConnectTimeout: 5 * time.Second,
		}),
		// How often a call is repeated is decided here, not by the server's name service.
		grpc.WithDisableServiceConfig(),
	}
	if isLoopback(address) || flag("CONVEYOR_NO_PROXY") {
		options = append(options, grpc.WithNoProxy())
	}
	if !isUnix(address) {
		address = "dns:///" + address
	}
	return grpc.NewClient(address, options...)
}

// stream gives the failures of a stream their type.
type stream struct {
	grpc.ClientStream
	link    *Link
	address string
}

func (s *stream) RecvMsg(message any) error { return s.failure(s.ClientStream.RecvMsg(message)) }

func (s *stream) SendMsg(message any) error { return s.failure(s.ClientStream.SendMsg(message)) }

func (s *stream) CloseSend() error { return s.failure(s.ClientStream.CloseSend()) }

func (s *stream) failure(err error) error {
	if err == nil || isEnd(err) {
		return err
	}
	return s.link.broken(err, s.address)
}

func isRepeatable(request any) bool {
	message, ok := request.(proto.Message)
	if !ok {
		return false
	}
	descriptor := message.ProtoReflect().Descriptor()
	name := string(descriptor.Name())
	if strings.HasPrefix(name, "Get") || strings.HasPrefix(name, "List") {
		return true
	}
	field := descriptor.Fields().ByName("request_id")
	return field != nil && field.Kind() == protoreflect.StringKind && message.ProtoReflect().Get(field).String() != ""
}
