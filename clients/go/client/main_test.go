package client_test

import (
	"flag"
	"os"
	"testing"
)

// The examples need a server; `go test` alone leaves them out.
func TestMain(m *testing.M) {
	flag.Parse()
	if os.Getenv("CONVEYOR_EXAMPLES") == "" {
		_ = flag.Set("test.skip", "^Example")
	}
	os.Exit(m.Run())
}
