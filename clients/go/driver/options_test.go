package driver

import (
	"maps"
	"strings"
	"testing"
)

func TestLabelsAreAddedByTheEnvironment(t *testing.T) {
	t.Setenv("CONVEYOR_WORKER_LABELS", " os=linux,, zone = a ,empty=")
	var given settings
	WithLabels(map[string]string{"os": "mac", "gpu": "1"})(&given)
	made, err := given.complete("d")
	if err != nil {
		t.Fatal(err)
	}
	want := map[string]string{"os": "mac", "gpu": "1", "zone": "a", "empty": ""}
	if !maps.Equal(made.labels, want) {
		t.Errorf("the labels are %v", made.labels)
	}
}

func TestMalformedLabelsAreRefused(t *testing.T) {
	for _, bad := range []string{"linux", "=linux", "os=linux,gpu"} {
		t.Setenv("CONVEYOR_WORKER_LABELS", bad)
		_, err := settings{}.complete("d")
		if err == nil || !strings.Contains(err.Error(), "is not KEY=VALUE") {
			t.Errorf("%q: %v", bad, err)
		}
	}
}
