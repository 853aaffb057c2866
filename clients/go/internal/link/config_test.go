package link

import (
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"
)

func TestAddresses(t *testing.T) {
	t.Setenv("CONVEYOR_ADDRESS", "")
	for _, each := range []struct {
		given []string
		want  string
	}{
		{nil, "127.0.0.1:7460"},
		{[]string{"a, b:1,", "[::1]"}, "a:7460 b:1 [::1]:7460"},
		{[]string{"unix:/tmp/x"}, "unix:/tmp/x"},
		{[]string{"http://x"}, "not a URL"},
		{[]string{"::1"}, "in brackets"},
		{[]string{"x:0"}, "is not host:port"},
		{[]string{"x:70000"}, "is not host:port"},
		{[]string{":80"}, "is not host:port"},
		{[]string{" ,"}, "is empty"},
	} {
		got, err := Addresses(each.given)
		if err != nil {
			got = []string{err.Error()}
		}
		if !strings.Contains(strings.Join(got, " "), each.want) {
			t.Errorf("%q: got %q, want %s", each.given, got, each.want)
		}
	}
	t.Setenv("CONVEYOR_ADDRESS", "one,two:2")
	if got, err := Addresses(nil); err != nil || !slices.Equal(got, []string{"one:7460", "two:2"}) {
		t.Error(got, err)
	}
}

func TestLoopback(t *testing.T) {
	for address, want := range map[string]bool{
		"127.0.0.1:1": true, "127.9.9.9:1": true, "[::1]:1": true, "localhost:1": true, "a.localhost:1": true,
		"unix:/x": true, "10.0.0.1:1": false, "localhost.example:1": false,
	} {
		if isLoopback(address) != want {
			t.Errorf("%s: want %v", address, want)
		}
	}
}

func TestTLSComesFromTheEnvironment(t *testing.T) {
	for _, name := range []string{"", "_CA", "_CERT", "_KEY", "_SERVER_NAME"} {
		t.Setenv("CONVEYOR_TLS"+name, "")
	}
	if config, err := TLS(); config != nil || err != nil {
		t.Error(config, err)
	}
	t.Setenv("CONVEYOR_TLS", "off")
	if config, err := TLS(); config != nil || err != nil {
		t.Error(config, err)
	}
	t.Setenv("CONVEYOR_TLS", "1")
	t.Setenv("CONVEYOR_TLS_SERVER_NAME", "name")
	if config, err := TLS(); err != nil || config.ServerName != "name" {
		t.Error(config, err)
	}
	t.Setenv("CONVEYOR_TLS_CERT", "cert")
	if _, err := TLS(); err == nil || !strings.Contains(err.Error(), "needs its key") {
		t.Error(err)
	}
	file := filepath.Join(t.TempDir(), "ca")
	if err := os.WriteFile(file, []byte("no PEM"), 0o600); err != nil {
		t.Fatal(err)
	}
	t.Setenv("CONVEYOR_TLS_CA", file)
	if _, err := TLS(); err == nil || !strings.Contains(err.Error(), "has no certificate") {
		t.Error(err)
	}
}

func TestBackoffGrowsAndStartsOver(t *testing.T) {
	waits := Backoff{Longest: time.Second}
	for _, longest := range []int{100, 200, 400, 800, 1000, 1000} {
		wait := waits.Next()
		if limit := time.Duration(longest) * time.Millisecond; wait < limit/2 || wait > limit {
			t.Errorf("waits %v where at most %v is due", wait, limit)
		}
	}
	waits.Reset()
	if wait := waits.Next(); wait > firstWait {
		t.Error(wait)
	}
}
