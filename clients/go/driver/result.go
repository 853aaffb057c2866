package driver

import (
	"errors"
	"fmt"
	"strings"
	"unicode/utf8"

	"google.golang.org/protobuf/proto"

	"github.com/conveyor-ci/conveyor/clients/go/conveyor"
	conveyorv1 "github.com/conveyor-ci/conveyor/clients/go/conveyor/v1"
)

// Result is what a handler returns.
type Result struct {
	// Message is for people; of a failure the error's text is taken instead. Longer ones than 4 KiB are cut.
	Message string
	// Data goes to later steps: a map or struct that encoding/json writes as an object of at most 64 KiB; nil: none.
	// Large outputs belong into a store of their own, with their address in here.
	Data any
}

// ErrCancelled is what a handler returns when it gives up by itself: the step is then CANCELLED, not FAILED.
var ErrCancelled = errors.New("cancelled by the driver")

type permanent struct{ error }

func (p permanent) Unwrap() error { return p.error }

// Permanent marks an error after which another attempt makes no sense: the step ends, whatever its retry policy. It
// returns nil for nil.
func Permanent(err error) error {
	if err == nil {
		return nil
	}
	return permanent{err}
}

// What a message needs besides the data of its result.
const headroom = 256 << 10

// answer turns what a handler returned into the result to send. cancelled is why it was told to stop, or nil.
func answer(result Result, err error, cancelled *Cancellation) *conveyorv1.DriverResult {
	made := &conveyorv1.DriverResult{Outcome: conveyorv1.Outcome_OUTCOME_SUCCEEDED, Message: result.Message}
	var final permanent
	switch {
	case err == nil:
	case cancelled != nil:
		made.Outcome, made.Message = conveyorv1.Outcome_OUTCOME_CANCELLED, cancelled.Message
	case errors.Is(err, ErrCancelled):
		made.Outcome, made.Message = conveyorv1.Outcome_OUTCOME_CANCELLED, err.Error()
	default:
		made.Outcome, made.Message = conveyorv1.Outcome_OUTCOME_FAILED, err.Error()
		if errors.As(err, &final) {
			made.Retryable = proto.Bool(false)
		}
	}
	made.Message = strings.ToValidUTF8(made.Message, "\uFFFD")
	if result.Data == nil {
		return made
	}
	data, bad := conveyor.Struct(result.Data)
	switch {
	case bad == nil:
		made.Data = data
	case err == nil:
		return failed(bad.Error(), proto.Bool(false))
	default:
		made.Message += fmt.Sprintf(" (its data was left out: %v)", bad)
	}
	return made
}

func failed(message string, retryable *bool) *conveyorv1.DriverResult {
	return &conveyorv1.DriverResult{
		Outcome: conveyorv1.Outcome_OUTCOME_FAILED, Message: message, Retryable: retryable,
	}
}

// withinLimits cuts what may be cut. Data above its limit is for the server to refuse, but a message must carry it
// there.
func withinLimits(result *conveyorv1.DriverResult, limits *conveyorv1.Limits) *conveyorv1.DriverResult {
	result.Message = cut(result.GetMessage(), int(limits.GetResultMessageBytes()))
	size := proto.Size(result)
	if size > int(limits.GetMessageBytes())-headroom {
		text := fmt.Sprintf("the result has %d bytes of data; the limit is %d", size, limits.GetResultDataBytes())
		return failed(text, proto.Bool(false))
	}
	return result
}

func cut(text string, limit int) string {
	if len(text) <= limit {
		return text
	}
	end := max(limit-len("…"), 0)
	for end > 0 && !utf8.RuneStart(text[end]) {
		end--
	}
	return text[:end] + "…"
}
