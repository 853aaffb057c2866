package conveyor_test

import (
	"context"
	"errors"
	"fmt"
	"testing"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/conveyor-ci/conveyor/clients/go/conveyor"
	conveyorv1 "github.com/conveyor-ci/conveyor/clients/go/conveyor/v1"
)

func TestErrorsAreFoundByCodeAndByReason(t *testing.T) {
	cycle := &conveyor.Error{
		Code: codes.InvalidArgument, Reason: conveyorv1.ErrorReason_ERROR_REASON_CYCLE, Message: "a -> b -> a",
	}
	wrapped := fmt.Errorf("apply: %w", cycle)
	for _, each := range []struct {
		target error
		want   bool
	}{
		{conveyor.ErrInvalidArgument, true},
		{conveyor.ErrNotFound, false},
		{&conveyor.Error{Reason: conveyorv1.ErrorReason_ERROR_REASON_CYCLE}, true},
		{&conveyor.Error{Reason: conveyorv1.ErrorReason_ERROR_REASON_TOO_LARGE}, false},
		{&conveyor.Error{Code: codes.InvalidArgument, Message: "another"}, false},
		{context.Canceled, false},
	} {
		if errors.Is(wrapped, each.target) != each.want {
			t.Errorf("errors.Is with %v is not %v", each.target, each.want)
		}
	}
	if wrapped.Error() != "apply: CYCLE: a -> b -> a" || status.Code(wrapped) != codes.InvalidArgument {
		t.Error(wrapped, status.Code(wrapped))
	}
	if !errors.Is(&conveyor.Error{Code: codes.DeadlineExceeded}, context.DeadlineExceeded) {
		t.Error("a deadline is not known as one")
	}
}
