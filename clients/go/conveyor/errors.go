package conveyor

import (
	"context"
	"strings"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	conveyorv1 "github.com/conveyor-ci/conveyor/clients/go/conveyor/v1"
)

// What [errors.Is] finds in an [Error], by the code of its status. An Error of your own that has only a Reason matches
// by that:
//
//	errors.Is(err, &conveyor.Error{Reason: conveyorv1.ErrorReason_ERROR_REASON_CYCLE})
var (
	// ErrInvalidArgument says that the request breaks a rule.
	ErrInvalidArgument = &Error{Code: codes.InvalidArgument}
	// ErrNotFound says that there is no such object.
	ErrNotFound = &Error{Code: codes.NotFound}
	// ErrAlreadyExists says that there is such an object, or that the request id was used with another request.
	ErrAlreadyExists = &Error{Code: codes.AlreadyExists}
	// ErrAborted says that the object changed in between.
	ErrAborted = &Error{Code: codes.Aborted}
	// ErrFailedPrecondition says that the state of the system does not allow it.
	ErrFailedPrecondition = &Error{Code: codes.FailedPrecondition}
	// ErrUnavailable says that the server cannot be reached, or cannot reach its store.
	ErrUnavailable = &Error{Code: codes.Unavailable}
	// ErrResourceExhausted says that a limit or the store's room is used up.
	ErrResourceExhausted = &Error{Code: codes.ResourceExhausted}
	// ErrUnimplemented says that the server does not know the call, or does not act on a field.
	ErrUnimplemented = &Error{Code: codes.Unimplemented}
	// ErrInternal says that the server made a mistake; its log says more.
	ErrInternal = &Error{Code: codes.Internal}
	// ErrUnauthenticated says that the server does not know who is calling.
	ErrUnauthenticated = &Error{Code: codes.Unauthenticated}
	// ErrPermissionDenied says that the caller may not do this.
	ErrPermissionDenied = &Error{Code: codes.PermissionDenied}
)

// Violation is one rule that a request broke.
type Violation struct {
	// Field is the path of the field, or a JSON pointer into a spec.
	Field string
	// Description says what is wrong with it.
	Description string
}

// Error is how a call failed. [errors.As] finds it; [errors.Is] compares its code and reason, and knows it as
// [context.Canceled] or [context.DeadlineExceeded] when it was that.
type Error struct {
	// Code is that of the gRPC status.
	Code codes.Code
	// Reason is the server's. Unspecified when the answer did not come from a Conveyor server.
	Reason conveyorv1.ErrorReason
	// Message is for people.
	Message string
	// Violations lists the fields that broke their rules.
	Violations []Violation
	// Metadata is what else the server said; "id" and "request_id" find more in its log.
	Metadata map[string]string
	// Status is what gRPC returned. May be nil.
	Status *status.Status
}

// Error returns the message, after the reason or else the code.
func (e *Error) Error() string {
	kind := e.Code.String()
	if e.Reason != conveyorv1.ErrorReason_ERROR_REASON_UNSPECIFIED {
		kind = strings.TrimPrefix(e.Reason.String(), "ERROR_REASON_")
	}
	if e.Message == "" {
		return kind
	}
	return kind + ": " + e.Message
}

// Is says whether target is a context error of the same meaning, or an Error whose code and reason, as far as it has
// them, are the same.
func (e *Error) Is(target error) bool {
	switch target {
	case context.Canceled:
		return e.Code == codes.Canceled
	case context.DeadlineExceeded:
		return e.Code == codes.DeadlineExceeded
	}
	other, ok := target.(*Error)
	return ok && other.Message == "" &&
		(other.Code == codes.OK || other.Code == e.Code) &&
		(other.Reason == conveyorv1.ErrorReason_ERROR_REASON_UNSPECIFIED || other.Reason == e.Reason)
}

// GRPCStatus lets [status.FromError] and [status.Code] read it.
func (e *Error) GRPCStatus() *status.Status {
	if e.Status != nil {
		return e.Status
	}
	return status.New(e.Code, e.Message)
}
