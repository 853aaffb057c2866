package conveyor_test

import (
	"errors"
	"fmt"

	"github.com/conveyor-ci/conveyor/clients/go/conveyor"
	conveyorv1 "github.com/conveyor-ci/conveyor/clients/go/conveyor/v1"
)

func ExampleStruct() {
	spec, err := conveyor.Struct(map[string]any{"repository": "https://example.org/shop.git", "replicas": 3})
	fmt.Println(spec.AsMap()["replicas"], err)
	_, err = conveyor.Struct(map[string]any{"build": map[string]any{"id": 9007199254740993}})
	fmt.Println(err)
	// Output:
	// 3 <nil>
	// $.build.id: the integer 9007199254740993 does not fit a double; send it as a string
}

func ExampleError() {
	err := error(&conveyor.Error{
		Reason:     conveyorv1.ErrorReason_ERROR_REASON_INVALID_FIELD,
		Message:    "name: is missing",
		Violations: []conveyor.Violation{{Field: "name", Description: "is missing"}},
	})
	var failure *conveyor.Error
	if errors.As(err, &failure) {
		for _, violation := range failure.Violations {
			fmt.Println(violation.Field, violation.Description)
		}
	}
	// Output: name is missing
}
