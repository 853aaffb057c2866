package link

import (
	"context"
	"errors"
	"fmt"
	"io"
	"regexp"
	"strings"

	"google.golang.org/genproto/googleapis/rpc/errdetails"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/conveyor-ci/conveyor/clients/go/conveyor"
	conveyorv1 "github.com/conveyor-ci/conveyor/clients/go/conveyor/v1"
)

const domain = "conveyor"

var (
	// What gRPC says of a connection that never was.
	unconnected = regexp.MustCompile("(?i)error while dialing|handshake failed|server preface|name resolver|zero addresses")
	insecureBy  = regexp.MustCompile("(?i)handshake|tls|x509|certificate")
	// What stands before the cause in gRPC's texts.
	wrapping = regexp.MustCompile(`^.*(?:dial \S+ \S+: |transport: |desc = |connect: )`)
)

// IsTransient says whether a stream that ended like this is to be opened again.
func IsTransient(failure *conveyor.Error) bool {
	switch failure.Code {
	case codes.Unavailable:
		return true
	case codes.Internal, codes.Unknown, codes.Canceled:
		// What a broken connection, a proxy or a server that went away in mid-stream looks like.
		return failure.Reason == 0
	}
	return false
}

// AsError returns the *conveyor.Error in what a stub of a Link returned.
func AsError(err error, address string) *conveyor.Error {
	var failure *conveyor.Error
	if errors.As(err, &failure) {
		return failure
	}
	return translate(err, address)
}

func translate(err error, address string) *conveyor.Error {
	if errors.Is(err, context.Canceled) || errors.Is(err, context.DeadlineExceeded) {
		err = status.FromContextError(err).Err()
	}
	state, _ := status.FromError(err)
	failure := &conveyor.Error{Code: state.Code(), Message: state.Message(), Status: state}
	for _, detail := range state.Details() {
		switch detail := detail.(type) {
		case *errdetails.ErrorInfo:
			if detail.GetDomain() != domain {
				continue
			}
			name := "ERROR_REASON_" + strings.TrimPrefix(detail.GetReason(), "ERROR_REASON_")
			failure.Reason = conveyorv1.ErrorReason(conveyorv1.ErrorReason_value[name])
			failure.Metadata = detail.GetMetadata()
		case *errdetails.BadRequest:
			for _, each := range detail.GetFieldViolations() {
				violation := conveyor.Violation{Field: each.GetField(), Description: each.GetDescription()}
				failure.Violations = append(failure.Violations, violation)
			}
		}
	}
	if failure.Code == codes.Unavailable && failure.Reason == 0 {
		failure.Message = unreachable(failure.Message, address)
	}
	return failure
}

func neverSent(err error) bool {
	return unconnected.MatchString(status.Convert(err).Message())
}

func unreachable(message, address string) string {
	cause := strings.Trim(wrapping.ReplaceAllString(message, ""), `"`)
	if !unconnected.MatchString(message) {
		return fmt.Sprintf("lost the server at %s: %s", address, cause)
	}
	hint := "is it running? `conveyor server dev` starts one, CONVEYOR_ADDRESS names another"
	if insecureBy.MatchString(message) {
		hint = "check CONVEYOR_TLS_CA, CONVEYOR_TLS_SERVER_NAME and the server's certificate"
	} else if strings.Contains(message, "preface") {
		hint = "does it want TLS (CONVEYOR_TLS_CA), or a client certificate (CONVEYOR_TLS_CERT, CONVEYOR_TLS_KEY)?"
	}
	return fmt.Sprintf("cannot reach the server at %s: %s; %s", address, cause, hint)
}

func isEnd(err error) bool { return errors.Is(err, io.EOF) }
